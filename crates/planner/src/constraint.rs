//! Placement constraints: `node.labels.zone==east`, `node.ip!=10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;

use types::Node;
use types::node::Role;

/// What a constraint looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    NodeId,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
}

/// One parsed constraint. Values are compared without regard to case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    subject: Subject,
    is_equal: bool,
    value: String,
}

/// The text is no constraint. Docker's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    #[error("key '{0}' is invalid")]
    Key(String),
    #[error("value '{0}' is invalid")]
    Value(String),
}

impl Constraint {
    /// # Errors
    /// [`ParseError`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (key, is_equal, value) = split(text).ok_or(ParseError::Operator)?;
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(ParseError::Key(key.into()));
        }
        if !is_value(value) {
            return Err(ParseError::Value(value.into()));
        }
        let subject = Subject::parse(key).ok_or_else(|| ParseError::Key(key.into()))?;
        Ok(Self { subject, is_equal, value: value.into() })
    }

    /// Whether `node` satisfies the constraint.
    pub fn allows(&self, node: &Node) -> bool {
        self.holds(node) == self.is_equal
    }

    fn holds(&self, node: &Node) -> bool {
        let same = |found: &str| found.eq_ignore_ascii_case(&self.value);
        let description = &node.description;
        match &self.subject {
            Subject::NodeId => same(&node.id.to_string()),
            Subject::Hostname => same(&description.hostname),
            Subject::Ip => self.holds_ip(&node.status.address),
            Subject::Role => same(match node.spec.role {
                Role::Worker => "worker",
                Role::Manager => "manager",
            }),
            Subject::Os => same(&description.platform.os),
            Subject::Architecture => {
                same(normal_architecture(&description.platform.architecture))
                    || same(&description.platform.architecture)
            }
            Subject::NodeLabel(key) => {
                same(node.spec.annotations.labels.get(key).map_or("", String::as_str))
            }
            Subject::EngineLabel(key) => {
                same(description.engine_labels.get(key).map_or("", String::as_str))
            }
        }
    }

    fn holds_ip(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<IpAddr>() else { return false };
        match self.value.split_once('/') {
            Some((network, length)) => contains(network, length, address),
            None => self.value.parse() == Ok(address),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}{}", self.subject, if self.is_equal { "==" } else { "!=" }, self.value)
    }
}

impl Subject {
    fn parse(key: &str) -> Option<Self> {
        let label = |prefix: &str| {
            let (head, tail) = key.split_at_checked(prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && !tail.is_empty()).then(|| tail.to_owned())
        };
        let fixed = match key.to_ascii_lowercase().as_str() {
            "node.id" => Some(Self::NodeId),
            "node.hostname" => Some(Self::Hostname),
            "node.ip" => Some(Self::Ip),
            "node.role" => Some(Self::Role),
            "node.platform.os" => Some(Self::Os),
            "node.platform.arch" => Some(Self::Architecture),
            _ => None,
        };
        fixed
            .or_else(|| label("node.labels.").map(Self::NodeLabel))
            .or_else(|| label("engine.labels.").map(Self::EngineLabel))
    }
}

/// Parses every constraint of a placement.
///
/// # Errors
/// The first text that is no constraint.
pub fn parse_all(texts: &[String]) -> Result<Vec<Constraint>, ParseError> {
    texts.iter().map(|text| Constraint::parse(text)).collect()
}

/// The value of a label that a spread preference names, `node.labels.zone`; empty where the node has none.
pub(crate) fn label_value<'a>(descriptor: &str, node: &'a Node) -> &'a str {
    match Subject::parse(descriptor) {
        Some(Subject::NodeLabel(key)) => {
            node.spec.annotations.labels.get(&key).map_or("", String::as_str)
        }
        Some(Subject::EngineLabel(key)) => {
            node.description.engine_labels.get(&key).map_or("", String::as_str)
        }
        _ => "",
    }
}

/// The operator that stands first wins, as in `a==b!=c`.
fn split(text: &str) -> Option<(&str, bool, &str)> {
    let equal = text.find("==").map(|at| (at, true));
    let unequal = text.find("!=").map(|at| (at, false));
    let (at, is_equal) = [equal, unequal].into_iter().flatten().min()?;
    Some((&text[..at], is_equal, &text[at + 2..]))
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    first
        && key.len() > 1
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

fn is_value(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_ .*()?+[]\\^$|/".contains(&byte);
    !value.is_empty() && value.bytes().all(allowed)
}

/// Architectures as Go names them, since users write either.
pub(crate) fn normal_architecture(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn contains(network: &str, length: &str, address: IpAddr) -> bool {
    let Ok(length) = length.parse::<u32>() else { return false };
    match (network.parse(), address) {
        (Ok(IpAddr::V4(network)), IpAddr::V4(address)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (Ok(IpAddr::V6(network)), IpAddr::V6(address)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

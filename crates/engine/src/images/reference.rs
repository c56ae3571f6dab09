//! Image references: `[domain/]path[:tag][@digest]`, in the short form people type and in full.
//!
//! Pure: text in, value out. A [`Reference`] is always in full (`docker.io/library/busybox`); the
//! familiar form leaves out what Docker leaves out.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, ParseDigestError};

/// Registry of references that name none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// Tag of references that name neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// What Docker Hub was called once; the same registry.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Namespace of Docker Hub's one-component repositories.
const OFFICIAL_NAMESPACE: &str = "library/";
/// Longest repository path, in bytes; the distribution grammar's limit.
const PATH_BYTES_MAX: usize = 255;
/// Longest tag, in bytes; the distribution grammar's limit.
const TAG_BYTES_MAX: usize = 128;
/// Digits of an image id, which a repository name must not look like.
const ID_DIGITS: usize = 64;
/// Fewest hexadecimal digits of anything that the grammar calls a digest.
const DIGEST_DIGITS_MIN: usize = 32;

/// A full image reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference. The texts are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Outside the grammar.
    #[error("invalid reference format")]
    Format,
    /// Upper case in the repository's path.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// A name that is an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// A path above 255 bytes.
    #[error("repository name must not be more than {PATH_BYTES_MAX} characters")]
    TooLong,
    /// The digest after `@` is none of ours.
    #[error("invalid reference format: {0}")]
    Digest(#[from] ParseDigestError),
}

/// What a user may name an image by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyReference {
    /// A whole digest, with or without `sha256:`: an image id or the digest of a manifest.
    Digest(Digest),
    /// A repository with tag or digest, `latest` where neither is given.
    Named(Reference),
}

impl Reference {
    /// Registry host with port: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag, where one is given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, where one is given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether neither tag nor digest is given.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// Domain and path.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `busybox`, `user/app`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL_NAMESPACE) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    /// The same repository without tag and digest.
    #[must_use]
    pub fn without_suffix(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }

    /// The same repository with the tag `latest`, unless tag or digest is given.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository with only this tag.
    ///
    /// # Errors
    /// [`ParseError::Format`] when `tag` is outside the grammar.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ParseError> {
        if !is_tag(tag) {
            return Err(ParseError::Format);
        }
        Ok(Self { tag: Some(tag.to_owned()), ..self.without_suffix() })
    }

    /// The same repository with only this digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.without_suffix() }
    }

    /// The same repository and tag, with this digest beside: what a service is pinned to.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

impl AnyReference {
    /// Reads what a user typed. Short ids are names to the grammar; the image store tries those
    /// as id prefixes.
    ///
    /// # Errors
    /// As for [`Reference`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if let Ok(digest) = Digest::from_hex(text) {
            return Ok(Self::Digest(digest));
        }
        if let Ok(digest) = text.parse::<Digest>() {
            return Ok(Self::Digest(digest));
        }
        Ok(Self::Named(text.parse::<Reference>()?.or_latest()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_suffix(&mut text);
        f.write_str(&text)
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() == ID_DIGITS && text.bytes().all(is_lower_hex) {
            return Err(ParseError::LooksLikeId(text.to_owned()));
        }
        let (domain, rest) = split_domain(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let is_official = domain == DEFAULT_DOMAIN && !path.contains('/') && !path.is_empty();
        let namespace = if is_official { OFFICIAL_NAMESPACE } else { "" };
        let path = format!("{namespace}{path}");
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseError::Uppercase(path));
        }
        if !is_domain(&domain) || !is_path(&path) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ParseError::Format);
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(ParseError::TooLong);
        }
        Ok(Self { domain, path, tag: tag.map(str::to_owned), digest })
    }
}

/// The first component is a domain when it could not be a path component or is `localhost`.
fn split_domain(text: &str) -> (String, &str) {
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    (domain.to_owned(), rest)
}

fn parse_digest(text: &str) -> Result<Digest, ParseError> {
    let (algorithm, hex) = text.split_once(':').ok_or(ParseError::Format)?;
    let algorithm_is_word =
        algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_+.".contains(&b))
            && algorithm.starts_with(|c: char| c.is_ascii_alphabetic());
    let hex_is_hex = hex.bytes().all(|b| b.is_ascii_hexdigit()) && hex.len() >= DIGEST_DIGITS_MIN;
    if !algorithm_is_word || !hex_is_hex {
        return Err(ParseError::Format);
    }
    Ok(text.parse()?)
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let host = match domain.split_once(':') {
        Some((host, port)) if is_port(port) => host,
        Some(_) => return false,
        None => domain,
    };
    host.split('.').all(is_domain_component)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && component.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !component.starts_with('-')
        && !component.ends_with('-')
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    bytes.split(|b| is_word(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_forms_are_completed_and_full_ones_shortened() {
        for (typed, full, familiar) in [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("library/busybox", "docker.io/library/busybox", "busybox"),
            ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:80/a/b__c", "127.0.0.1:80/a/b__c", "127.0.0.1:80/a/b__c"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("Registry/app", "Registry/app", "Registry/app"),
            ("ghcr.io/x/y---z:A_b-c.d", "ghcr.io/x/y---z:A_b-c.d", "ghcr.io/x/y---z:A_b-c.d"),
        ] {
            let reference: Reference = typed.parse().unwrap_or_else(|e| panic!("{typed}: {e}"));
            assert_eq!(reference.to_string(), full, "{typed}");
            assert_eq!(reference.familiar(), familiar, "{typed}");
        }
    }

    #[test]
    fn tag_and_digest_may_stand_together() {
        let text = format!("busybox:1@sha256:{HEX}");
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.digest(), Some(Digest::of(b"")));
        assert_eq!(reference.familiar(), text);
        let untagged = reference.with_digest(Digest::of(b""));
        assert_eq!(untagged.familiar(), format!("busybox@sha256:{HEX}"));
        assert_eq!(
            "busybox".parse::<Reference>().unwrap().or_latest().familiar(),
            "busybox:latest"
        );
    }

    #[test]
    fn bad_references_get_dockers_texts() {
        let long = format!("a/{}", "b".repeat(300));
        for (typed, message) in [
            ("", "invalid reference format"),
            (":tag", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a/", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a:-x", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a..b/c", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("http://x/y", "invalid reference format"),
            ("x.y:port/z", "invalid reference format"),
            (
                "Busybox",
                "invalid reference format: repository name (library/Busybox) must be lowercase",
            ),
            ("x.io/Up:T", "invalid reference format: repository name (Up) must be lowercase"),
            (
                HEX,
                &format!(
                    "invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"
                ),
            ),
            (&long, "repository name must not be more than 255 characters"),
            ("a@sha256:abc", "invalid reference format"),
            ("a@", "invalid reference format"),
        ] {
            let error = typed.parse::<Reference>().expect_err(typed);
            assert_eq!(error.to_string(), message, "{typed}");
        }
    }

    #[test]
    fn a_whole_digest_names_an_image_not_a_repository() {
        let digest = Digest::of(b"");
        for text in [HEX.to_owned(), format!("sha256:{HEX}")] {
            assert_eq!(AnyReference::parse(&text), Ok(AnyReference::Digest(digest)));
        }
        let named = AnyReference::parse("e3b0c44298fc").unwrap();
        assert!(matches!(named, AnyReference::Named(r) if r.familiar() == "e3b0c44298fc:latest"));
    }

    fn any_reference() -> impl Strategy<Value = String> {
        let domain = prop_oneof![
            Just(String::new()),
            Just("localhost/".to_owned()),
            "[a-z][a-z0-9]{0,6}\\.[a-z]{2,3}(:[0-9]{2,5})?/",
        ];
        let component = "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
        // A dot in the first component would make it a domain.
        let path = ("[a-z0-9]{1,8}", proptest::collection::vec(component, 0..3))
            .prop_map(|(first, rest)| [vec![first], rest].concat().join("/"));
        let tag = prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"];
        let digest = prop_oneof![Just(String::new()), "@sha256:[0-9a-f]{64}"];
        (domain, path, tag, digest).prop_map(|(d, p, t, g)| format!("{d}{p}{t}{g}"))
    }

    proptest! {
        #[test]
        fn full_and_familiar_forms_read_back_as_the_same(text in any_reference()) {
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }

        #[test]
        fn no_text_makes_the_parser_panic_or_accept_what_it_cannot_print(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}

//! Proxies between this node and its registries, by the rules that Go's clients follow.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::config::host_of;
use super::error::{Error, Transport};

/// Largest answer of a proxy to `CONNECT`, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Which proxies to go through, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say it.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For registries that speak plain HTTP.
    pub http: Option<Proxy>,
    /// For all others.
    pub https: Option<Proxy>,
    /// Hosts that are reached without.
    pub exempt: Exempt,
}

/// One proxy, itself reached by plain HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// `user:password` in base64.
    credentials: Option<String>,
}

/// Hosts that are reached without a proxy. Loopback addresses always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    All,
    Network(IpNet),
    Address(IpAddr),
    /// A domain and its subdomains, or only those when it was written with a dot.
    Domain {
        name: String,
        is_only_sub: bool,
        port: Option<u16>,
    },
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

impl std::str::FromStr for Proxy {
    type Err = Error;

    /// Reads `http://user:password@host:port`; scheme, credentials and port may be left out.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Address(host_only(text).to_owned());
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(bad()),
            None => text,
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (credentials, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(STANDARD.encode(percent_decoded(user))), authority),
            None => (None, authority),
        };
        let uri: http::Uri = format!("http://{authority}").parse().map_err(|_| bad())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(80), credentials })
    }
}

impl std::str::FromStr for Exempt {
    type Err = std::convert::Infallible;

    /// Reads names, addresses and networks between commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        Ok(Self(words.map(rule).collect()))
    }
}

impl Proxies {
    /// The proxy to go through to `host`, if any.
    pub(super) fn choose(&self, is_tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if is_tls { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.exempt.covers(host, port))
    }
}

impl Exempt {
    fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        if host == "localhost" || address.is_some_and(|a| a.is_loopback()) {
            return true;
        }
        self.0.iter().any(|rule| match rule {
            Rule::All => true,
            Rule::Network(network) => address.is_some_and(|a| network.contains(&a)),
            Rule::Address(exempt) => address == Some(*exempt),
            Rule::Domain { name, is_only_sub, port: only } => {
                let is_sub =
                    host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                only.is_none_or(|only| only == port) && (is_sub || (!is_only_sub && host == *name))
            }
        })
    }
}

impl Proxy {
    /// Has the proxy connect `stream` to another host.
    pub(super) async fn tunnel(
        &self,
        mut stream: TcpStream,
        host: &str,
        port: u16,
    ) -> Result<TcpStream, Transport> {
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(credentials) = &self.credentials {
            request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
        }
        request.push_str("\r\n");
        let failed = |source: std::io::Error| Transport::Proxy(source.to_string());
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        let mut answer = Vec::new();
        // Byte by byte, since what comes after the head is the other host's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= ANSWER_BYTES_MAX {
                return Err(Transport::Proxy("endless answer".to_owned()));
            }
            answer.push(stream.read_u8().await.map_err(failed)?);
        }
        let head = String::from_utf8_lossy(&answer);
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            let reason = status.split_once(' ').map_or("", |(_, reason)| reason);
            let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(Transport::Proxy(reason));
        }
        Ok(stream)
    }

    /// The header for requests that the proxy makes itself.
    pub(super) fn authorization(&self) -> Option<String> {
        self.credentials.as_ref().map(|credentials| format!("Basic {credentials}"))
    }
}

fn rule(word: &str) -> Rule {
    if word == "*" {
        return Rule::All;
    }
    if let Ok(network) = word.parse() {
        return Rule::Network(network);
    }
    if let Ok(address) = host_of(word).parse() {
        return Rule::Address(address);
    }
    let (name, port) = match word.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()),
        None => (word, None),
    };
    let name = name.to_ascii_lowercase();
    let short = name.trim_start_matches('*').trim_start_matches('.');
    Rule::Domain { is_only_sub: short.len() < name.len(), name: short.to_owned(), port }
}

/// An address for a message, without what only its owner should see.
fn host_only(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        let escaped = (*byte == b'%').then(|| bytes.as_slice().get(..2)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                bytes.nth(1);
            }
            None => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_without_showing_their_passwords() {
        let proxy: Proxy = "http://us%40er:pass@proxy.local:3128/".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.local", 3128));
        assert_eq!(proxy.credentials.as_deref(), Some(STANDARD.encode("us@er:pass").as_str()));
        assert_eq!(format!("{proxy:?}"), "Proxy(proxy.local:3128)");
        let proxy: Proxy = "10.0.0.1".parse().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("10.0.0.1", 80));
        for bad in ["", "socks5://x", "http://", "http://user:secret@ x"] {
            let error = bad.parse::<Proxy>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn some_hosts_are_reached_directly() {
        let exempt: Exempt =
            "10.0.0.0/8, 192.168.1.5,corp.local,.sub.org,reg.io:5000".parse().unwrap();
        for (host, port, expected) in [
            ("10.2.3.4", 443, true),
            ("11.2.3.4", 443, false),
            ("192.168.1.5", 80, true),
            ("corp.local", 443, true),
            ("a.corp.local", 443, true),
            ("notcorp.local", 443, false),
            ("sub.org", 443, false),
            ("x.sub.org", 443, true),
            ("reg.io", 5000, true),
            ("reg.io", 443, false),
            ("localhost", 5000, true),
            ("127.9.9.9", 5000, true),
            ("::1", 5000, true),
        ] {
            assert_eq!(exempt.covers(host, port), expected, "{host}:{port}");
        }
        assert!("*".parse::<Exempt>().unwrap().covers("any.where", 1));
    }
}

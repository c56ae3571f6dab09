//! Which addresses a registry's name leads to, and how far each is trusted.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::error::Error;
use super::proxy::Proxies;
use crate::images::reference::DEFAULT_DOMAIN;

/// Where Docker Hub's registry is.
const HUB_HOST: &str = "registry-1.docker.io";

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Base addresses of mirrors of Docker Hub, asked in this order before the Hub itself.
    pub mirrors: Vec<String>,
    /// Hosts (`host`, `host:port`) and networks whose certificates need not be valid and that may
    /// speak plain HTTP. Loopback addresses always count as such.
    pub insecure: Vec<Insecure>,
    /// Directories of a certificate authority and client certificate for each host, as Docker's
    /// `/etc/docker/certs.d`.
    pub certs_dir: Option<PathBuf>,
    /// What stands between us and the registries.
    pub proxies: Proxies,
}

/// An entry of `--insecure-registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Insecure {
    /// `host` or `host:port`.
    Host(String),
    Network(IpNet),
}

impl std::str::FromStr for Insecure {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let text = text.strip_prefix("http://").or(text.strip_prefix("https://")).unwrap_or(text);
        let host = text.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(Error::Address(text.to_owned()));
        }
        Ok(Self::Host(host.to_owned()))
    }
}

/// One address to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme and authority without slash: `https://registry-1.docker.io`.
    pub base: String,
    /// Host and port if given, which names the directory of certificates.
    pub authority: String,
    /// Certificates are not checked.
    pub is_insecure: bool,
    /// Any failure means to try the next, and credentials are not for it.
    pub is_mirror: bool,
}

impl Config {
    /// The addresses at which to pull from `domain`, in turn.
    ///
    /// # Errors
    /// [`Error::Address`] for a mirror that is no address.
    pub fn pull_endpoints(&self, domain: &str) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        if domain == DEFAULT_DOMAIN {
            for mirror in &self.mirrors {
                endpoints.push(self.mirror(mirror)?);
            }
        }
        endpoints.extend(self.push_endpoints(domain));
        Ok(endpoints)
    }

    /// The addresses at which to push to `domain`, in turn.
    pub fn push_endpoints(&self, domain: &str) -> Vec<Endpoint> {
        let authority = if domain == DEFAULT_DOMAIN { HUB_HOST } else { domain };
        let is_insecure = self.is_insecure(authority);
        let endpoint = |scheme: &str| Endpoint {
            base: format!("{scheme}://{authority}"),
            authority: authority.to_owned(),
            is_insecure,
            is_mirror: false,
        };
        let mut endpoints = vec![endpoint("https")];
        if is_insecure {
            endpoints.push(endpoint("http"));
        }
        endpoints
    }

    fn mirror(&self, address: &str) -> Result<Endpoint, Error> {
        let bad = || Error::Address(address.to_owned());
        let base = address.trim_end_matches('/');
        let (scheme, authority) = base.split_once("://").ok_or_else(bad)?;
        if !matches!(scheme, "http" | "https")
            || authority.is_empty()
            || authority.contains(['/', '@'])
        {
            return Err(bad());
        }
        Ok(Endpoint {
            base: base.to_owned(),
            authority: authority.to_owned(),
            is_insecure: self.is_insecure(authority),
            is_mirror: true,
        })
    }

    fn is_insecure(&self, authority: &str) -> bool {
        let host = host_of(authority);
        let address = match host {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host.parse::<IpAddr>().ok(),
        };
        address.is_some_and(|a| a.is_loopback())
            || self.insecure.iter().any(|entry| match entry {
                Insecure::Host(name) => name == authority || name == host,
                Insecure::Network(network) => address.is_some_and(|a| network.contains(&a)),
            })
    }
}

/// The host of `host:port` or `[address]:port`.
pub(super) fn host_of(authority: &str) -> &str {
    if let Ok(address) = authority.parse::<SocketAddr>()
        && address.is_ipv6()
    {
        return authority[1..].split(']').next().unwrap_or_default();
    }
    let authority = authority.trim_start_matches('[').trim_end_matches(']');
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|e| e.base.as_str()).collect()
    }

    #[test]
    fn the_hub_is_asked_after_its_mirrors() {
        let config =
            Config { mirrors: vec!["https://mirror.example/".to_owned()], ..Config::default() };
        let endpoints = config.pull_endpoints("docker.io").unwrap();
        assert_eq!(bases(&endpoints), ["https://mirror.example", "https://registry-1.docker.io"]);
        assert!(endpoints[0].is_mirror && !endpoints[1].is_mirror);
        assert_eq!(bases(&config.push_endpoints("docker.io")), ["https://registry-1.docker.io"]);
        assert_eq!(bases(&config.pull_endpoints("ghcr.io").unwrap()), ["https://ghcr.io"]);
        for bad in ["mirror.example", "ftp://x", "https://x/path", "https://user@x"] {
            let config = Config { mirrors: vec![bad.to_owned()], ..Config::default() };
            assert!(config.pull_endpoints("docker.io").is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_and_those_named() {
        let insecure = ["reg.local:5000", "10.0.0.0/8", "bare.local"].map(|t| t.parse().unwrap());
        let config = Config { insecure: insecure.to_vec(), ..Config::default() };
        for (domain, expected) in [
            ("localhost:5000", true),
            ("127.0.0.5:80", true),
            ("[::1]:5000", true),
            ("reg.local:5000", true),
            ("reg.local:5001", false),
            ("bare.local:1", true),
            ("10.1.2.3:5000", true),
            ("11.1.2.3:5000", false),
            ("localhost.example", false),
        ] {
            let endpoints = config.push_endpoints(domain);
            assert_eq!(endpoints.len() == 2, expected, "{domain}");
            assert_eq!(endpoints[0].is_insecure, expected, "{domain}");
        }
        assert!("a b".parse::<Insecure>().is_err());
    }
}

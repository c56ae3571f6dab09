//! `docker login`: whether a registry knows a user.

use http::{HeaderMap, Method};

use super::auth::Credentials;
use super::error::Error;
use super::session::{Access, Registry, Session};
use crate::images::reference::DEFAULT_DOMAIN;

/// What `docker login` has called Docker Hub since its first version.
const HUB_ADDRESS: &str = "https://index.docker.io/v1/";

impl Registry {
    /// Asks the registry that the credentials name whether it takes them.
    ///
    /// # Errors
    /// Its refusal, in its own words.
    pub async fn login(&self, credentials: &Credentials) -> Result<(), Error> {
        let domain = domain_of(credentials.server());
        let mut last = Error::Address(domain.clone());
        for session in self.sessions(&domain, "", Access::Push, credentials)? {
            match session.check().await {
                Ok(()) => {
                    self.remember(&session);
                    return Ok(());
                }
                Err(error) if error.is_unreachable() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

impl Session {
    async fn check(&self) -> Result<(), Error> {
        let url = format!("{}/v2/", self.endpoint.base);
        self.get(Method::GET, url, HeaderMap::new()).await.map(drop)
    }
}

/// Host and port of what a client calls a registry.
fn domain_of(server: &str) -> String {
    if server.is_empty() || server == HUB_ADDRESS {
        return DEFAULT_DOMAIN.to_owned();
    }
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let domain = rest.split('/').next().unwrap_or_default();
    match domain {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN.to_owned(),
        domain => domain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::domain_of;

    #[test]
    fn a_registry_has_several_names() {
        for (server, domain) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("http://localhost:5000/v2/", "localhost:5000"),
            ("registry.example", "registry.example"),
        ] {
            assert_eq!(domain_of(server), domain);
        }
    }
}

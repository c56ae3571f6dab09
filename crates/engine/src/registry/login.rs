//! `docker login`: whether a registry knows a user.

use http::{HeaderMap, Method, StatusCode};

use super::auth::Credentials;
use super::error::Error;
use super::session::{Access, Call, Registry, Session, no_body, set_user_agent};
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
    /// Finds out whether there is a server at this address at all.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let url = format!("{}/v2/", self.endpoint.base);
        let mut request = http::Request::get(&url)
            .body(no_body())
            .map_err(|_| Error::Address(self.endpoint.base.clone()))?;
        set_user_agent(&mut request);
        self.http.send(request).await.map(drop)
    }

    async fn check(&self) -> Result<(), Error> {
        let url = format!("{}/v2/", self.endpoint.base);
        let headers = HeaderMap::new();
        let call = Call { method: Method::GET, url: url.clone(), headers, body: &no_body };
        match self.call(&call).await?.status() {
            StatusCode::OK => Ok(()),
            status => Err(Error::Login { url, status }),
        }
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

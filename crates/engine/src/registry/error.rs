//! Failures of a registry, in the words that Docker's daemon uses for them.

use std::io;
use std::path::PathBuf;

use http::{Method, StatusCode};
use serde::Deserialize;

use crate::ErrorKind;
use crate::images::digest::Digest;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry could not be spoken to.
    #[error("{} \"{url}\": {source}", verb(.method))]
    Transport {
        method: Method,
        url: String,
        #[source]
        source: Transport,
    },
    /// The registry wants a password and none was given.
    #[error("{} \"{url}\": no basic auth credentials", verb(.method))]
    NoCredentials { method: Method, url: String },
    /// The authorization server did not give a token.
    #[error("{} \"{url}\": {source}", verb(.method))]
    Token {
        method: Method,
        url: String,
        #[source]
        source: Box<Error>,
    },
    /// The registry does not take the credentials.
    #[error("login attempt to {url} failed with status: {status}")]
    Login { url: String, status: StatusCode },
    /// The registry's own error, by the code it gave.
    #[error("{}: {message}", code_text(.code))]
    Api { status: StatusCode, code: String, message: String },
    /// An error without a body that says why.
    #[error("received unexpected HTTP status: {status}")]
    Status { status: StatusCode },
    #[error(
        "pull access denied for {name}, repository does not exist or may require 'docker login': {source}"
    )]
    PullDenied {
        name: String,
        #[source]
        source: Box<Error>,
    },
    #[error("manifest for {reference} not found: {source}")]
    ManifestNotFound {
        reference: String,
        #[source]
        source: Box<Error>,
    },
    #[error("repository {name} not found: {source}")]
    RepositoryNotFound {
        name: String,
        #[source]
        source: Box<Error>,
    },
    #[error("manifest verification failed for digest {0}")]
    ManifestVerification(Digest),
    #[error("registry answer: {0}")]
    BadAnswer(&'static str),
    #[error("registry answer has more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("invalid registry address {0:?}")]
    Address(String),
    #[error("invalid credentials: {0}")]
    Credentials(&'static str),
    #[error("read certificate {path}")]
    Certificate {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("use certificate {path}")]
    UseCertificate {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    /// Reading or writing a blob of ours.
    #[error("{what}: {source}")]
    Local {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Failures beneath HTTP.
#[derive(Debug, thiserror::Error)]
pub enum Transport {
    #[error("dial tcp: lookup {host}: no such host")]
    Lookup { host: String },
    /// No route leads to the name servers.
    #[error("dial tcp: lookup {host} on {server}: dial udp {server}: connect: {}", go_text(.source))]
    NameServer {
        host: String,
        server: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("dial tcp {address}: connect: {}", go_text(.source))]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("dial tcp {address}: i/o timeout")]
    ConnectTimeout { address: String },
    /// A server that does not speak TLS.
    #[error("http: server gave HTTP response to HTTPS client")]
    NotTls,
    #[error("tls: {0}")]
    Tls(#[source] io::Error),
    #[error("net/http: request canceled (no answer for {seconds} seconds)")]
    Stalled { seconds: u64 },
    /// The proxy did not reach the registry.
    #[error("proxyconnect tcp: {0}")]
    Proxy(String),
    #[error("too many redirects")]
    Redirects,
    #[error("{0}")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What registries send with an error.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    errors: Vec<ApiError>,
    /// Some token servers send only this, as text or as a list.
    #[serde(default)]
    details: Option<serde_json::Value>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: Option<String>,
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PullDenied { .. }
            | Self::ManifestNotFound { .. }
            | Self::RepositoryNotFound { .. } => ErrorKind::NotFound,
            Self::Api { status, .. } | Self::Status { status } | Self::Login { status, .. } => {
                match *status {
                    StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
                    StatusCode::FORBIDDEN => ErrorKind::Forbidden,
                    StatusCode::NOT_FOUND => ErrorKind::NotFound,
                    _ => ErrorKind::Internal,
                }
            }
            Self::Token { source, .. } => source.kind(),
            Self::Address(_) | Self::Credentials(_) => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        }
    }

    /// Whether trying again may help.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !matches!(
                source,
                Transport::Lookup { .. }
                    | Transport::NameServer { .. }
                    | Transport::NotTls
                    | Transport::Tls(_)
                    | Transport::Redirects
            ),
            Self::Api { status, .. } | Self::Status { status } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Token { source, .. } => source.is_temporary(),
            _ => false,
        }
    }

    /// A transfer that ended too early.
    pub(crate) fn broken(url: String) -> Self {
        let source = Transport::Http("unexpected EOF".into());
        Self::Transport { method: Method::GET, url, source }
    }

    /// Whether there was no conversation at this address, so that another may do better.
    pub(crate) fn is_unreachable(&self) -> bool {
        let Self::Transport { source, .. } = self else { return false };
        !matches!(source, Transport::Stalled { .. } | Transport::Redirects | Transport::Http(_))
    }

    /// The registry's code, such as `MANIFEST_UNKNOWN`.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Api { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Says which image could not be pulled, where Docker does.
    pub(crate) fn for_pull(self, reference: &crate::images::reference::Reference) -> Self {
        let name = reference.familiar_name();
        match self.code() {
            Some("DENIED") => Self::PullDenied { name, source: Box::new(self) },
            Some("NAME_UNKNOWN") => Self::RepositoryNotFound { name, source: Box::new(self) },
            Some("MANIFEST_UNKNOWN") => {
                let reference = reference.familiar();
                Self::ManifestNotFound { reference, source: Box::new(self) }
            }
            _ => self,
        }
    }

    /// The error that an answer's status and body make. `bearer_error` is the `error` of its
    /// bearer challenge, which says more than the body.
    pub(super) fn from_answer(status: StatusCode, bearer_error: Option<&str>, body: &[u8]) -> Self {
        match bearer_error {
            Some("insufficient_scope") => return Self::of_code(status, "DENIED", None),
            Some("invalid_token") => return Self::of_code(status, "UNAUTHORIZED", None),
            _ => {}
        }
        let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
        if let Some(envelope) = envelope {
            if let Some(first) = envelope.errors.into_iter().next() {
                return Self::of_code(status, &first.code, first.message);
            }
            let detail = match envelope.details {
                Some(serde_json::Value::String(text)) => Some(text),
                _ => envelope.message,
            };
            if let Some(message) = detail {
                let code =
                    if status == StatusCode::UNAUTHORIZED { "UNAUTHORIZED" } else { "UNKNOWN" };
                return Self::of_code(status, code, Some(message));
            }
        }
        match status {
            StatusCode::UNAUTHORIZED => Self::of_code(status, "UNAUTHORIZED", None),
            StatusCode::FORBIDDEN => Self::of_code(status, "DENIED", None),
            StatusCode::TOO_MANY_REQUESTS => Self::of_code(status, "TOOMANYREQUESTS", None),
            status => Self::Status { status },
        }
    }

    fn of_code(status: StatusCode, code: &str, message: Option<String>) -> Self {
        let message = message.filter(|m| !m.is_empty()).unwrap_or_else(|| {
            match code {
                "DENIED" => "requested access to the resource is denied",
                "UNAUTHORIZED" => "authentication required",
                "MANIFEST_UNKNOWN" => "manifest unknown",
                "NAME_UNKNOWN" => "repository name not known to registry",
                "BLOB_UNKNOWN" => "blob unknown to registry",
                "TOOMANYREQUESTS" => "too many requests",
                _ => "unknown error",
            }
            .to_owned()
        });
        Self::Api { status, code: code.to_owned(), message: printable(&message) }
    }
}

/// Keeps what a server says from reaching a terminal as control codes, and short.
fn printable(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(1024).collect()
}

/// `MANIFEST_UNKNOWN` as `manifest unknown`.
fn code_text(code: &str) -> String {
    code.to_ascii_lowercase().replace('_', " ")
}

/// `GET` as `Get`, which is how Go's client begins its errors.
fn verb(method: &Method) -> String {
    let lower = method.as_str().to_ascii_lowercase();
    let mut chars = lower.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// `Connection refused (os error 111)` as `connection refused`.
fn go_text(error: &io::Error) -> String {
    let text = error.to_string().to_ascii_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_dockers_texts() {
        for (status, bearer, body, message) in [
            (
                404,
                None,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
                "manifest unknown: manifest unknown",
            ),
            (
                404,
                None,
                r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
                "name unknown: repository name not known to registry",
            ),
            (
                401,
                Some("insufficient_scope"),
                "",
                "denied: requested access to the resource is denied",
            ),
            (401, None, "", "unauthorized: authentication required"),
            (
                401,
                None,
                r#"{"details":"incorrect username or password"}"#,
                "unauthorized: incorrect username or password",
            ),
            (429, None, "<html>", "toomanyrequests: too many requests"),
            (500, None, "oops", "received unexpected HTTP status: 500 Internal Server Error"),
            (
                403,
                None,
                "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"\\u001b[31mno\"}]}",
                "denied: [31mno",
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = Error::from_answer(status, bearer, body.as_bytes());
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_pull_says_which_image() {
        let reference = "app:1".parse().unwrap();
        let of = |code: &str| {
            let error = Error::of_code(StatusCode::NOT_FOUND, code, None).for_pull(&reference);
            (error.to_string(), error.kind())
        };
        assert_eq!(
            of("MANIFEST_UNKNOWN"),
            (
                "manifest for app:1 not found: manifest unknown: manifest unknown".to_owned(),
                ErrorKind::NotFound
            )
        );
        assert_eq!(of("DENIED"), ("pull access denied for app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied".to_owned(), ErrorKind::NotFound));
    }

    #[test]
    fn transport_errors_read_as_gos() {
        let source = Transport::Connect {
            address: "127.0.0.1:5000".to_owned(),
            source: io::Error::from_raw_os_error(111),
        };
        let url = "https://localhost:5000/v2/".to_owned();
        let error = Error::Transport { method: Method::GET, url, source };
        assert_eq!(
            error.to_string(),
            "Get \"https://localhost:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused"
        );
    }
}

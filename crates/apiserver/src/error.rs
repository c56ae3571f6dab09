//! Errors on their way to a client: one status and one message, as `{"message": "…"}`.
//!
//! Every crate's error becomes an [`ApiError`] here and nowhere else, so that one file says which kind of
//! failure is which HTTP status.

use std::io;
use std::path::PathBuf;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is in use by another daemon")]
    SocketInUse { path: PathBuf },
    #[error("read TLS file {path}")]
    TlsFile {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("set up the verifier of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// Docker's words: scripts match on them.
    pub message: String,
}

impl ApiError {
    /// An error with a status of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 501.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 500, with all its causes in one line.
    pub fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{:#}", error.into()))
    }

    /// The answer to a route nobody serves.
    pub(crate) fn page_not_found() -> Self {
        Self::not_found("page not found")
    }
}

/// gRPC codes as Docker maps them to statuses.
impl From<manager::Error> for ApiError {
    fn from(error: manager::Error) -> Self {
        let status = match error.code {
            manager::Code::InvalidArgument | manager::Code::FailedPrecondition => {
                StatusCode::BAD_REQUEST
            }
            manager::Code::NotFound => StatusCode::NOT_FOUND,
            manager::Code::PermissionDenied => StatusCode::FORBIDDEN,
            manager::Code::AlreadyExists => StatusCode::CONFLICT,
            manager::Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            manager::Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            manager::Code::Unknown | manager::Code::Internal | manager::Code::NotLeader => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, error.to_string())
    }
}

/// A value in a request that means nothing.
impl From<docker_types::convert::Error> for ApiError {
    fn from(error: docker_types::convert::Error) -> Self {
        Self::bad_request(format!("rpc error: code = InvalidArgument desc = {error}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        (self.status, Json(json!({ "message": self.message }))).into_response()
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        Self { status: status_of(error.kind()), message: chain(&error) }
    }
}

impl From<engine::images::Error> for ApiError {
    fn from(error: engine::images::Error) -> Self {
        Self { status: status_of(error.kind()), message: error.to_string() }
    }
}

fn status_of(kind: engine::ErrorKind) -> StatusCode {
    match kind {
        engine::ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        engine::ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        engine::ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        engine::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        engine::ErrorKind::Conflict => StatusCode::CONFLICT,
        engine::ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        engine::ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        engine::ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        engine::ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The error and what caused it, as Docker joins them: `outer: inner: innermost`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Transparent wrappers repeat their source's text.
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}

//! What can go wrong in the engine, in Docker's words where clients match on them.

/// The kind of a failure, which decides an HTTP status and whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// Credentials are missing or refused.
    Unauthorized,
    /// The request is right, but not allowed.
    Forbidden,
    NotFound,
    /// The object's state does not allow it.
    Conflict,
    /// The object is already as requested.
    NotModified,
    /// We do not offer it.
    Unsupported,
    /// Not now.
    Unavailable,
    Internal,
}

/// An engine failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("No such container: {name}")]
    NoSuchContainer { name: String },
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer { .. } => ErrorKind::NotFound,
        }
    }
}

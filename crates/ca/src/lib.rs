//! The cluster's authority: its root certificate and the tokens that admit nodes.

mod base36;
mod root;
mod token;

pub use root::{generate, tls_info};
pub use token::{JoinToken, new_secret};

/// What the authority could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make the root certificate")]
    Generate(#[from] rcgen::Error),
    #[error("read the root certificate")]
    Parse,
    /// Docker's words.
    #[error("invalid join token")]
    Token,
}

//! The cluster's authority: its root certificate, the tokens that admit nodes, the key that locks its managers.

mod base36;
mod certificate;
mod root;
mod token;
mod unlock;

pub use certificate::{NodeCertificate, Subject, new_request, server_name, sign};
pub use root::{digest_of, generate, node_tls_info, tls_info};
pub use token::{JoinToken, new_secret};
pub use unlock::{new_unlock_key, open, seal, unlock_key_from_text, unlock_key_text};

/// What the authority could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make a certificate")]
    Generate(#[from] rcgen::Error),
    #[error("not a certificate of a swarm")]
    Parse,
    #[error("not a certificate request that is signed with its own key")]
    Request,
    /// Docker's words.
    #[error("invalid join token")]
    Token,
    /// Docker's words.
    #[error("invalid key string")]
    UnlockKey,
    #[error("locked with another key, or damaged")]
    Locked,
}

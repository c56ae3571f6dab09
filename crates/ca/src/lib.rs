//! The cluster's authority: its root certificate and the tokens that admit nodes.

mod base36;
mod certificate;
mod root;
mod token;

pub use certificate::{NodeCertificate, Subject, new_request, server_name, sign};
pub use root::{digest_of, generate, node_tls_info, tls_info};
pub use token::{JoinToken, new_secret};

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
}

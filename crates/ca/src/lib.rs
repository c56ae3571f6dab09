//! The cluster's authority: its root certificate, the tokens that admit nodes, the key that locks its managers.

mod backup_key;
mod base36;
mod certificate;
mod root;
mod rotation;
mod token;
mod unlock;

pub use backup_key::{backup_key_from_text, backup_key_text, new_backup_key};
pub use certificate::{NodeCertificate, Subject, check_issued, new_request, server_name, sign};
pub use root::{digest_of, generate, issuer_digest, node_tls_info, of_external, pinned, tls_info};
pub use rotation::{Change, change, externals_for, finish, is_of_newest, plan};
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
    #[error("if a signing CA key is provided, the signing CA cert must also be provided")]
    KeyWithoutCertificate,
    /// Docker's words, as far as the colon; so are those of the next ones.
    #[error("invalid root certificates: {0}")]
    NotARoot(&'static str),
    #[error("the desired CA certificate cannot contain multiple certificates")]
    ManyRoots,
    #[error("malformed private key: it is no PEM key of a kind that is known here")]
    NotAKey,
    #[error("certificate key mismatch")]
    OtherKey,
    #[error("error while validating Root CA Certificate: {0}")]
    RootNotValid(&'static str),
    #[error("CA certificate expires too soon")]
    RootEndsSoon,
    /// Docker's words.
    #[error(
        "there must be at least one valid, reachable external CA corresponding to the {0} CA certificate"
    )]
    NoExternal(&'static str),
    #[error(
        "an external CA has the key of the present root, which would have to sign the next one: rotate back with --ca-cert and --ca-key of the present root first"
    )]
    KeyElsewhere,
    #[error("the external CA's certificate {0}")]
    BadIssue(&'static str),
    /// Docker's words.
    #[error("invalid key string")]
    UnlockKey,
    #[error("not the key of a backup: it begins SKEPBACKUP-1-")]
    BackupKey,
    #[error("locked with another key, or damaged")]
    Locked,
}

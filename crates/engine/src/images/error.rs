//! What can go wrong with images, in Docker's words where scripts depend on them.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::{archive, change, platform, reference, unpack};
use crate::{ErrorKind, db, registry};

/// Why something with an image did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("reference does not exist")]
    NoReference,
    #[error(transparent)]
    Reference(#[from] reference::ParseError),
    #[error(transparent)]
    Platform(#[from] platform::ParsePlatformError),
    #[error(transparent)]
    Change(#[from] change::ParseError),
    #[error("refusing to create a tag with a digest reference")]
    TagWithDigest,
    #[error("refusing to create an ambiguous tag using digest algorithm as name")]
    TagLikeDigest,
    /// A removal that would take an image from somebody; the whole text of the reason.
    #[error("conflict: unable to {0}")]
    Conflict(String),
    #[error("invalid filter '{0}'")]
    Filter(String),
    #[error("invalid filter '{key}={value}'")]
    FilterValue { key: &'static str, value: String },
    #[error("no such container root file system: {0}")]
    NoRootfs(String),
    /// Too many layers for overlayfs.
    #[error("max depth exceeded")]
    TooDeep,
    /// Content that is not what its digest says.
    #[error("{what} verification failed for digest {expected}")]
    Verification { what: &'static str, expected: Digest },
    /// A layer that does not uncompress to what the configuration lists.
    #[error("layer {found} does not match the diff id {expected} of the image's configuration")]
    DiffId { expected: Digest, found: Digest },
    #[error("invalid image: {0}")]
    InvalidImage(&'static str),
    #[error("invalid {what}: {source}")]
    InvalidJson {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} is larger than {max} bytes")]
    TooLarge { what: &'static str, max: u64 },
    #[error("more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    #[error("send archive: {0}")]
    Send(#[source] io::Error),
    /// An image for other machines.
    #[error(
        "image with reference {reference} was found but does not provide the specified platform ({platform})"
    )]
    OtherPlatform { reference: String, platform: String },
    #[error("no matching manifest for {platform} in the manifest list entries")]
    NoPlatform { platform: String },
    #[error("unsupported media type {0:?}: this is no image")]
    NotAnImage(String),
    #[error(
        "{0} is in the form of Docker's manifest schema 1, which is not supported; its author can push it anew in a current form"
    )]
    Schema1(String),
    #[error("An image does not exist locally with the tag: {0}")]
    NoSuchRepository(String),
    #[error("tag does not exist: {0}")]
    NoSuchTag(String),
    #[error("cannot push a digest reference")]
    PushDigest,
    #[error("archive: {0}")]
    Archive(#[from] archive::Error),
    #[error("{0}")]
    Unpack(#[from] unpack::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Db(#[from] db::Error),
    #[error(
        "mount overlay {path}: {source}: the data root must lie on a file system that overlayfs can write to, such as ext4, xfs or btrfs"
    )]
    Overlay {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Whoever asked has gone away.
    #[error("context canceled")]
    Cancelled,
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchImage(_)
            | Self::NoReference
            | Self::NoSuchRepository(_)
            | Self::NoSuchTag(_)
            | Self::NoRootfs(_)
            | Self::NoPlatform { .. }
            | Self::OtherPlatform { .. } => ErrorKind::NotFound,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Reference(_)
            | Self::Platform(_)
            | Self::Change(_)
            | Self::TagWithDigest
            | Self::TagLikeDigest
            | Self::TooMany { .. }
            | Self::PushDigest
            | Self::Filter(_)
            | Self::FilterValue { .. } => ErrorKind::Invalid,
            Self::Registry(error) => error.kind(),
            _ => ErrorKind::Internal,
        }
    }
}

/// Adds what was done to which file, for `map_err`.
pub(crate) fn io_error<E: Into<io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    move |source| Error::Io { what, path: path.to_owned(), source: source.into() }
}

/// Names the document that did not parse, for `map_err`.
pub(crate) fn json_error(what: &'static str) -> impl FnOnce(serde_json::Error) -> Error {
    move |source| Error::InvalidJson { what, source }
}

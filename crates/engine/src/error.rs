//! What can go wrong in the engine, in Docker's words where clients match on them.

use std::io;

use crate::containers::Invalid;

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
    #[error("multiple IDs found with provided prefix: {prefix}")]
    AmbiguousId { prefix: String },
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken { name: String, id: String },
    #[error("Renaming a container with the same name as its current name")]
    SameName,
    #[error(transparent)]
    Invalid(#[from] Invalid),

    #[error("container {id} is not running")]
    NotRunning { id: String },
    #[error("cannot kill container: {name}: container {id} is not running")]
    KillNotRunning { name: String, id: String },
    #[error("container {id} is restarting, wait until the container is running")]
    Restarting { id: String },
    #[error("container {id} is paused, unpause the container before exec")]
    ExecPaused { id: String },
    #[error("container {id} is paused, unpause the container before stopping or killing")]
    TopPaused { id: String },
    #[error("cannot start a paused container, try unpause instead")]
    StartPaused,
    #[error("container is marked for removal and cannot be started")]
    StartRemoving,
    #[error("container {id} is paused, unpause the container before attach")]
    AttachPaused { id: String },
    #[error("container {id} is already paused")]
    AlreadyPaused { id: String },
    #[error("Container {id} is not paused")]
    NotPaused { id: String },
    #[error("container {id} is marked for removal and cannot be {action}")]
    Removing { id: String, action: &'static str },
    #[error("removal of container {id} is already in progress")]
    RemovalInProgress { id: String },
    #[error(
        "cannot remove container \"{name}\": container is {state}: stop the container before removing or force remove"
    )]
    RemoveRunning { name: String, state: &'static str },
    #[error("cannot remove container \"{name}\": container is paused and must be unpaused first")]
    RemovePaused { name: String },
    #[error("container is already started")]
    AlreadyStarted,
    #[error("container is already stopped")]
    AlreadyStopped,
    #[error("cannot join network of a non running container: {id}")]
    JoinNotRunning { id: String },
    #[error("cannot join {namespace} of container {id}: it is not running")]
    JoinNamespace { namespace: &'static str, id: String },

    #[error("tried to kill container {id}, but did not receive an exit event")]
    Unkillable { id: String },
    #[error("container {id}: {source}")]
    Shim {
        id: String,
        #[source]
        source: shim::client::Error,
    },
    #[error("container {id} has as many clients attached as it may have")]
    AttachmentsFull { id: String },

    #[error("No such exec instance: {id}")]
    NoSuchExec { id: String },
    #[error("exec command {id} is already running")]
    ExecRunning { id: String },
    #[error("exec command has already run")]
    ExecDone,
    #[error("no exec process is running in {id}")]
    ExecNotRunning { id: String },
    #[error("container {id} has as many exec instances as it may have")]
    ExecsFull { id: String },

    #[error("get {name}: no such volume")]
    NoSuchVolume { name: String },
    #[error("remove {name}: volume is in use - [{users}]")]
    VolumeInUse { name: String, users: String },
    #[error(
        "a volume named {name} already exists with the {driver} driver: volume name must be unique"
    )]
    VolumeDriver { name: String, driver: String },
    #[error("error looking up volume plugin {driver}: plugin \"{driver}\" not found")]
    NoSuchVolumeDriver { driver: String },
    #[error("mount volume {name}")]
    VolumeMount {
        name: String,
        #[source]
        source: io::Error,
    },

    #[error(transparent)]
    Image(#[from] crate::images::Error),
    #[error(transparent)]
    Network(#[from] crate::networks::Refusal),
    #[error("configured logging driver does not support reading")]
    LogsUnreadable,
    #[error("Could not find the file {path} in container {id}")]
    NoSuchPath { path: String, id: String },
    #[error("container rootfs is marked read-only")]
    ReadOnlyRootfs,
    #[error("mounted volume is marked read-only")]
    ReadOnlyVolume,
    #[error("extraction point is not a directory")]
    ExtractNotDirectory,
    #[error("unpack the archive: {what}")]
    Archive { what: String },

    /// The OCI runtime's or the kernel's refusal to start a process, in its own words.
    #[error(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: unable to start container process: {reason}: unknown"
    )]
    Start { reason: String },
    #[error(
        "OCI runtime exec failed: exec failed: unable to start container process: {reason}: unknown"
    )]
    ExecStart { reason: String },
    #[error("failed to set up container networking: {source}")]
    NetworkSetup {
        #[source]
        source: network::Error,
    },
    #[error("driver failed programming external connectivity on endpoint {name} ({id}): {source}")]
    PublishPorts {
        name: String,
        id: String,
        #[source]
        source: network::Error,
    },
    #[error(transparent)]
    Cgroups(runtime::Error),
    #[error(transparent)]
    Database(#[from] crate::db::Error),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("decode {what}")]
    Decode {
        what: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer { .. }
            | Self::NoSuchExec { .. }
            | Self::NoSuchVolume { .. }
            | Self::NoSuchVolumeDriver { .. }
            | Self::NoSuchPath { .. } => ErrorKind::NotFound,
            Self::AmbiguousId { .. }
            | Self::SameName
            | Self::Invalid(_)
            | Self::Archive { .. }
            | Self::ExtractNotDirectory => ErrorKind::Invalid,
            Self::Start { reason } | Self::ExecStart { reason } if is_users_fault(reason) => {
                ErrorKind::Invalid
            }
            Self::NameTaken { .. }
            | Self::NotRunning { .. }
            | Self::KillNotRunning { .. }
            | Self::Restarting { .. }
            | Self::ExecPaused { .. }
            | Self::AttachPaused { .. }
            | Self::TopPaused { .. }
            | Self::StartPaused
            | Self::StartRemoving
            | Self::AlreadyPaused { .. }
            | Self::Removing { .. }
            | Self::RemovalInProgress { .. }
            | Self::RemoveRunning { .. }
            | Self::RemovePaused { .. }
            | Self::JoinNotRunning { .. }
            | Self::JoinNamespace { .. }
            | Self::ExecRunning { .. }
            | Self::ExecDone
            | Self::ExecNotRunning { .. }
            | Self::ExecsFull { .. }
            | Self::AttachmentsFull { .. }
            | Self::VolumeInUse { .. }
            | Self::VolumeDriver { .. } => ErrorKind::Conflict,
            Self::AlreadyStarted | Self::AlreadyStopped => ErrorKind::NotModified,
            Self::ReadOnlyRootfs | Self::ReadOnlyVolume => ErrorKind::Forbidden,
            Self::LogsUnreadable => ErrorKind::Unsupported,
            Self::Image(error) => error.kind(),
            Self::Network(refusal) => refusal.kind(),
            Self::NetworkSetup {
                source: network::Error::AddressTaken { .. } | network::Error::NoAddressLeft { .. },
            } => ErrorKind::Forbidden,
            Self::NetworkSetup { source: network::Error::AddressOutside { .. } } => {
                ErrorKind::Invalid
            }
            Self::NotPaused { .. }
            | Self::Unkillable { .. }
            | Self::Shim { .. }
            | Self::VolumeMount { .. }
            | Self::Start { .. }
            | Self::ExecStart { .. }
            | Self::NetworkSetup { .. }
            | Self::PublishPorts { .. }
            | Self::Cgroups(_)
            | Self::Database(_)
            | Self::Io { .. }
            | Self::Decode { .. } => ErrorKind::Internal,
        }
    }

    /// The exit code Docker records for a process that could not be started: 127 for a command that is
    /// not there, 126 for one that may not be run, 128 for all else.
    pub fn start_exit_code(&self) -> i64 {
        match self {
            Self::Start { reason } | Self::ExecStart { reason } if is_missing(reason) => 127,
            Self::Start { reason } | Self::ExecStart { reason } if is_forbidden(reason) => 126,
            _ => 128,
        }
    }
}

fn is_users_fault(reason: &str) -> bool {
    is_missing(reason) || is_forbidden(reason)
}

fn is_missing(reason: &str) -> bool {
    ["executable file not found", "no such file or directory", "not a directory"]
        .iter()
        .any(|text| reason.to_ascii_lowercase().contains(text))
}

fn is_forbidden(reason: &str) -> bool {
    ["permission denied", "is a directory"]
        .iter()
        .any(|text| reason.to_ascii_lowercase().contains(text))
}

/// Names what was attempted when a system call fails.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}

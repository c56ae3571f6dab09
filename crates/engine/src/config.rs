//! How an engine is set up. Values only: the daemon reads flags and files, the engine does not.

use std::collections::BTreeMap;
use std::path::PathBuf;

use docker_types::container::{LogConfig, Ulimit};

/// What an engine needs to know when it opens.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot, such as `/var/lib/skep`.
    pub data_root: PathBuf,
    /// What does not, such as `/run/skep`: sockets of shims, bundles.
    pub exec_root: PathBuf,
    /// The binary that becomes a shim when its first argument is `shim`: ourselves.
    pub program: PathBuf,
    /// Under which containers' cgroups are made, such as `/skep`.
    pub cgroup_parent: String,
    /// `native`, or a name among `runtimes`.
    pub default_runtime: String,
    /// Limits of containers that name none of their own.
    pub default_ulimits: Vec<Ulimit>,
    /// OCI runtime binaries by name.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Logging of containers that ask for none in particular.
    pub log: LogConfig,
    /// `key=value`, shown in `info` and to the scheduler.
    pub labels: Vec<String>,
    /// The product's version.
    pub version: String,
    pub debug: bool,
    pub images: crate::images::Config,
    /// The local network's names; see [`network::Config`].
    pub network: network::Config,
}

//! The files a bundle directory holds: what the daemon asks for, and what the shim leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// OCI specification, written by the daemon.
pub const SPEC_FILE: &str = "config.json";
/// [`Config`], written by the daemon.
pub const CONFIG_FILE: &str = "shim.json";
/// Control socket, made by the shim.
pub const SOCKET_FILE: &str = "shim.sock";
/// [`StateRecord`], written by the shim when the container runs.
pub const STATE_FILE: &str = "state.json";
/// [`ExitRecord`], written by the shim when the container has ended or could not start.
pub const EXIT_FILE: &str = "exit.json";

/// What the shim shall do beside the specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The container's id: names it to external runtimes.
    pub id: String,
    /// How it is run.
    pub runtime: RuntimeChoice,
    /// Where its output goes.
    pub log: LogConfig,
    /// Whether its input stays open for attached clients; otherwise it is empty.
    pub open_stdin: bool,
    /// Whether the first client's end of input ends the container's.
    pub stdin_once: bool,
    /// A program to run as process 1, which reaps orphans and passes signals on. It is this very
    /// binary, shown in the container as `/sbin/docker-init`.
    pub init: Option<PathBuf>,
    /// A cgroup path (as `/skep/shims`) the shim moves itself to, so that whoever stops the
    /// daemon's own group leaves the shim alone.
    pub shim_cgroup: Option<String>,
    /// Score of the shim for the kernel's out-of-memory killer.
    pub oom_score_adj: Option<i32>,
}

/// Which runtime runs the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeChoice {
    /// The built-in one.
    #[default]
    Native,
    /// An OCI runtime binary.
    External {
        /// The binary.
        program: PathBuf,
        /// Directory for the runtime's own state.
        root: PathBuf,
    },
}

/// Where output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Form of the log.
    pub driver: LogDriver,
    /// The file; its rotated predecessors are `PATH.1`, `PATH.2` and so on.
    pub path: PathBuf,
    /// A file of at least this many bytes is rotated away; absent means never.
    pub max_size: Option<u64>,
    /// Files kept, the current one included; zero counts as one.
    pub max_file: u32,
    /// Labels and variables that go into every json-file record.
    pub attrs: BTreeMap<String, String>,
}

/// Form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// One JSON object per line, Docker's default.
    JsonFile,
    /// Length-framed protobuf records, Docker's `local`.
    Local,
    /// Nothing is kept.
    #[default]
    None,
}

/// The running container, for a daemon that comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateRecord {
    /// Process id of the container's first process.
    pub pid: i32,
    /// Its start time in clock ticks since boot, which tells it from a later process of that id.
    pub pid_start_ticks: u64,
    /// Process id of the shim.
    pub shim_pid: i32,
    /// Nanoseconds since 1970 when the container started.
    pub started_at_ns: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// What the host did not grant at start.
    pub notes: Vec<String>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitRecord {
    /// Exit code; 128 plus the signal's number when a signal ended it.
    pub exit_code: i32,
    /// Whether the kernel has killed a process of it for want of memory.
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub exited_at_ns: u64,
    /// Why it could not start; empty when it did.
    pub error: String,
    /// Process id it had; zero when it never ran.
    pub pid: i32,
    /// Nanoseconds since 1970 when it started; zero when it never ran.
    pub started_at_ns: u64,
}

/// Writes `value` so that a reader sees all of it or nothing.
///
/// # Errors
/// Those of the filesystem.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Reads a file of [`write_json`]; none when it is not there.
///
/// # Errors
/// Those of the filesystem, and [`io::ErrorKind::InvalidData`] for a file of another kind.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

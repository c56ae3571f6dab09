//! A container as it lies on disk: `container.json` (what was asked for) and `state.json` (what became of it).
//!
//! Both are replaced by rename, so a killed daemon leaves the old or the new one whole. They are not synced
//! one by one, since that would be most of a start's time: a moment later one `syncfs` covers them all. Only a power failure within
//! that moment can lose a change, and it ends every container anyway.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use docker_types::container::{ContainerConfig, HostConfig};
use docker_types::network::EndpointSettings;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mounts::MountPlan;
use super::status::Status;
use crate::error::{Attempt, Error};

const RECORD_FILE: &str = "container.json";
const STATE_FILE: &str = "state.json";

/// What a container is: written when it is created, renamed or updated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    /// The image's id, with its algorithm.
    pub(crate) image_id: String,
    /// The program and its arguments.
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) config: ContainerConfig,
    pub(crate) host: HostConfig,
    pub(crate) networks: BTreeMap<String, EndpointSettings>,
    pub(crate) mounts: Vec<MountPlan>,
}

/// What a container's last or present run has: written at each start and end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunState {
    pub(crate) status: Status,
    /// Ports of the host that were given to the present run.
    pub(crate) ports: Vec<network::PublishedPort>,
    /// Restarts by policy in a row that ended soon, for the growing delay.
    pub(crate) quick_ends: u32,
}

impl Record {
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.config.labels.as_ref().unwrap_or(&NONE)
    }

    /// Reads a container's directory.
    ///
    /// # Errors
    /// The record is missing or not whole. A missing state is that of a container never started.
    pub(crate) fn load(directory: &Path) -> Result<(Self, RunState), Error> {
        let record = read(&directory.join(RECORD_FILE))?;
        let state = match read(&directory.join(STATE_FILE)) {
            Ok(state) => state,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                RunState::default()
            }
            Err(error) => return Err(error),
        };
        Ok((record, state))
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<(), Error> {
        replace(&directory.join(RECORD_FILE), self)
    }
}

impl RunState {
    pub(crate) fn save(&self, directory: &Path) -> Result<(), Error> {
        replace(&directory.join(STATE_FILE), self)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).attempt(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(|source| Error::Decode { what: path.display().to_string(), source })
}

fn replace<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).expect("records have text keys and no fallible encoders");
    let temporary: PathBuf = path.with_extension("new");
    let write = || -> io::Result<()> {
        fs::File::create(&temporary)?.write_all(&bytes)?;
        fs::rename(&temporary, path)
    };
    write().attempt(|| format!("write {}", path.display()))
}

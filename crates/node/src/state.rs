//! What a node must remember of its swarm to come back into it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use consensus::DataKey;
use rpc::Identity;
use serde::{Deserialize, Serialize};
use types::assignment::{AssignmentSet, ManagerPeer};
use types::{NodeId, TaskTemplate};

/// A node's place in its swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) node: NodeId,
    /// Its seat in the consensus, if it is a manager.
    pub(crate) raft_id: Option<u64>,
    /// The address other nodes know this one by, without a port.
    pub(crate) address: String,
    /// Host and port of its cluster service, as other nodes reach it.
    pub(crate) advertised: String,
    /// Host and port it listens on while it is a manager.
    pub(crate) listen: String,
    /// Where managers were when the node last heard of them.
    pub(crate) managers: Vec<ManagerPeer>,
}

/// A node's identity at rest: one file, so that certificate and key always belong together.
#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    certificate: String,
    key: String,
    roots: String,
}

/// The files of a node's swarm, all beneath one directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(crate) fn new(data_root: &Path) -> Self {
        Self { directory: data_root.join("swarm") }
    }

    pub(crate) fn load(&self) -> anyhow::Result<Option<State>> {
        let path = self.state_file();
        match std::fs::read(&path) {
            Ok(text) => {
                let state = serde_json::from_slice(&text);
                Ok(Some(state.with_context(|| format!("read {}", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Written last, when everything else of the swarm is on disk: a node is in a swarm when this file is there.
    pub(crate) fn save(&self, state: &State) -> anyhow::Result<()> {
        let text = serde_json::to_vec(state).context("encode the node's state")?;
        self.write(&self.state_file(), &text)
    }

    /// Where the log is, and the key it is sealed with; a key is made where there is none.
    pub(crate) fn consensus(&self, raft_id: u64) -> anyhow::Result<consensus::Config> {
        let path = self.directory.join("raft.key");
        let key = match std::fs::read(&path) {
            Ok(bytes) => {
                let bytes = bytes.try_into().ok().context("the log's key does not have 32 bytes");
                bytes.with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                self.write(&path, &key)?;
                key
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let directory = self.directory.join("raft");
        Ok(consensus::Config { directory, raft_id, key: DataKey::new(key) })
    }

    /// Forgets the seat in the consensus: its log, its snapshots and the key they are sealed with.
    pub(crate) fn remove_seat(&self) -> anyhow::Result<()> {
        // First the key: without it nothing that may be left can be read.
        let key = std::fs::remove_file(self.directory.join("raft.key"));
        let log = std::fs::remove_dir_all(self.directory.join("raft"));
        for removed in [key, log] {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("remove the consensus' state");
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn save_identity(&self, identity: &Identity) -> anyhow::Result<()> {
        let Identity { certificate, key, roots } = identity.clone();
        let text = serde_json::to_vec(&StoredIdentity { certificate, key, roots })?;
        self.write(&self.directory.join("identity.json"), &text)
    }

    pub(crate) fn load_identity(&self) -> anyhow::Result<Identity> {
        let path = self.directory.join("identity.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let stored: StoredIdentity =
            serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
        let StoredIdentity { certificate, key, roots } = stored;
        Ok(Identity { certificate, key, roots })
    }

    /// Keeps the node's work, for a start without managers. Credentials for registries are left out.
    pub(crate) fn save_assignment(&self, held: &AssignmentSet) -> anyhow::Result<()> {
        let mut kept = held.clone();
        for template in &mut kept.templates {
            if !template.task.container.registry_auth.is_empty() {
                let mut without = TaskTemplate::clone(template);
                without.task.container.registry_auth.clear();
                *template = Arc::new(without);
            }
        }
        let bytes = rmp_serde::to_vec_named(&kept).context("encode the node's work")?;
        self.write(&self.assignment_file(), &bytes)
    }

    /// The work the node had; nothing where there was none.
    pub(crate) fn load_assignment(&self) -> anyhow::Result<AssignmentSet> {
        let path = self.assignment_file();
        match std::fs::read(&path) {
            Ok(bytes) => {
                rmp_serde::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(AssignmentSet::default())
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Forgets the swarm.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        // First the file that says that there is a swarm: what is left after a crash is no swarm.
        for removed in
            [std::fs::remove_file(self.state_file()), std::fs::remove_dir_all(&self.directory)]
        {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("remove {}", self.directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn assignment_file(&self) -> PathBuf {
        self.directory.join("assignment")
    }

    fn state_file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.directory)?;
            let temporary = path.with_extension("tmp");
            let mut options = std::fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            std::fs::File::open(&self.directory)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

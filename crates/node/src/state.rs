//! What a node must remember of its swarm to come back into it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use consensus::DataKey;
use rpc::Identity;
use serde::{Deserialize, Serialize};
use types::assignment::{AssignmentSet, ManagerPeer};
use types::cluster::UnlockKey;
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

/// A node's identity at rest: one file, so that certificate and keys always belong together and are locked together.
#[derive(Default, Serialize, Deserialize)]
struct StoredIdentity {
    certificate: String,
    roots: String,
    secrets: StoredSecrets,
}

#[derive(Serialize, Deserialize)]
enum StoredSecrets {
    #[serde(rename = "open")]
    Open(Secrets),
    /// [`Secrets`] as [`ca::seal`] locks them.
    #[serde(rename = "locked")]
    Locked(String),
}

impl Default for StoredSecrets {
    fn default() -> Self {
        Self::Open(Secrets::default())
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Secrets {
    /// PEM of the certificate's key.
    key: String,
    /// What log and snapshots are encrypted with, while the node is a manager.
    log_key: Option<[u8; 32]>,
}

/// What a sealed text is for.
const LOCK_PURPOSE: &str = "identity of a node";

/// The files of a node's swarm, all beneath one directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    /// What the secrets are locked with, once it is known. Held while they are rewritten: one at a time.
    lock: Arc<Mutex<Option<UnlockKey>>>,
}

impl Files {
    pub(crate) fn new(data_root: &Path) -> Self {
        Self { directory: data_root.join("swarm"), lock: Arc::default() }
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

    /// Whether the secrets are locked with a key that is not known yet.
    pub(crate) fn is_locked(&self) -> anyhow::Result<bool> {
        let lock = self.lock();
        let stored = self.stored()?;
        Ok(lock.is_none() && matches!(stored.secrets, StoredSecrets::Locked(_)))
    }

    /// Takes the key that the secrets are locked with.
    ///
    /// # Errors
    /// [`ca::Error::Locked`] when it is another one.
    pub(crate) fn unlock(&self, key: UnlockKey) -> anyhow::Result<()> {
        let mut lock = self.lock();
        let stored = self.stored()?;
        opened(&stored.secrets, Some(&key))?;
        *lock = Some(key);
        Ok(())
    }

    /// Locks the secrets with another key, or with none. Nothing is written where they are locked so already.
    pub(crate) fn set_lock(&self, key: Option<&UnlockKey>) -> anyhow::Result<bool> {
        let mut lock = self.lock();
        if lock.as_ref() == key {
            return Ok(false);
        }
        let mut stored = self.stored()?;
        if self.identity_file().exists() {
            let secrets = opened(&stored.secrets, lock.as_ref())?;
            stored.secrets = closed(&secrets, key)?;
            self.write_identity(&stored)?;
        }
        *lock = key.cloned();
        Ok(true)
    }

    /// Where the log is, and the key it is sealed with; a key is made where there is none.
    pub(crate) fn consensus(&self, raft_id: u64) -> anyhow::Result<consensus::Config> {
        let lock = self.lock();
        let mut stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        let key = match secrets.log_key {
            Some(key) => key,
            None => {
                let key = *secrets.log_key.insert(rand::random());
                stored.secrets = closed(&secrets, lock.as_ref())?;
                self.write_identity(&stored)?;
                key
            }
        };
        let directory = self.directory.join("raft");
        Ok(consensus::Config { directory, raft_id, key: DataKey::new(key) })
    }

    /// Forgets the seat in the consensus: its log, its snapshots and the key they are sealed with.
    pub(crate) fn remove_seat(&self) -> anyhow::Result<()> {
        let lock = self.lock();
        // First the key: without it nothing that may be left can be read.
        let mut stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        if secrets.log_key.take().is_some() {
            stored.secrets = closed(&secrets, lock.as_ref())?;
            self.write_identity(&stored)?;
        }
        match std::fs::remove_dir_all(self.directory.join("raft")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the consensus' state")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn save_identity(&self, identity: &Identity) -> anyhow::Result<()> {
        let lock = self.lock();
        let stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        let Identity { certificate, key, roots } = identity.clone();
        secrets.key = key;
        let secrets = closed(&secrets, lock.as_ref())?;
        self.write_identity(&StoredIdentity { certificate, roots, secrets })
    }

    pub(crate) fn load_identity(&self) -> anyhow::Result<Identity> {
        let lock = self.lock();
        let stored = self.stored()?;
        let Secrets { key, .. } = opened(&stored.secrets, lock.as_ref())?;
        Ok(Identity { certificate: stored.certificate, key, roots: stored.roots })
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnlockKey>> {
        self.lock.lock().expect("a key is left whole")
    }

    fn identity_file(&self) -> PathBuf {
        self.directory.join("identity.json")
    }

    /// The identity as it is on disk; an empty one where there is none yet.
    fn stored(&self) -> anyhow::Result<StoredIdentity> {
        let path = self.identity_file();
        match std::fs::read(&path) {
            Ok(text) => {
                let stored = serde_json::from_slice(&text);
                stored.with_context(|| format!("read {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(StoredIdentity::default())
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn write_identity(&self, stored: &StoredIdentity) -> anyhow::Result<()> {
        let text = serde_json::to_vec(stored).context("encode the node's identity")?;
        self.write(&self.identity_file(), &text)
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
        let mut lock = self.lock();
        *lock = None;
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

fn opened(stored: &StoredSecrets, key: Option<&UnlockKey>) -> anyhow::Result<Secrets> {
    match (stored, key) {
        // Not locked yet: a crash came between the key and the lock.
        (StoredSecrets::Open(Secrets { key, log_key }), _) => {
            Ok(Secrets { key: key.clone(), log_key: *log_key })
        }
        (StoredSecrets::Locked(sealed), Some(key)) => {
            let text = ca::open(key, LOCK_PURPOSE, sealed)?;
            serde_json::from_slice(&text).context("read the unlocked secrets")
        }
        (StoredSecrets::Locked(_), None) => Err(ca::Error::Locked.into()),
    }
}

fn closed(secrets: &Secrets, key: Option<&UnlockKey>) -> anyhow::Result<StoredSecrets> {
    let Secrets { key: tls, log_key } = secrets;
    Ok(match key {
        None => StoredSecrets::Open(Secrets { key: tls.clone(), log_key: *log_key }),
        Some(key) => {
            let text = serde_json::to_vec(secrets).context("encode the node's secrets")?;
            StoredSecrets::Locked(ca::seal(key, LOCK_PURPOSE, &text))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(key: &str) -> Identity {
        Identity { certificate: "certificate".into(), key: key.into(), roots: "roots".into() }
    }

    /// The files as a daemon that starts anew finds them.
    fn again(directory: &tempfile::TempDir) -> Files {
        Files::new(directory.path())
    }

    fn holds(directory: &tempfile::TempDir, text: &str) -> bool {
        let file = std::fs::read_to_string(directory.path().join("swarm/identity.json"));
        file.expect("is there").contains(text)
    }

    #[test]
    fn what_is_locked_opens_with_its_key_only_and_never_lies_open() {
        let directory = tempfile::tempdir().expect("directory");
        let (key, other) = (ca::new_unlock_key(), ca::new_unlock_key());
        let files = again(&directory);
        files.set_lock(Some(&key)).expect("nothing to lock yet");
        let log_key = files.consensus(1).expect("makes a key").key;
        files.save_identity(&identity("tls key")).expect("writes");
        assert!(!holds(&directory, "tls key"));

        let files = again(&directory);
        assert!(files.is_locked().expect("reads"));
        assert!(files.load_identity().is_err() && files.consensus(1).is_err());
        assert!(files.unlock(other).is_err() && files.is_locked().expect("reads"));
        files.unlock(key).expect("opens");
        assert!(!files.is_locked().expect("reads"));
        assert_eq!(files.load_identity().expect("reads").key, "tls key");
        assert_eq!(files.consensus(1).expect("reads").key.as_bytes(), log_key.as_bytes());
    }

    #[test]
    fn another_key_takes_the_place_of_the_first_and_none_opens_for_good() {
        let directory = tempfile::tempdir().expect("directory");
        let (first, second) = (ca::new_unlock_key(), ca::new_unlock_key());
        let files = again(&directory);
        files.save_identity(&identity("tls key")).expect("writes");
        assert!(holds(&directory, "tls key"), "without autolock it lies open");
        assert!(files.set_lock(Some(&first)).expect("locks"));
        assert!(!holds(&directory, "tls key"));
        assert!(!files.set_lock(Some(&first)).expect("is locked so"));
        files.set_lock(Some(&second)).expect("locks");
        assert!(again(&directory).unlock(first).is_err());
        again(&directory).unlock(second).expect("opens");
        files.set_lock(None).expect("opens");
        assert!(!again(&directory).is_locked().expect("reads"));
    }

    #[test]
    fn a_seat_is_forgotten_with_its_key() {
        let directory = tempfile::tempdir().expect("directory");
        let files = again(&directory);
        files.save_identity(&identity("tls key")).expect("writes");
        let before = files.consensus(1).expect("makes a key").key;
        files.remove_seat().expect("removes");
        assert_ne!(files.consensus(2).expect("makes a key").key.as_bytes(), before.as_bytes());
        assert_eq!(files.load_identity().expect("reads").key, "tls key");
    }
}

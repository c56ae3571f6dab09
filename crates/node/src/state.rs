//! What a node must remember of its swarm to come back into it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use consensus::{DataKey, DataKeys};
use rpc::Identity;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
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
    /// The certificate's key lay open until it was locked: another one is to take its place.
    #[serde(default)]
    is_key_outdated: bool,
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

#[derive(Clone, Default, Serialize, Deserialize)]
struct Secrets {
    /// PEM of the certificate's key.
    key: String,
    /// What log and snapshots are encrypted with, while the node is a manager.
    log_key: Option<[u8; 32]>,
    /// Keys of before the log was locked, which some of it may still be encrypted with.
    #[serde(default)]
    previous_log_keys: Vec<[u8; 32]>,
}

impl Secrets {
    fn log_keys(&self) -> Option<DataKeys> {
        let previous = self.previous_log_keys.iter().copied().map(DataKey::new).collect();
        Some(DataKeys { current: DataKey::new(self.log_key?), previous })
    }
}

/// What a sealed text is for.
const LOCK_PURPOSE: &str = "identity of a node";

/// The files of a node's swarm, all beneath one directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    /// What the secrets are locked with, once it is known. Held while they are rewritten: one at a time.
    lock: Arc<Mutex<Option<UnlockKey>>>,
    /// Secrets that lay open have been locked.
    pub(crate) closed: Arc<Notify>,
}

impl Files {
    pub(crate) fn new(data_root: &Path) -> Self {
        Self { directory: data_root.join("swarm"), lock: Arc::default(), closed: Arc::default() }
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

    /// Locks the secrets with another key, or with none. Nothing is written where they are locked so already. Secrets
    /// that lay open until now are to be replaced: see [`Files::outdated_log_keys`] and [`Files::is_key_outdated`].
    pub(crate) fn set_lock(&self, key: Option<&UnlockKey>) -> anyhow::Result<bool> {
        let mut lock = self.lock();
        if lock.as_ref() == key {
            return Ok(false);
        }
        let mut stored = self.stored()?;
        if self.identity_file().exists() {
            let mut secrets = opened(&stored.secrets, lock.as_ref())?;
            if lock.is_none() {
                stored.is_key_outdated = true;
                if let Some(open) = secrets.log_key.replace(rand::random()) {
                    secrets.previous_log_keys.push(open);
                }
            }
            stored.secrets = closed(&secrets, key)?;
            self.write_identity(&stored)?;
        }
        *lock = key.cloned();
        self.closed.notify_one();
        Ok(true)
    }

    /// Where the log is, and the key it is sealed with; a key is made where there is none.
    pub(crate) fn consensus(&self, raft_id: u64) -> anyhow::Result<consensus::Config> {
        let lock = self.lock();
        let mut stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        let keys = match secrets.log_keys() {
            Some(keys) => keys,
            None => {
                let key = *secrets.log_key.insert(rand::random());
                stored.secrets = closed(&secrets, lock.as_ref())?;
                self.write_identity(&stored)?;
                DataKey::new(key).into()
            }
        };
        let directory = self.directory.join("raft");
        Ok(consensus::Config { directory, raft_id, keys })
    }

    /// The log's keys while it may still need one of before it was locked.
    pub(crate) fn outdated_log_keys(&self) -> anyhow::Result<Option<DataKeys>> {
        let lock = self.lock();
        let secrets = opened(&self.stored()?.secrets, lock.as_ref())?;
        Ok(secrets.log_keys().filter(|keys| !keys.previous.is_empty()))
    }

    /// Nothing of the log needs another key than `current` any more.
    pub(crate) fn forget_older_log_keys(&self, current: &DataKey) -> anyhow::Result<()> {
        let lock = self.lock();
        let mut stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        if secrets.log_key.as_ref() == Some(current.as_bytes()) {
            secrets.previous_log_keys.clear();
            stored.secrets = closed(&secrets, lock.as_ref())?;
            self.write_identity(&stored)?;
        }
        Ok(())
    }

    /// Whether the certificate's key lay open before it was locked.
    pub(crate) fn is_key_outdated(&self) -> anyhow::Result<bool> {
        let _lock = self.lock();
        Ok(self.stored()?.is_key_outdated)
    }

    /// Forgets the seat in the consensus: its log, its snapshots and the key they are sealed with.
    pub(crate) fn remove_seat(&self) -> anyhow::Result<()> {
        let lock = self.lock();
        // First the key: without it nothing that may be left can be read.
        let mut stored = self.stored()?;
        let mut secrets = opened(&stored.secrets, lock.as_ref())?;
        if secrets.log_key.take().is_some() {
            secrets.previous_log_keys.clear();
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
        let is_same_key = secrets.key == key;
        secrets.key = key;
        let secrets = closed(&secrets, lock.as_ref())?;
        let is_key_outdated = stored.is_key_outdated && is_same_key;
        self.write_identity(&StoredIdentity { certificate, roots, secrets, is_key_outdated })
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
        (StoredSecrets::Open(secrets), _) => Ok(secrets.clone()),
        (StoredSecrets::Locked(sealed), Some(key)) => {
            let text = ca::open(key, LOCK_PURPOSE, sealed)?;
            serde_json::from_slice(&text).context("read the unlocked secrets")
        }
        (StoredSecrets::Locked(_), None) => Err(ca::Error::Locked.into()),
    }
}

fn closed(secrets: &Secrets, key: Option<&UnlockKey>) -> anyhow::Result<StoredSecrets> {
    Ok(match key {
        None => StoredSecrets::Open(secrets.clone()),
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
        let log_key = files.consensus(1).expect("makes a key").keys.current;
        files.save_identity(&identity("tls key")).expect("writes");
        assert!(!holds(&directory, "tls key"));

        let files = again(&directory);
        assert!(files.is_locked().expect("reads"));
        assert!(files.load_identity().is_err() && files.consensus(1).is_err());
        assert!(files.unlock(other).is_err() && files.is_locked().expect("reads"));
        files.unlock(key).expect("opens");
        assert!(!files.is_locked().expect("reads"));
        assert_eq!(files.load_identity().expect("reads").key, "tls key");
        assert_eq!(files.consensus(1).expect("reads").keys.current.as_bytes(), log_key.as_bytes());
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
        let before = files.consensus(1).expect("makes a key").keys.current;
        files.remove_seat().expect("removes");
        assert_ne!(
            files.consensus(2).expect("makes a key").keys.current.as_bytes(),
            before.as_bytes()
        );
        assert_eq!(files.load_identity().expect("reads").key, "tls key");
    }

    #[test]
    fn secrets_that_lay_open_are_given_up_when_they_are_locked() {
        let directory = tempfile::tempdir().expect("directory");
        let (first, second) = (ca::new_unlock_key(), ca::new_unlock_key());
        let files = again(&directory);
        files.save_identity(&identity("tls key")).expect("writes");
        let open = files.consensus(1).expect("makes a key").keys.current;
        assert!(!files.is_key_outdated().expect("reads"));
        files.set_lock(Some(&first)).expect("locks");

        let files = again(&directory);
        files.unlock(first).expect("opens");
        let keys = files.outdated_log_keys().expect("reads").expect("the log is still as it was");
        assert!(keys.current != open && keys.previous == [open]);
        assert_eq!(files.consensus(1).expect("reads").keys.previous, keys.previous);
        files.forget_older_log_keys(&DataKey::new([1; 32])).expect("is another one");
        assert!(files.outdated_log_keys().expect("reads").is_some());
        files.forget_older_log_keys(&keys.current).expect("writes");
        assert!(files.outdated_log_keys().expect("reads").is_none());
        // A root that changes is no new key; a renewal is.
        files.save_identity(&identity("tls key")).expect("writes");
        assert!(files.is_key_outdated().expect("reads"));
        files.save_identity(&identity("another key")).expect("writes");
        assert!(!files.is_key_outdated().expect("reads"));
        // What was locked all the time stays.
        files.set_lock(Some(&second)).expect("locks");
        assert!(files.outdated_log_keys().expect("reads").is_none());
        assert!(!files.is_key_outdated().expect("reads"));
    }
}

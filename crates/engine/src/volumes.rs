//! Volumes: directories that outlive containers, or file systems mounted while containers use them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docker_types::volume::{Volume as Description, VolumeCreateRequest, VolumeUsage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::containers::check_volume_name;
use crate::db::{self, Db, Table};
use crate::error::{Attempt, Error};
use crate::events::Events;
use crate::names;

mod driver;

const TABLE: Table = db::table("volumes");

/// Marks a volume that was made for one container because it asked for a place only. Empty value.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// The volumes of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Volumes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    db: Arc<Db>,
    events: Events,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<String, Arc<Volume>>,
    /// Containers that have a volume, running or not.
    holders: BTreeMap<String, BTreeSet<String>>,
    /// Running containers that have it mounted.
    users: BTreeMap<String, BTreeSet<String>>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// Empty for a plain directory; else `type`, `device`, `o` as mount(8) takes them.
    pub options: BTreeMap<String, String>,
}

/// Which volumes a list names. Every key given must match.
#[derive(Clone, Debug, Default)]
pub struct VolumeFilter {
    pub names: Vec<String>,
    pub drivers: Vec<String>,
    /// `key` or `key=value`, all of them.
    pub labels: Vec<String>,
    /// None of these labels.
    pub not_labels: Vec<String>,
    /// Whether no container has it.
    pub dangling: Option<bool>,
}

impl Volumes {
    /// Reads the volumes under `root`.
    ///
    /// # Errors
    /// The directory cannot be made, or the database not read.
    pub fn open(root: PathBuf, db: Arc<Db>, events: Events) -> Result<Self, Error> {
        make_directory(&root, 0o701)?;
        let volumes = db.all::<Volume>(TABLE)?;
        let volumes = volumes.into_iter().map(|(name, volume)| (name, Arc::new(volume))).collect();
        let state = Mutex::new(State { volumes, ..State::default() });
        Ok(Self { shared: Arc::new(Shared { root, db, events, state }) })
    }

    /// Makes a volume, or returns the one that has this name already. Blocking.
    ///
    /// # Errors
    /// A name or an option that is not allowed, or an unknown driver.
    pub fn create(&self, request: &VolumeCreateRequest) -> Result<Arc<Volume>, Error> {
        if !matches!(request.driver.as_str(), "" | "local") {
            return Err(Error::NoSuchVolumeDriver { driver: request.driver.clone() });
        }
        check_volume_name(&request.name)?;
        let options = request.driver_opts.clone().unwrap_or_default();
        driver::check_options(&options)?;
        let mut labels = request.labels.clone().unwrap_or_default();
        let name = if request.name.is_empty() {
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
            names::new_id()
        } else {
            request.name.clone()
        };
        if let Some(volume) = self.find(&name) {
            return Ok(volume);
        }
        let volume = Volume { name: name.clone(), created: Timestamp::now(), labels, options };
        make_directory(&self.shared.root.join(&name), 0o701)?;
        make_directory(&self.data_dir(&name), 0o755)?;
        self.shared.db.write(|batch| batch.put(TABLE, &name, &volume))?;
        let volume = Arc::new(volume);
        let existing =
            self.state().volumes.entry(name.clone()).or_insert_with(|| Arc::clone(&volume)).clone();
        if Arc::ptr_eq(&existing, &volume) {
            self.event("create", &name, BTreeMap::new());
        }
        Ok(existing)
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// `get x: no such volume`.
    pub fn get(&self, name: &str) -> Result<Arc<Volume>, Error> {
        self.find(name).ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })
    }

    pub fn list(&self, filter: &VolumeFilter) -> Vec<Arc<Volume>> {
        let state = self.state();
        let fits = |volume: &&Arc<Volume>| filter.matches(volume, state.is_held(&volume.name));
        state.volumes.values().filter(fits).cloned().collect()
    }

    /// Removes a volume and what is in it. Blocking.
    ///
    /// # Errors
    /// `volume is in use` while a container has it. With `force` an unknown volume is no error.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), Error> {
        {
            let mut state = self.state();
            if let Some(holders) = state.holders.get(name).filter(|holders| !holders.is_empty()) {
                let users = holders.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(Error::VolumeInUse { name: name.to_owned(), users });
            }
            if state.volumes.remove(name).is_none() {
                return if force {
                    Ok(())
                } else {
                    Err(Error::NoSuchVolume { name: name.to_owned() })
                };
            }
        }
        driver::unmount(&self.data_dir(name))
            .map_err(|source| Error::VolumeMount { name: name.to_owned(), source })?;
        self.shared.db.write(|batch| batch.delete(TABLE, name))?;
        let directory = self.shared.root.join(name);
        fs::remove_dir_all(&directory).attempt(|| format!("remove {}", directory.display()))?;
        self.event("destroy", name, BTreeMap::new());
        Ok(())
    }

    /// Removes volumes that no container has: anonymous ones, or `all`. Returns names and bytes. Blocking.
    ///
    /// # Errors
    /// The first volume that could not be removed.
    pub fn prune(&self, filter: &VolumeFilter, all: bool) -> Result<(Vec<String>, u64), Error> {
        let (mut names, mut bytes) = (Vec::new(), 0);
        let filter = VolumeFilter { dangling: Some(true), ..filter.clone() };
        for volume in self.list(&filter) {
            if !all && !volume.labels.contains_key(ANONYMOUS_LABEL) {
                continue;
            }
            let size = directory_bytes(&self.data_dir(&volume.name));
            match self.remove(&volume.name, true) {
                Ok(()) => {
                    bytes += size;
                    names.push(volume.name.clone());
                }
                // A container took it meanwhile.
                Err(Error::VolumeInUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.event("prune", "", BTreeMap::from([("reclaimed".to_owned(), bytes.to_string())]));
        Ok((names, bytes))
    }

    /// What the API says of a volume; with `usage` its size is counted, which reads the whole tree.
    pub fn describe(&self, volume: &Volume, usage: bool) -> Description {
        let usage_data = usage.then(|| VolumeUsage {
            ref_count: i64::try_from(
                self.state().holders.get(&volume.name).map_or(0, BTreeSet::len),
            )
            .unwrap_or(i64::MAX),
            size: i64::try_from(directory_bytes(&self.data_dir(&volume.name))).unwrap_or(i64::MAX),
        });
        let some = |map: &BTreeMap<String, String>| Some(map.clone()).filter(|map| !map.is_empty());
        Description {
            created_at: whole_seconds(volume.created).to_string(),
            driver: "local".to_owned(),
            labels: some(&volume.labels),
            mountpoint: self.data_dir(&volume.name).to_string_lossy().into_owned(),
            name: volume.name.clone(),
            options: some(&volume.options),
            scope: "local".to_owned(),
            usage_data,
        }
    }

    /// Where a volume's files are.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.shared.root.join(name).join("_data")
    }

    /// Notes that a container has a volume, which then cannot be removed.
    pub(crate) fn hold(&self, name: &str, container: &str) {
        self.state().holders.entry(name.to_owned()).or_default().insert(container.to_owned());
    }

    /// Forgets all that a container had.
    pub(crate) fn release(&self, container: &str) {
        self.state().holders.retain(|_, holders| {
            holders.remove(container);
            !holders.is_empty()
        });
    }

    /// Mounts a volume for a container that starts. Blocking.
    ///
    /// # Errors
    /// The volume is gone, or its file system cannot be mounted.
    pub(crate) fn mount(&self, name: &str, container: &str) -> Result<PathBuf, Error> {
        let volume = self.get(name)?;
        let directory = self.data_dir(name);
        driver::mount(&volume.options, &directory)
            .map_err(|source| Error::VolumeMount { name: name.to_owned(), source })?;
        self.state().users.entry(name.to_owned()).or_default().insert(container.to_owned());
        Ok(directory)
    }

    /// Notes that a container that was found running has a volume mounted.
    pub(crate) fn take_over(&self, name: &str, container: &str) {
        self.state().users.entry(name.to_owned()).or_default().insert(container.to_owned());
    }

    /// Lets go of a volume after a container's end; the last one unmounts it. Blocking.
    pub(crate) fn unmount(&self, name: &str, container: &str) {
        let is_last = {
            let mut state = self.state();
            let Some(users) = state.users.get_mut(name) else { return };
            users.remove(container);
            let is_last = users.is_empty();
            if is_last {
                state.users.remove(name);
            }
            is_last && state.volumes.get(name).is_some_and(|volume| !volume.options.is_empty())
        };
        if is_last && let Err(error) = driver::unmount(&self.data_dir(name)) {
            tracing::warn!(volume = name, %error, "unmount volume");
        }
    }

    pub(crate) fn event(&self, action: &str, name: &str, mut attributes: BTreeMap<String, String>) {
        if action != "prune" {
            attributes.insert("driver".to_owned(), "local".to_owned());
        }
        self.shared.events.publish("volume", action, name, attributes);
    }

    fn find(&self, name: &str) -> Option<Arc<Volume>> {
        self.state().volumes.get(name).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_held(&self, name: &str) -> bool {
        self.holders.get(name).is_some_and(|holders| !holders.is_empty())
    }
}

impl VolumeFilter {
    fn matches(&self, volume: &Volume, is_held: bool) -> bool {
        let any = |values: &[String], fits: &dyn Fn(&str) -> bool| {
            values.is_empty() || values.iter().any(|value| fits(value))
        };
        any(&self.names, &|name| volume.name.contains(name))
            && any(&self.drivers, &|driver| driver == "local")
            && self.labels.iter().all(|label| has_label(&volume.labels, label))
            && !self.not_labels.iter().any(|label| has_label(&volume.labels, label))
            && self.dangling.is_none_or(|dangling| dangling != is_held)
    }
}

/// Whether labels hold `key` or `key=value`.
pub(crate) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
        None => labels.contains_key(wanted),
    }
}

/// Bytes of all files beneath a directory, hard links counted once; what cannot be read counts nothing.
pub(crate) fn directory_bytes(root: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    let mut bytes = 0;
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.len();
            }
        }
    }
    bytes
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .attempt(|| format!("create directory {}", path.display()))
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

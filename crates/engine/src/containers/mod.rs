//! Containers: from the request to the running process and its end.
//!
//! [`Containers`] is the whole interface; each step of a life has a file: `create`, `start`, `stop`, `exit`,
//! `remove`, and `recover` for a daemon that comes back. The state is written where it changes and nowhere
//! else waited for: an end is pushed by the shim, everyone else watches [`Status`].

mod cgroup;
mod container;
mod copy;
mod create;
mod etc;
mod exit;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod health;
mod inspect;
mod invalid;
mod list;
mod membership;
mod merge;
mod mounts;
mod networks;
mod pause;
mod ports;
mod record;
mod recover;
mod registry;
mod remove;
mod signal;
mod spec;
mod start;
mod status;
mod stop;
mod update;
mod users;
mod validate;
mod wait;

pub mod archive;
pub mod attach;
pub mod exec;
pub mod stats;
pub mod top;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use network::Network;
use shim::client::Launcher;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::Error;
use crate::events::Events;
use crate::images::Images;
use crate::logs;
use crate::networks::Networks;
use crate::swarm::{AttachRequest, SwarmSlot};
use crate::volumes::Volumes;

pub use create::{Created, NewContainer};
pub use invalid::{Invalid, MountFault};
pub use list::ListOptions;
pub use remove::RemoveOptions;
pub use status::{HealthState, Phase, Status};
pub use stop::StopOptions;
pub use wait::{Exit, WaitCondition};

pub(crate) use cgroup::{host_facts, online_cpus};
pub(crate) use container::Container;
pub(crate) use inspect::derived_id;
pub(crate) use mounts::check_volume_name;

/// Changes a follower may lag behind before it has to list again: ten for each of 400 containers.
const CHANGES_MAX: usize = 4096;

/// The containers of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Containers {
    shared: Arc<Shared>,
}

/// What happened to a container, for whoever follows all of them.
#[derive(Clone, Debug)]
pub struct Change {
    pub id: String,
    pub name: String,
    pub labels: Arc<BTreeMap<String, String>>,
    pub status: Status,
}

/// A container that was looked for by its labels.
#[derive(Clone, Debug)]
pub struct Found {
    pub id: String,
    pub name: String,
    pub labels: Arc<BTreeMap<String, String>>,
    pub status: Status,
}

/// What all containers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) events: Events,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) network: Arc<Network>,
    pub(crate) networks: Networks,
    pub(crate) swarm: SwarmSlot,
    pub(crate) watcher: logs::Watcher,
    registry: registry::Registry,
    execs: exec::Execs,
    launcher: Launcher,
    changes: broadcast::Sender<Change>,
    sync: create::DelayedSync,
    opened_at: jiff::Timestamp,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// The engine's parts that containers need.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) events: Events,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) network: Arc<Network>,
    pub(crate) networks: Networks,
    pub(crate) swarm: SwarmSlot,
}

impl Containers {
    /// Reads all containers and takes over those that run.
    pub(crate) async fn open(parts: Parts) -> Result<Self, Error> {
        let closing = CancellationToken::new();
        let tasks = TaskTracker::new();
        let sync = create::DelayedSync::new(&parts.config.data_root, &tasks, &closing)?;
        let launcher = Launcher::new(&parts.config.program);
        let shared = Arc::new(Shared {
            config: parts.config,
            events: parts.events,
            images: parts.images,
            volumes: parts.volumes,
            network: parts.network,
            networks: parts.networks,
            swarm: parts.swarm,
            watcher: logs::Watcher::open()?,
            registry: registry::Registry::default(),
            execs: exec::Execs::default(),
            launcher,
            changes: broadcast::Sender::new(CHANGES_MAX),
            sync,
            opened_at: jiff::Timestamp::now(),
            tasks,
            closing,
        });
        shared.recover().await?;
        Ok(Self { shared })
    }

    /// Lets go of all shims. Containers go on.
    pub(crate) async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.sync.flush().await;
    }

    /// Every change of every container's state. A follower that lags lists anew with [`Containers::find`].
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// The present state.
    ///
    /// # Errors
    /// No such container.
    pub fn status(&self, name: &str) -> Result<Status, Error> {
        Ok(self.shared.registry.find(name)?.status())
    }

    /// The host's ports that a running container answers on.
    ///
    /// # Errors
    /// No such container.
    pub fn published(&self, name: &str) -> Result<Vec<network::PublishedPort>, Error> {
        Ok(self.shared.registry.find(name)?.ports())
    }

    /// The state as it changes.
    ///
    /// # Errors
    /// No such container.
    pub fn watch(&self, name: &str) -> Result<tokio::sync::watch::Receiver<Status>, Error> {
        Ok(self.shared.registry.find(name)?.watch())
    }

    /// The full id of the container that `name` means.
    ///
    /// # Errors
    /// No such container, or several.
    pub fn id_of(&self, name: &str) -> Result<String, Error> {
        Ok(self.shared.registry.find(name)?.id.clone())
    }

    /// All containers that have each of these labels, with this value where one is given.
    pub fn find(&self, labels: &[(&str, Option<&str>)]) -> Vec<Found> {
        let fits = |have: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| {
                have.get(*key).is_some_and(|own| value.is_none_or(|value| own == value))
            })
        };
        let containers = self.shared.registry.all();
        let found = containers.iter().filter_map(|container| {
            let record = container.record();
            fits(record.labels()).then(|| Found {
                id: container.id.clone(),
                name: record.name.clone(),
                labels: Arc::new(record.labels().clone()),
                status: container.status(),
            })
        });
        found.collect()
    }

    /// When this engine was opened.
    pub fn opened_at(&self) -> jiff::Timestamp {
        self.shared.opened_at
    }

    /// The plain containers in networks of the swarm, as they would ask for their places again.
    pub fn attached(&self) -> Vec<AttachRequest> {
        let mut attached = Vec::new();
        for container in self.shared.registry.all() {
            let record = container.record();
            if !list::is_task(&record) {
                attached.extend(self.shared.attached(&container, &record));
            }
        }
        attached
    }

    /// Ids and names of the containers with a link to the default bridge: those that are in its network, or those whose way
    /// to the world it is beside other networks.
    pub(crate) fn on_default_bridge(&self, is_way_out: bool) -> Vec<(String, String)> {
        let is_meant = |container: &&Arc<Container>| {
            let is_member = container.record().networks.contains_key(network::DEFAULT_NETWORK);
            is_member != is_way_out && self.shared.network.endpoint(&container.id).is_some()
        };
        let containers = self.shared.registry.all();
        let meant = containers.iter().filter(is_meant);
        meant.map(|container| (container.id.clone(), container.record().name.clone())).collect()
    }

    /// What a container is called; nothing where there is none.
    pub fn name_of(&self, id: &str) -> Option<String> {
        Some(self.shared.registry.find(id).ok()?.record().name.clone())
    }

    /// Whether a container has a process, for whoever asks before taking something from it.
    pub fn is_up(&self, name: &str) -> bool {
        self.shared.registry.find(name).is_ok_and(|container| container.phase().is_up())
    }

    /// Runs `work` to its end even when the caller goes away in the middle.
    async fn detached<T, F, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(Arc<Shared>) -> F,
    {
        let task = self.shared.tasks.spawn(work(Arc::clone(&self.shared)));
        match task.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

impl Shared {
    /// Changes a container's state, and tells those who watch it and those who watch all.
    fn set_status(&self, container: &Container, change: impl FnOnce(&mut Status)) {
        container.set_status(change);
        if self.changes.receiver_count() == 0 {
            return;
        }
        let record = container.record();
        // Nobody listening any more is no error.
        let _ = self.changes.send(Change {
            id: container.id.clone(),
            name: record.name.clone(),
            labels: Arc::new(record.labels().clone()),
            status: container.status(),
        });
    }

    fn event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes = container.event_attributes();
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.publish("container", action, &container.id, attributes);
    }

    fn containers_dir(&self) -> PathBuf {
        self.config.data_root.join("containers")
    }

    fn bundle_of(&self, id: &str) -> PathBuf {
        self.config.exec_root.join("containers").join(id)
    }
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

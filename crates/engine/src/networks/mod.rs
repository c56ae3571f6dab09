//! The networks of this host: the three that every node has, and those that users made.
//!
//! What is remembered is in the engine's database; what the kernel has is made from it each time the engine opens.

mod describe;
mod ipv6;
mod plan;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docker_types::network::NetworkCreateRequest;
use jiff::Timestamp;
use network::{DEFAULT_NETWORK, Network};

use crate::containers::derived_id;
use crate::db::{self, Db, Table};
use crate::error::Error;
use crate::events::Events;
use crate::names;
pub use describe::GATEWAY_NETWORK;
pub use plan::Record;
use plan::Surroundings;
pub use refusal::Refusal;

const TABLE: Table = db::table("networks");

/// Networks of one host: each is a bridge with a subnet, and the kernel has 1,024 ports for each.
pub const NETWORKS_MAX: usize = 1_000;

/// The networks that every node has.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// The networks of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Networks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Arc<Db>,
    events: Events,
    network: Arc<Network>,
    known: Mutex<BTreeMap<String, Arc<Record>>>,
    /// One at a time makes or removes a network: two must not choose the same subnet.
    changing: tokio::sync::Mutex<()>,
}

impl Networks {
    /// Reads the networks and makes them in the kernel.
    ///
    /// # Errors
    /// A database that cannot be read. A network that cannot be made is told of in the log: the others work without it.
    pub async fn open(db: Arc<Db>, events: Events, network: Arc<Network>) -> Result<Self, Error> {
        let known = db.all::<Record>(TABLE)?;
        let known: BTreeMap<_, _> = known.into_iter().map(|(id, it)| (id, Arc::new(it))).collect();
        for record in known.values() {
            let Some(local) = record.local.clone() else { continue };
            if let Err(error) = network.make_local(local).await {
                tracing::warn!(network = record.name, %error, "network is not made");
            }
        }
        if let Err(error) = network.remove_other_locals().await {
            tracing::warn!(%error, "networks that are no more stay in the kernel");
        }
        let changing = tokio::sync::Mutex::default();
        let known = Mutex::new(known);
        Ok(Self { shared: Arc::new(Shared { db, events, network, known, changing }) })
    }

    /// Makes a network of this host; answers with its identifier.
    ///
    /// # Errors
    /// What is wrong with the request, a name or a subnet that is taken.
    pub async fn create(&self, request: NetworkCreateRequest) -> Result<String, Error> {
        let name = request.name.clone();
        if name.is_empty() {
            return Err(Refusal::NoName.into());
        }
        if PREDEFINED.contains(&name.as_str()) {
            return Err(Refusal::Predefined { name }.into());
        }
        self.make(names::new_id(), request, false).await
    }

    /// Makes a network of the swarm that each node has for itself, under the swarm's identifier. Idempotent.
    ///
    /// # Errors
    /// As [`Networks::create`]: what this host has not room for, a name or subnet that is another network's here.
    pub async fn create_of_swarm(
        &self,
        id: &str,
        request: NetworkCreateRequest,
    ) -> Result<(), Error> {
        if self.known().contains_key(id) {
            return Ok(());
        }
        self.make(id.to_owned(), request, true).await.map(drop)
    }

    /// Removes the networks of the swarm but these, and those that containers are in still.
    pub async fn keep_of_swarm(&self, wanted: &BTreeSet<String>) {
        let is_left = |record: &Arc<Record>| record.is_of_swarm && !wanted.contains(&record.id);
        for record in self.all().into_iter().filter(is_left) {
            match self.remove(&record.id, str::to_owned).await {
                // Its last container leaves later, and so does it.
                Ok(()) | Err(Error::Network(Refusal::InUse { .. })) => {}
                Err(error) => {
                    tracing::warn!(network = record.name, %error, "network is not removed");
                }
            }
        }
    }

    /// Whether a network like this could be made on a host with nothing but what every node has.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn check(&self, request: &NetworkCreateRequest) -> Result<(), Error> {
        let around = Surroundings {
            id: names::new_id(),
            now: Timestamp::now(),
            known: &BTreeMap::new(),
            default_subnet: self.shared.network.subnet(),
            free_subnet: Some(self.shared.network.subnet()),
        };
        plan::plan(request.clone(), &around)?;
        Ok(())
    }

    async fn make(
        &self,
        id: String,
        request: NetworkCreateRequest,
        is_of_swarm: bool,
    ) -> Result<String, Error> {
        let name = request.name.clone();
        let _changing = self.shared.changing.lock().await;
        let known = self.known().clone();
        if known.values().any(|record| record.name == name) {
            return Err(Refusal::NameTaken { name }.into());
        }
        if known.len() >= NETWORKS_MAX {
            return Err(Refusal::TooMany { max: NETWORKS_MAX }.into());
        }
        let around = Surroundings {
            id,
            now: Timestamp::now(),
            known: &known,
            default_subnet: self.shared.network.subnet(),
            free_subnet: self.shared.network.free_subnet().await.map_err(setup)?,
        };
        let record = Record { is_of_swarm, ..plan::plan(request, &around)? };
        self.shared.db.write(|batch| batch.put(TABLE, &record.id, &record))?;
        if let Some(local) = record.local.clone()
            && let Err(error) = self.shared.network.make_local(local).await
        {
            let _ = self.shared.network.remove_local(&record.id).await;
            self.shared.db.write(|batch| batch.delete(TABLE, &record.id))?;
            return Err(setup(error));
        }
        let id = record.id.clone();
        self.event("create", &record, &[]);
        self.known().insert(id.clone(), Arc::new(record));
        Ok(id)
    }

    /// Removes a network. `name_of` says what a container is called.
    ///
    /// # Errors
    /// When containers are in it, or others were made from it.
    pub async fn remove(&self, id: &str, name_of: impl Fn(&str) -> String) -> Result<(), Error> {
        let _changing = self.shared.changing.lock().await;
        let known = self.known().get(id).cloned();
        let record = known.ok_or_else(|| Refusal::NotFound { name: id.to_owned() })?;
        let name = record.name.clone();
        if record.local.is_none() && self.known().values().any(|it| it.config_from == name) {
            return Err(Refusal::ConfigInUse { name }.into());
        }
        let endpoints = self.endpoints(id);
        if !endpoints.is_empty() {
            let endpoints = endpoints.iter().map(|container| {
                let id = endpoint_id(container, id);
                format!("name:{:?} id:{:?}", name_of(container), names::short(&id))
            });
            let endpoints = endpoints.collect::<Vec<_>>().join(", ");
            return Err(Refusal::InUse { name, endpoints }.into());
        }
        self.shared.db.write(|batch| batch.delete(TABLE, id))?;
        self.known().remove(id);
        self.shared.network.remove_local(id).await.map_err(setup)?;
        self.event("destroy", &record, &[]);
        Ok(())
    }

    /// The networks that users made, by their identifiers.
    pub fn all(&self) -> Vec<Arc<Record>> {
        self.known().values().cloned().collect()
    }

    /// A network that a user made, by its identifier, its name, or the beginning of its identifier.
    ///
    /// # Errors
    /// [`Refusal::Ambiguous`].
    pub fn find(&self, name: &str) -> Result<Option<Arc<Record>>, Refusal> {
        let known = self.known();
        let by_name = || known.values().find(|record| record.name == name);
        if let Some(record) = known.get(name).or_else(by_name) {
            return Ok(Some(record.clone()));
        }
        let begun = known.values().filter(|record| !name.is_empty() && record.id.starts_with(name));
        match begun.collect::<Vec<_>>()[..] {
            [] => Ok(None),
            [record] => Ok(Some(record.clone())),
            ref many => Err(Refusal::Ambiguous { name: name.to_owned(), count: many.len() }),
        }
    }

    /// Whether containers are in a network.
    pub fn is_used(&self, id: &str) -> bool {
        !self.endpoints(id).is_empty()
    }

    /// Tells `docker events` that a container entered or left a network.
    pub(crate) fn moved(&self, action: &str, id: &str, name: &str, kind: &str, container: &str) {
        let attributes = [("container", container), ("name", name), ("type", kind)];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.shared.events.publish("network", action, id, attributes.into());
    }

    /// Tells `docker events` that networks nobody uses were removed.
    pub fn pruned(&self) {
        let attributes = [("reclaimed".to_owned(), "0".to_owned())];
        self.shared.events.publish("network", "prune", "", attributes.into());
    }

    /// Containers in a network.
    fn endpoints(&self, id: &str) -> Vec<String> {
        let plugged = self.shared.network.plugged();
        let inside =
            plugged.into_iter().filter(|(_, plugs)| plugs.iter().any(|plug| plug.network == id));
        inside.map(|(container, _)| container).collect()
    }

    fn event(&self, action: &str, record: &Record, more: &[(&str, String)]) {
        let kind = if record.local.is_some() { "bridge" } else { "null" };
        let mut attributes = BTreeMap::from([
            ("name".to_owned(), record.name.clone()),
            ("type".to_owned(), kind.to_owned()),
        ]);
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.shared.events.publish("network", action, &record.id, attributes);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Record>>> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The identifier of a network that every node has.
pub fn predefined_id(name: &str) -> String {
    derived_id(&["network", name])
}

/// The same each time for a container's place in a network.
pub(crate) fn endpoint_id(container: &str, network: &str) -> String {
    match network == DEFAULT_NETWORK {
        true => derived_id(&["endpoint", container]),
        false => derived_id(&["endpoint", container, network]),
    }
}

fn setup(source: network::Error) -> Error {
    Error::NetworkSetup { source }
}

//! What the engine asks of the swarm this node may be in. The node itself answers.

use std::fmt::Debug;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::networks::Refusal;

/// How long a container that is started with the daemon waits for the swarm to be there.
const SWARM_PATIENCE: Duration = Duration::from_secs(20);

/// A network of the swarm, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmNetwork {
    pub id: String,
    pub name: String,
    pub is_internal: bool,
}

/// A container that is to be in a network of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Name or identifier.
    pub network: String,
    /// The name that its user knows the network by.
    pub network_name: String,
    pub container: String,
    /// The container's name.
    pub name: String,
    /// What else others find it by.
    pub aliases: Vec<String>,
    /// Without one, the swarm chooses.
    pub address: Option<IpAddr>,
}

/// A place in a network of the swarm, which is made on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub network: SwarmNetwork,
    pub addresses: Vec<IpNet>,
}

/// An answer that takes its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Networks of the swarm.
pub trait SwarmNetworks: Debug + Send + Sync {
    /// A network that this node knows, by its name, its identifier or the beginning of it.
    fn find(&self, name: &str) -> Option<SwarmNetwork>;

    /// Has the managers give a container its place, and waits until the network is here.
    ///
    /// # Errors
    /// In Docker's words: no such network, not one for plain containers, an address that cannot be had.
    fn attach(&self, request: AttachRequest) -> Answer<'_, Result<Attached, Refusal>>;

    /// Gives a container's place back. Managers that cannot be reached now are told later.
    fn detach(&self, network: String, container: String) -> Answer<'_, ()>;
}

/// Where the swarm is found once the node has opened it.
#[derive(Clone, Debug)]
pub(crate) struct SwarmSlot(watch::Sender<Option<Arc<dyn SwarmNetworks>>>);

impl Default for SwarmSlot {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl SwarmSlot {
    pub(crate) fn set(&self, swarm: Arc<dyn SwarmNetworks>) {
        self.0.send_replace(Some(swarm));
    }

    /// The swarm, where there is one already.
    pub(crate) fn now(&self) -> Option<Arc<dyn SwarmNetworks>> {
        self.0.borrow().clone()
    }

    /// The swarm, as soon as it is there.
    pub(crate) async fn soon(&self) -> Option<Arc<dyn SwarmNetworks>> {
        let mut slot = self.0.subscribe();
        let is_there = slot.wait_for(Option::is_some);
        let found = tokio::time::timeout(SWARM_PATIENCE, is_there).await.ok()?.ok()?;
        found.clone()
    }
}

//! Connections to addresses that are nobody's any more are forgotten on a task of its own: to look through all connections
//! takes the kernel milliseconds, and while it looks for some addresses, more come together. Who ended before this daemon began
//! is found by what connections lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use network::{Flows, Network};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use types::NetworkId;

use crate::board::Board;

/// How long connections of TCP may take that live on with another task than the one that is gone: nodes that hear late of
/// its end still lead clients to it, and its own node passes them on.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What is to be forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Forgetting {
    pending: Arc<Mutex<Pending>>,
    more: Arc<Notify>,
    _worker: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct Pending {
    datagrams: Gone,
    /// Nobody had these addresses a while ago.
    all: Gone,
    /// What an earlier daemon led to is to be looked through: of the host, and of these networks.
    of_host: bool,
    of_networks: BTreeSet<NetworkId>,
}

/// Addresses that are nobody's any more.
#[derive(Clone, Debug, Default)]
struct Gone {
    /// Of tasks that the host leads to from published ports.
    host: BTreeSet<IpAddr>,
    /// Of those in each network, whose containers lead there.
    networks: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
}

impl Gone {
    fn add(&mut self, other: Self) {
        self.host.extend(other.host);
        for (network, gone) in other.networks {
            self.networks.entry(network).or_default().extend(gone);
        }
    }
}

impl Forgetting {
    /// What `board` says that somebody has is left alone.
    pub(crate) fn start(network: Arc<Network>, board: Arc<Board>) -> Self {
        let (pending, more) = (Arc::<Mutex<Pending>>::default(), Arc::<Notify>::default());
        let work = work(network, board, pending.clone(), more.clone());
        let worker = Arc::new(AbortOnDropHandle::new(tokio::spawn(work)));
        Self { pending, more, _worker: worker }
    }

    /// The host is to forget connections that it led to these addresses.
    pub(crate) fn by_host(&self, gone: BTreeSet<IpAddr>) {
        self.add(Gone { host: gone, ..Gone::default() });
    }

    /// Containers of a network are to forget connections to these addresses.
    pub(crate) fn within(&self, network: NetworkId, gone: BTreeSet<IpAddr>) {
        self.add(Gone { networks: [(network, gone)].into(), ..Gone::default() });
    }

    /// All that the host leads to was told anew.
    pub(crate) fn look_by_host(&self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).of_host = true;
        self.more.notify_one();
    }

    /// All who are in a network were told anew.
    pub(crate) fn look_within(&self, network: NetworkId) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.of_networks.insert(network);
        self.more.notify_one();
    }

    fn add(&self, gone: Gone) {
        if gone.host.is_empty() && gone.networks.values().all(BTreeSet::is_empty) {
            return;
        }
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).datagrams.add(gone.clone());
        self.more.notify_one();
        let (pending, more) = (self.pending.clone(), self.more.clone());
        tokio::spawn(async move {
            tokio::time::sleep(ENDS_WITHIN).await;
            pending.lock().unwrap_or_else(PoisonError::into_inner).all.add(gone);
            more.notify_one();
        });
    }
}

async fn work(
    network: Arc<Network>,
    board: Arc<Board>,
    pending: Arc<Mutex<Pending>>,
    more: Arc<Notify>,
) {
    loop {
        more.notified().await;
        let mut taken =
            std::mem::take(&mut *pending.lock().unwrap_or_else(PoisonError::into_inner));
        look(&network, &board, &mut taken).await;
        forget(&network, &board, taken.datagrams, Flows::Datagrams).await;
        forget(&network, &board, taken.all, Flows::All).await;
    }
}

async fn forget(network: &Network, board: &Board, gone: Gone, flows: Flows) {
    if !gone.host.is_empty()
        && let Err(error) = network.forget_flows(gone.host, flows).await
    {
        warn!(%error, "connections to tasks that are gone are not forgotten");
    }
    for (id, mut gone) in gone.networks {
        let told = board.told(id).unwrap_or_default();
        gone.retain(|address| told.holders(*address).next().is_none());
        if let Err(error) = network.forget(&id.to_string(), gone, flows).await {
            warn!(network.id = %id, %error, "connections to tasks that are gone are not forgotten");
        }
    }
}

/// Adds what earlier daemons led to and nobody has any more.
async fn look(network: &Network, board: &Board, pending: &mut Pending) {
    if pending.of_host {
        match network.strays().await {
            Ok(gone) => pending.all.host.extend(gone),
            Err(error) => warn!(%error, "connections of before are not looked through"),
        }
    }
    for id in std::mem::take(&mut pending.of_networks) {
        let told = board.told(id).unwrap_or_default();
        let subnets = told.definition.iter().flat_map(|it| &it.subnets).map(|it| it.subnet);
        match network.led_to(&id.to_string(), subnets.collect()).await {
            Ok(led_to) => {
                // Virtual addresses answer nobody: who is asked by one is led on.
                let gone = led_to.into_iter().filter(|it| told.holders(*it).next().is_none());
                pending.all.networks.entry(id).or_default().extend(gone);
            }
            Err(error) => {
                warn!(network.id = %id, %error, "connections of before are not looked through");
            }
        }
    }
}

//! Connections to addresses that are nobody's any more are forgotten on a task of its own: to look through all connections
//! takes the kernel milliseconds, and while it looks for some addresses, more come together. Who ended before this daemon began
//! is found by what connections lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use network::Network;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use types::NetworkId;

use crate::board::Board;

/// What is to be forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Forgetting {
    pending: Arc<Mutex<Pending>>,
    more: Arc<Notify>,
    _worker: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct Pending {
    /// By the host, which leads to them from published ports.
    host: BTreeSet<IpAddr>,
    /// By the containers of each network.
    networks: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    /// What an earlier daemon led to is to be looked through: of the host, and of these networks.
    of_host: bool,
    of_networks: BTreeSet<NetworkId>,
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
        self.add(gone, |pending| &mut pending.host);
    }

    /// Containers of a network are to forget connections to these addresses.
    pub(crate) fn within(&self, network: NetworkId, gone: BTreeSet<IpAddr>) {
        self.add(gone, |pending| pending.networks.entry(network).or_default());
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

    fn add(
        &self,
        gone: BTreeSet<IpAddr>,
        place: impl FnOnce(&mut Pending) -> &mut BTreeSet<IpAddr>,
    ) {
        if !gone.is_empty() {
            place(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner)).extend(gone);
            self.more.notify_one();
        }
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
        if !taken.host.is_empty()
            && let Err(error) = network.forget_flows(taken.host).await
        {
            warn!(%error, "connections to tasks that are gone are not forgotten");
        }
        for (id, mut gone) in taken.networks {
            let told = board.told(id).unwrap_or_default();
            gone.retain(|address| told.holders(*address).next().is_none());
            if let Err(error) = network.forget(&id.to_string(), gone).await {
                warn!(network.id = %id, %error, "connections to tasks that are gone are not forgotten");
            }
        }
    }
}

/// Adds what earlier daemons led to and nobody has any more.
async fn look(network: &Network, board: &Board, pending: &mut Pending) {
    if pending.of_host {
        match network.strays().await {
            Ok(gone) => pending.host.extend(gone),
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
                pending.networks.entry(id).or_default().extend(gone);
            }
            Err(error) => {
                warn!(network.id = %id, %error, "connections of before are not looked through");
            }
        }
    }
}

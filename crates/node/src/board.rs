//! What this node was told of networks of the swarm, for all who look: the connector writes, everyone reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use types::network::{NetworkChange, NodeNetwork};
use types::{NetworkId, TaskId};

use crate::connector::View;
use crate::told::{Told, Touched};

/// Networks by their identifiers.
#[derive(Debug)]
pub(crate) struct Board {
    views: Mutex<BTreeMap<NetworkId, Posted>>,
    /// Counts what was made.
    made: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Posted {
    view: View,
    /// Whether the kernel has what the view says.
    is_made: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self { views: Mutex::default(), made: watch::Sender::new(0) }
    }
}

impl Board {
    /// Notes what was told. What is answered is to be made, and then [`Board::made`] to be said.
    pub(crate) fn change(&self, change: NetworkChange) -> Touched {
        let mut views = self.lock();
        let posted = views.entry(change.network).or_default();
        posted.is_made = false;
        posted.view.change(change)
    }

    /// The network is as its view says, or `trouble` says why not.
    pub(crate) fn made(&self, id: NetworkId, trouble: Option<String>) {
        if let Some(posted) = self.lock().get_mut(&id) {
            posted.is_made = true;
            posted.view.trouble = trouble;
        }
        self.made.send_modify(|count| *count += 1);
    }

    pub(crate) fn forget(&self, id: NetworkId) {
        self.lock().remove(&id);
    }

    pub(crate) fn networks(&self) -> Vec<NetworkId> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn definitions(&self) -> Vec<NodeNetwork> {
        let views = self.lock();
        views.values().filter_map(|posted| posted.view.told.definition.clone()).collect()
    }

    /// What was told of a network.
    pub(crate) fn told(&self, id: NetworkId) -> Option<Arc<Told>> {
        Some(self.lock().get(&id)?.view.told.clone())
    }

    /// What was told of all networks.
    pub(crate) fn all(&self) -> Vec<(NetworkId, Arc<Told>)> {
        self.lock().iter().map(|(id, posted)| (*id, posted.view.told.clone())).collect()
    }

    /// Reads something of a view.
    pub(crate) fn look<T>(&self, id: NetworkId, look: impl FnOnce(&View) -> T) -> Option<T> {
        Some(look(&self.lock().get(&id)?.view))
    }

    /// Whether any view fits.
    pub(crate) fn any(&self, fits: impl Fn(&View) -> bool) -> bool {
        self.lock().values().any(|posted| fits(&posted.view))
    }

    /// What all views have of something.
    pub(crate) fn gather<T, Part: IntoIterator<Item = T>>(
        &self,
        part: impl Fn(&View) -> Part,
    ) -> Vec<T> {
        self.lock().values().flat_map(|posted| part(&posted.view)).collect()
    }

    /// Waits until a network is made here that holds the task or container.
    pub(crate) async fn has_made(&self, network: NetworkId, peer: TaskId) {
        let mut made = self.made.subscribe();
        loop {
            made.borrow_and_update();
            let is_there = self
                .lock()
                .get(&network)
                .is_some_and(|posted| posted.is_made && posted.view.told.peers.contains_key(&peer));
            // The board outlives those who wait.
            if is_there || made.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Posted>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What this node was told of networks of the swarm, for all who look: the connector writes, everyone reads.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use types::network::NodeNetwork;
use types::{NetworkId, TaskId};

use crate::connector::View;

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
    /// Changes a view; what is answered is to be made, and then [`Board::made`] to be said.
    pub(crate) fn change<T>(&self, id: NetworkId, change: impl FnOnce(&mut View) -> T) -> T {
        let mut views = self.lock();
        let posted = views.entry(id).or_default();
        posted.is_made = false;
        change(&mut posted.view)
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

    pub(crate) fn definition(&self, id: NetworkId) -> Option<NodeNetwork> {
        self.lock().get(&id)?.view.definition.clone()
    }

    pub(crate) fn definitions(&self) -> Vec<NodeNetwork> {
        let views = self.lock();
        views.values().filter_map(|posted| posted.view.definition.clone()).collect()
    }

    /// A view with its definition and its trouble only, which are small.
    pub(crate) fn without_members(&self, id: NetworkId) -> Option<View> {
        let views = self.lock();
        let View { definition, trouble, .. } = &views.get(&id)?.view;
        Some(View { definition: definition.clone(), trouble: trouble.clone(), ..View::default() })
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

    pub(crate) fn view(&self, id: NetworkId) -> Option<View> {
        Some(self.lock().get(&id)?.view.clone())
    }

    /// Waits until a network is made here that holds the task or container.
    pub(crate) async fn has_made(&self, network: NetworkId, peer: TaskId) {
        let mut made = self.made.subscribe();
        loop {
            made.borrow_and_update();
            let is_there = self
                .lock()
                .get(&network)
                .is_some_and(|posted| posted.is_made && posted.view.peers.contains_key(&peer));
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

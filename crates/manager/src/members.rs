//! The managers' seats in the consensus: the leader gives and takes them, one at a time.

use std::sync::Arc;
use std::time::Duration;

use consensus::{MembershipChange, Peers};
use store::{Draft, Snapshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::node::{ManagerStatus, Reachability, Role};
use types::{Node, NodeId};

use crate::error::{Code, Error};
use crate::writer::Writer;

/// Between two looks when nothing was heard of. Reachability changes by silence, which nobody announces.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a joining manager waits for others that join at the same moment.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
const JOIN_RETRY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Members {
    writer: Arc<Writer>,
}

impl Members {
    pub(crate) fn new(writer: Arc<Writer>) -> Self {
        Self { writer }
    }

    /// Gives a node a seat without a vote. It gets its vote when it has caught up.
    ///
    /// # Errors
    /// When the node is not to be a manager, or this manager does not lead.
    pub(crate) async fn seat(
        &self,
        node: NodeId,
        raft_id: u64,
        address: String,
    ) -> Result<(), Error> {
        let seat = |draft: &mut Draft| {
            let known = draft.node(node).cloned();
            let known = known.filter(|node| node.spec.role == Role::Manager);
            let known = known.ok_or_else(|| {
                let desc = format!("node {node} is not to be a manager: promote it first");
                Error::new(Code::FailedPrecondition, desc)
            })?;
            draft.update_node(&known, |node| {
                let reachability = Reachability::Reachable;
                node.manager = Some(ManagerStatus { raft_id, address, reachability });
            });
            Ok(())
        };
        self.writer.write(seat).await?;
        let until = tokio::time::Instant::now() + JOIN_PATIENCE;
        loop {
            let change = MembershipChange::AddLearner(raft_id);
            match self.writer.consensus().change_membership(change).await {
                Err(consensus::Error::MembershipBusy) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(JOIN_RETRY).await;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Keeps seats and nodes in step while this manager leads.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let consensus = self.writer.consensus().clone();
        let (mut feed, mut peers) = (consensus.subscribe(), consensus.peers());
        loop {
            let (snapshot, known) = (consensus.snapshot(), peers.borrow_and_update().clone());
            if let Err(error) = self.settle(&snapshot, &known).await {
                warn!(%error, "managers are not in step with their nodes yet");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = peers.changed() => {}
                () = concerns_managers(&mut feed) => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Makes the first step that is due.
    async fn settle(&self, snapshot: &Snapshot, peers: &Peers) -> Result<(), Error> {
        if let Some(raft_id) = peers.caught_up.iter().find(|id| peers.reachable.contains(id)) {
            info!(raft_id, "manager has caught up and gets its vote");
            return self.change(MembershipChange::Promote(*raft_id)).await;
        }
        if let Some(raft_id) = unseated(snapshot, peers) {
            return self.unseat(raft_id).await;
        }
        self.write_reachability(snapshot, peers).await
    }

    async fn unseat(&self, raft_id: u64) -> Result<(), Error> {
        let consensus = self.writer.consensus();
        if consensus.leadership().borrow().leader == raft_id {
            // A leader cannot take its own seat away: the next one does.
            consensus.transfer_leadership();
            return Ok(());
        }
        let is_member = {
            let peers = consensus.peers();
            let peers = peers.borrow();
            peers.voters.contains(&raft_id) || peers.learners.contains(&raft_id)
        };
        if is_member {
            info!(raft_id, "manager loses its seat");
            self.change(MembershipChange::Remove(raft_id)).await?;
        }
        let clear = |draft: &mut Draft| {
            let node = draft.nodes().find(|node| raft_id_of(node) == Some(raft_id)).cloned();
            if let Some(node) = node.filter(|node| node.spec.role == Role::Worker) {
                draft.update_node(&node, |node| node.manager = None);
            }
            Ok(())
        };
        self.writer.write(clear).await
    }

    async fn change(&self, change: MembershipChange) -> Result<(), Error> {
        match self.writer.consensus().change_membership(change).await {
            Err(consensus::Error::MembershipBusy) => Ok(()),
            result => Ok(result?),
        }
    }

    async fn write_reachability(&self, snapshot: &Snapshot, peers: &Peers) -> Result<(), Error> {
        if snapshot.nodes().all(|node| reachability_change(node, peers).is_none()) {
            return Ok(());
        }
        let write = |draft: &mut Draft| {
            let nodes: Vec<_> = draft.nodes().cloned().collect();
            for node in nodes {
                let Some(changed) = reachability_change(&node, peers) else { continue };
                draft.update_node(&node, |node| {
                    if let Some(manager) = &mut node.manager {
                        manager.reachability = changed;
                    }
                });
            }
            Ok(())
        };
        self.writer.write(write).await
    }
}

/// Whether those left could agree without the member `raft_id`.
pub(crate) fn may_be_removed(peers: &Peers, raft_id: u64) -> bool {
    let left = peers.voters.iter().filter(|voter| **voter != raft_id);
    let reachable = left.clone().filter(|voter| peers.reachable.contains(voter)).count();
    !peers.voters.contains(&raft_id) || reachable > left.count() / 2
}

/// A member, or a node with a seat, that is to have none.
fn unseated(snapshot: &Snapshot, peers: &Peers) -> Option<u64> {
    let demoted = snapshot
        .nodes()
        .filter(|node| node.spec.role == Role::Worker)
        .filter_map(|node| raft_id_of(node));
    let seats: std::collections::BTreeSet<_> =
        snapshot.nodes().filter_map(|node| raft_id_of(node)).collect();
    let forgotten = peers.voters.iter().chain(&peers.learners).filter(|id| !seats.contains(id));
    let mut unseated = demoted.chain(forgotten.copied());
    unseated.find(|id| may_be_removed(peers, *id))
}

fn raft_id_of(node: &Node) -> Option<u64> {
    node.manager.as_ref().map(|manager| manager.raft_id)
}

fn reachability_change(node: &Node, peers: &Peers) -> Option<Reachability> {
    let manager = node.manager.as_ref()?;
    let is_member =
        peers.voters.contains(&manager.raft_id) || peers.learners.contains(&manager.raft_id);
    let now = match peers.reachable.contains(&manager.raft_id) {
        _ if !is_member => return None,
        true => Reachability::Reachable,
        false => Reachability::Unreachable,
    };
    (now != manager.reachability).then_some(now)
}

/// Waits for a change of a node's role or of its existence.
async fn concerns_managers(feed: &mut tokio::sync::broadcast::Receiver<consensus::Applied>) {
    loop {
        match feed.recv().await {
            Ok(applied) => {
                let nodes = |event: &store::Event| matches!(event.key, store::Key::Node(_));
                if applied.events.iter().any(nodes) {
                    return;
                }
            }
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => return,
            Err(tokio::sync::broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

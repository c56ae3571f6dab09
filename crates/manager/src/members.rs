//! The managers' seats in the consensus: the leader gives and takes them, one at a time.

use std::sync::Arc;
use std::time::Duration;

use consensus::MembershipChange;
use planner::managers::{Step, next_step, write_step};
use store::{Draft, Snapshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::node::{ManagerStatus, Reachability, Role};
use types::{NodeId, Peers};

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
        let (mut frame, mut peers) = (consensus.frame(), consensus.peers());
        loop {
            frame.mark_unchanged();
            let (snapshot, known) = (consensus.snapshot(), peers.borrow_and_update().clone());
            if let Err(error) = self.settle(&snapshot, &known).await {
                warn!(%error, "managers are not in step with their nodes yet");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = peers.changed() => {}
                _ = frame.changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    async fn settle(&self, snapshot: &Snapshot, peers: &Peers) -> Result<(), Error> {
        let consensus = self.writer.consensus();
        let leader = consensus.leadership().borrow().leader;
        let Some(step) = next_step(snapshot, peers, leader) else { return Ok(()) };
        match step {
            Step::GiveVote(raft_id) => {
                info!(raft_id, "manager has caught up and gets its vote");
                self.change(MembershipChange::Promote(raft_id)).await
            }
            Step::HandOver => {
                consensus.transfer_leadership();
                Ok(())
            }
            Step::Remove(raft_id) => {
                info!(raft_id, "manager loses its seat");
                self.change(MembershipChange::Remove(raft_id)).await
            }
            Step::ClearSeat(_) | Step::WriteReachability(_) => {
                let write = |draft: &mut Draft| {
                    write_step(draft, &step);
                    Ok(())
                };
                self.writer.write(write).await
            }
        }
    }

    async fn change(&self, change: MembershipChange) -> Result<(), Error> {
        match self.writer.consensus().change_membership(change).await {
            Err(consensus::Error::MembershipBusy) => Ok(()),
            result => Ok(result?),
        }
    }
}

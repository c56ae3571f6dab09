//! Keeps the managers' seats in the consensus in step with what their nodes are to be.

use std::collections::BTreeSet;

use store::{Draft, Snapshot};
use types::node::{Reachability, Role};
use types::{Node, NodeId, Peers};

/// The next thing to do. One is done at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A learner has caught up and gets its vote.
    GiveVote(u64),
    /// The leader itself is to lose its seat: another one has to take that from it.
    HandOver,
    /// A member that no node is to be.
    Remove(u64),
    /// The node's member is gone; the node is a worker now.
    ClearSeat(NodeId),
    /// What is known of the managers differs from what is written.
    WriteReachability(Vec<(NodeId, Reachability)>),
}

/// What is due, for the leader `leader`.
pub fn next_step(snapshot: &Snapshot, peers: &Peers, leader: u64) -> Option<Step> {
    if let Some(raft_id) = peers.caught_up.iter().find(|id| peers.reachable.contains(id)) {
        return Some(Step::GiveVote(*raft_id));
    }
    let cleared = snapshot.nodes().find(|node| {
        let seat = raft_id_of(node).filter(|_| node.spec.role == Role::Worker);
        seat.is_some_and(|raft_id| !peers.contains(raft_id))
    });
    if let Some(node) = cleared {
        return Some(Step::ClearSeat(node.id));
    }
    let wanted: BTreeSet<_> = snapshot
        .nodes()
        .filter(|node| node.spec.role == Role::Manager)
        .filter_map(|node| raft_id_of(node))
        .collect();
    let unwanted = peers.voters.iter().chain(&peers.learners).filter(|id| !wanted.contains(id));
    let mut spared = unwanted.copied().filter(|id| peers.can_spare(*id));
    if let Some(raft_id) = spared.next() {
        return Some(if raft_id == leader { Step::HandOver } else { Step::Remove(raft_id) });
    }
    let changes: Vec<_> =
        snapshot.nodes().filter_map(|node| reachability_change(node, peers)).collect();
    (!changes.is_empty()).then_some(Step::WriteReachability(changes))
}

/// Writes what a step says about nodes; the other steps are not written but made.
pub fn write_step(draft: &mut Draft, step: &Step) {
    match step {
        Step::ClearSeat(id) => {
            let node = draft.node(*id).filter(|node| node.spec.role == Role::Worker).cloned();
            if let Some(node) = node {
                draft.update_node(&node, |node| node.manager = None);
            }
        }
        Step::WriteReachability(changes) => {
            for (id, reachability) in changes {
                let Some(node) = draft.node(*id).cloned() else { continue };
                draft.update_node(&node, |node| {
                    if let Some(manager) = &mut node.manager {
                        manager.reachability = *reachability;
                    }
                });
            }
        }
        Step::GiveVote(_) | Step::HandOver | Step::Remove(_) => {}
    }
}

fn raft_id_of(node: &Node) -> Option<u64> {
    node.manager.as_ref().map(|manager| manager.raft_id)
}

fn reachability_change(node: &Node, peers: &Peers) -> Option<(NodeId, Reachability)> {
    let manager = node.manager.as_ref().filter(|seat| peers.contains(seat.raft_id))?;
    let now = match peers.reachable.contains(&manager.raft_id) {
        true => Reachability::Reachable,
        false => Reachability::Unreachable,
    };
    (now != manager.reachability).then_some((node.id, now))
}

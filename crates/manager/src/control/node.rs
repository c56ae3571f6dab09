//! Nodes: what the operator sets, and their removal.

use store::{Key, Object};
use types::NodeId;
use types::node::{NodeSpec, NodeState, Role};

use super::request::Request;
use crate::Manager;
use crate::error::{Code, Error};
use crate::writer::Writer;

impl Manager {
    /// Replaces a node's spec.
    ///
    /// # Errors
    /// Stale version, or a demotion that would leave no manager or no quorum.
    pub async fn update_node(&self, id: NodeId, version: u64, spec: NodeSpec) -> Result<(), Error> {
        self.tell(Request::UpdateNode { id, version, spec }).await
    }

    /// Removes a node that is down; with `force` also one that is not.
    ///
    /// # Errors
    /// In Docker's words, when the node is a manager or still there.
    pub async fn remove_node(&self, id: NodeId, force: bool) -> Result<(), Error> {
        self.tell(Request::RemoveNode { id, force }).await
    }
}

pub(super) async fn update(
    writer: &Writer,
    id: NodeId,
    version: u64,
    spec: NodeSpec,
) -> Result<(), Error> {
    let peers = writer.consensus().peers().borrow().clone();
    let change = |draft: &mut store::Draft| {
        let node = draft.node(id).cloned().ok_or_else(|| not_found(id))?;
        if node.meta.version != version {
            return Err(Error::out_of_sequence());
        }
        let demoted = node.spec.role == Role::Manager && spec.role == Role::Worker;
        let managers = draft.nodes().filter(|node| node.spec.role == Role::Manager).count();
        if demoted && managers == 1 {
            let desc = "attempting to demote the last manager of the swarm";
            return Err(Error::new(Code::FailedPrecondition, desc));
        }
        let seat = node.manager.as_ref().filter(|_| demoted);
        if seat.is_some_and(|seat| !peers.can_spare(seat.raft_id)) {
            return Err(consensus::Error::QuorumLoss.into());
        }
        draft.update_node(&node, |node| node.spec = spec);
        Ok(())
    };
    writer.write(change).await
}

pub(super) async fn remove(writer: &Writer, id: NodeId, force: bool) -> Result<(), Error> {
    let change = |draft: &mut store::Draft| {
        let node = draft.node(id).cloned().ok_or_else(|| not_found(id))?;
        let refuse = |desc: String| Err(Error::new(Code::FailedPrecondition, desc));
        if node.manager.is_some() {
            return refuse(format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
            ));
        }
        if !force && node.status.state == NodeState::Ready {
            return refuse(format!("node {id} is not down and can't be removed"));
        }
        draft.delete(Key::Node(id));
        super::attachment::forget_node(draft, id);
        // Whoever holds its certificate is not to speak as it any more.
        if let Some(Object::Cluster(cluster)) = draft.get(Key::Cluster) {
            let now = draft.now();
            draft.update_cluster(&cluster, |cluster| cluster.shut_out(id, now));
        }
        Ok(())
    };
    writer.write(change).await
}

fn not_found(id: NodeId) -> Error {
    Error::plain(Code::NotFound, format!("node {id} not found"))
}

//! Certificates: the leader signs them for whoever shows a join token, and for nodes of the swarm.

use std::sync::Arc;

use ca::{JoinToken, Subject};
use store::{Draft, Object};
use types::node::{Availability, NodeSpec, NodeStatus, Role};
use types::{Cluster, Meta, Node, NodeId};

use crate::clock::now;
use crate::error::{Code, Error};
use crate::methods::{IssueRequest, Issued};
use crate::writer::Writer;

/// Admits a node in the role of its token.
///
/// # Errors
/// Docker's words for a token that is not one of the two.
pub(crate) async fn issue(writer: &Writer, request: IssueRequest) -> Result<Issued, Error> {
    let cluster = cluster(writer)?;
    let role = role_of(&cluster, &request.token)?;
    let node = NodeId::from_random(rand::random());
    // Signed before the node is made: a request that cannot be signed leaves nothing behind.
    let issued = sign(writer, &cluster, node, role, &request.request)?;
    let admit = |draft: &mut Draft| {
        draft.put(new_node(node, role, request.availability));
        Ok(())
    };
    writer.write(admit).await?;
    Ok(issued)
}

fn new_node(id: NodeId, role: Role, availability: Availability) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec { role, availability, ..NodeSpec::default() },
        description: types::node::Description::default(),
        status: NodeStatus::default(),
        manager: None,
    }
}

/// Signs the next certificate of a node, in the role that it is to have now.
///
/// # Errors
/// When the node was removed from the swarm.
pub(crate) async fn renew(writer: &Writer, node: NodeId, request: &str) -> Result<Issued, Error> {
    let cluster = cluster(writer)?;
    // A write that changes nothing: only the leader may answer, and it must still be one.
    let role = |draft: &mut Draft| match draft.node(node) {
        Some(node) => Ok(node.spec.role),
        None => {
            Err(Error::new(Code::NotFound, format!("node {node} is not in the swarm any more")))
        }
    };
    let role = writer.write(role).await?;
    sign(writer, &cluster, node, role, request)
}

fn cluster(writer: &Writer) -> Result<Arc<Cluster>, Error> {
    let missing = || Error::new(Code::Internal, "the state has no cluster object");
    writer.consensus().snapshot().cluster().cloned().ok_or_else(missing)
}

fn role_of(cluster: &Cluster, shown: &str) -> Result<Role, Error> {
    let refused = || Error::invalid("A valid join token is necessary to join this cluster");
    let shown: JoinToken = shown.parse().map_err(|_| refused())?;
    let roles = [
        (Role::Worker, &cluster.root_ca.worker_token),
        (Role::Manager, &cluster.root_ca.manager_token),
    ];
    let fits = |token: &str| token.parse::<JoinToken>().is_ok_and(|token| token.matches(&shown));
    let fitting = roles.iter().find(|(_, token)| fits(token));
    fitting.map(|(role, _)| *role).ok_or_else(refused)
}

fn sign(
    writer: &Writer,
    cluster: &Cluster,
    node: NodeId,
    role: Role,
    request: &str,
) -> Result<Issued, Error> {
    let subject = Subject { node, role, cluster: cluster.id };
    let root = &cluster.root_ca;
    let lifetime = i64::try_from(cluster.spec.ca.node_cert_expiry.as_secs()).unwrap_or(i64::MAX);
    let now = now().as_nanos() / 1_000_000_000;
    let signed = ca::sign(&root.certificate, &root.key, request, &subject, lifetime, now);
    let certificate = signed.map_err(|error| Error::invalid(error.to_string()))?;
    let managers = crate::peers_in(&writer.consensus().snapshot());
    Ok(Issued { node, certificate, roots: root.trust_bundle(), managers })
}

/// A node leaves: nothing of it is waited for, and it has no seat.
pub(crate) async fn leave(writer: &Writer, node: NodeId) -> Result<(), Error> {
    let peers = writer.consensus().peers().borrow().clone();
    let write = |draft: &mut Draft| {
        let Some(Object::Node(known)) = draft.get(store::Key::Node(node)) else { return Ok(()) };
        let seat = known.manager.as_ref();
        if seat.is_some_and(|seat| !peers.can_spare(seat.raft_id)) {
            return Err(consensus::Error::QuorumLoss.into());
        }
        dispatcher::write_down(draft, node, "node left the swarm");
        if let Some(known) = draft.node(node).cloned() {
            draft.update_node(&known, |node| node.spec.role = Role::Worker);
        }
        Ok(())
    };
    writer.write(write).await
}

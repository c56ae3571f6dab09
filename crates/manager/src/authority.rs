//! Certificates: the leader signs them for whoever shows a join token, and for nodes of the swarm.

use std::sync::Arc;

use ca::{JoinToken, Subject};
use rpc::SharedIdentity;
use store::{Draft, Object, Snapshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::cluster::RootCa;
use types::node::{Availability, NodeSpec, NodeStatus, Role};
use types::{Cluster, ClusterSpec, Meta, Node, NodeId};

use crate::clock::now;
use crate::error::{Code, Error};
use crate::external;
use crate::methods::{IssueRequest, Issued};
use crate::writer::Writer;

/// Signs, with the swarm's key or through who has it.
#[derive(Debug)]
pub(crate) struct Authority {
    writer: Arc<Writer>,
    /// What this manager shows to an external authority.
    identity: SharedIdentity,
}

impl Authority {
    pub(crate) fn new(writer: Arc<Writer>, identity: SharedIdentity) -> Self {
        Self { writer, identity }
    }

    /// Admits a node in the role of its token.
    ///
    /// # Errors
    /// Docker's words for a token that is not one of the two.
    pub(crate) async fn issue(&self, request: IssueRequest) -> Result<Issued, Error> {
        let cluster = self.cluster()?;
        let role = role_of(&cluster, &request.token)?;
        let node = NodeId::from_random(rand::random());
        // Signed before the node is made: a request that cannot be signed leaves nothing behind.
        let issued = self.sign(&cluster, node, role, &request.request).await?;
        let admit = |draft: &mut Draft| {
            draft.put(new_node(node, role, request.availability));
            Ok(())
        };
        self.writer.write(admit).await?;
        Ok(issued)
    }

    /// Signs the next certificate of a node, in the role that it is to have now.
    ///
    /// # Errors
    /// When the node was removed from the swarm.
    pub(crate) async fn renew(&self, node: NodeId, request: &str) -> Result<Issued, Error> {
        // A write that changes nothing: only the leader may answer, and it must still be one.
        let role = |draft: &mut Draft| match draft.node(node) {
            Some(node) => Ok(node.present_role()),
            None => {
                Err(Error::new(Code::NotFound, format!("node {node} is not in the swarm any more")))
            }
        };
        let role = self.writer.write(role).await?;
        self.sign(&*self.cluster()?, node, role, request).await
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Error> {
        let missing = || Error::new(Code::Internal, "the state has no cluster object");
        self.writer.consensus().snapshot().cluster().cloned().ok_or_else(missing)
    }

    async fn sign(
        &self,
        cluster: &Cluster,
        node: NodeId,
        role: Role,
        request: &str,
    ) -> Result<Issued, Error> {
        let subject = Subject { node, role, cluster: cluster.id };
        let (root, spec) = (&cluster.root_ca, &cluster.spec);
        let certificate = sign(root, spec, Some(&self.identity), request, &subject).await?;
        let managers = crate::peers_in(&self.writer.consensus().snapshot());
        Ok(Issued { node, certificate, roots: root.trust_bundle(), managers })
    }

    /// Looks at whether the root that `spec` asks for could be gone to.
    ///
    /// # Errors
    /// In Docker's words, when nobody is reached who has its key.
    pub(crate) async fn check_root(&self, spec: &ClusterSpec) -> Result<(), Error> {
        let cluster = self.cluster()?;
        let planned = ca::plan(&cluster.root_ca, &spec.ca, now().as_nanos() / 1_000_000_000);
        let planned = planned.map_err(|error| Error::invalid(error.to_string()))?;
        let ca::Change::GoTo(next) = planned else { return Ok(()) };
        if !next.key.is_empty() {
            return Ok(());
        }
        let externals: Vec<_> = ca::externals_for(&spec.ca, &next.certificate, false).collect();
        match external::is_reachable(&externals, &cluster.root_ca, Some(&self.identity)).await {
            true => Ok(()),
            false => Err(Error::invalid(ca::Error::NoExternal("next").to_string())),
        }
    }

    /// Ends a rotation of the root once every node has a certificate of the new one.
    pub(crate) async fn finish_rotations(self: Arc<Self>, stop: CancellationToken) {
        let consensus = self.writer.consensus().clone();
        let mut frame = consensus.frame();
        loop {
            frame.mark_unchanged();
            if is_rotated(&consensus.snapshot()) {
                match self.finish_rotation().await {
                    Ok(()) => info!(
                        "every node has a certificate of the new root; the old one is given up"
                    ),
                    Err(error) => warn!(%error, "the rotation of the root could not be finished"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = frame.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn finish_rotation(&self) -> Result<(), Error> {
        let write = |draft: &mut Draft| {
            let Some(Object::Cluster(cluster)) = draft.get(store::Key::Cluster) else {
                return Ok(());
            };
            let mut nodes = draft.nodes();
            if !nodes.all(|node| has_newest(&cluster, node)) {
                return Ok(());
            }
            drop(nodes);
            draft.update_cluster(&cluster, |cluster| ca::finish(&mut cluster.root_ca));
            Ok(())
        };
        self.writer.write(write).await
    }
}

/// Whether a rotation is under way that waits for nobody.
fn is_rotated(snapshot: &Snapshot) -> bool {
    let is_rotating = |cluster: &Arc<Cluster>| cluster.root_ca.rotation.is_some();
    snapshot.cluster().is_some_and(is_rotating) && waiting(snapshot).is_empty()
}

/// The nodes without a certificate of the root that the swarm is on its way to; none where it is not on its way.
pub(crate) fn waiting(snapshot: &Snapshot) -> Vec<Arc<Node>> {
    let cluster = snapshot.cluster().filter(|cluster| cluster.root_ca.rotation.is_some());
    let Some(cluster) = cluster else { return Vec::new() };
    snapshot.nodes().filter(|node| !has_newest(cluster, node)).cloned().collect()
}

fn has_newest(cluster: &Cluster, node: &Node) -> bool {
    ca::is_of_newest(&cluster.root_ca, &node.description.tls).unwrap_or(false)
}

/// Has the certificate of `subject` signed: by an external authority where the settings name one, else with the key of
/// the root.
pub(crate) async fn sign(
    root: &RootCa,
    spec: &ClusterSpec,
    identity: Option<&SharedIdentity>,
    request: &str,
    subject: &Subject,
) -> Result<String, Error> {
    let signer = root.signer();
    let seconds = || now().as_nanos() / 1_000_000_000;
    let is_present = root.rotation.is_none();
    let externals: Vec<_> = ca::externals_for(&spec.ca, signer.certificate, is_present).collect();
    if !externals.is_empty() {
        let issued = external::sign(&externals, root, identity, request, subject).await?;
        let checked = ca::check_issued(signer, request, subject, &issued, seconds());
        return checked.map_err(|error| Error::new(Code::Internal, error.to_string()));
    }
    if signer.key.is_empty() {
        let which = if is_present { "current" } else { "next" };
        return Err(Error::new(Code::FailedPrecondition, ca::Error::NoExternal(which).to_string()));
    }
    let lifetime = i64::try_from(spec.ca.node_cert_expiry.as_secs()).unwrap_or(i64::MAX);
    let signed = ca::sign(signer, request, subject, lifetime, seconds());
    signed.map_err(|error| Error::invalid(error.to_string()))
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
        crate::control::attachment::forget_node(draft, node);
        if let Some(known) = draft.node(node).cloned() {
            draft.update_node(&known, |node| node.spec.role = Role::Worker);
        }
        Ok(())
    };
    writer.write(write).await
}

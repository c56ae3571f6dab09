//! What nodes hear of the swarm itself: their role, the managers, the roots to trust.

use std::sync::Arc;

use store::{Event, Object, Snapshot};
use types::assignment::{ManagerPeer, News};
use types::{Node, NodeId};

/// The part that is the same for every node.
pub(crate) struct Shared {
    managers: Arc<Vec<ManagerPeer>>,
    trust_root: Arc<str>,
    issuer_digest: Arc<str>,
    heartbeat_interval: std::time::Duration,
}

impl Shared {
    /// `None` before the cluster's first entry.
    pub(crate) fn new(snapshot: &Snapshot) -> Option<Self> {
        let cluster = snapshot.cluster()?;
        let mut managers: Vec<_> = snapshot.nodes().filter_map(|node| seat_of(node)).collect();
        managers.sort();
        Some(Self {
            managers: Arc::new(managers),
            trust_root: cluster.root_ca.trust_bundle().into(),
            issuer_digest: cluster.root_ca.signer().digest.into(),
            heartbeat_interval: crate::heartbeat_interval(cluster.spec.heartbeat_period),
        })
    }

    /// `None` for a node that is not in the cluster.
    pub(crate) fn news_of(&self, snapshot: &Snapshot, node: NodeId) -> Option<News> {
        let node = snapshot.node(node)?;
        Some(News {
            role: node.present_role(),
            managers: self.managers.clone(),
            trust_root: self.trust_root.clone(),
            issuer_digest: self.issuer_digest.clone(),
            heartbeat_interval: self.heartbeat_interval,
        })
    }
}

fn seat_of(node: &Node) -> Option<ManagerPeer> {
    let seat = node.manager.as_ref()?;
    Some(ManagerPeer { node: node.id, raft_id: seat.raft_id, address: seat.address.clone() })
}

/// Whether a change may be news for every node.
pub(crate) fn concerns_all(event: &Event) -> bool {
    let seat = |object: &Option<Object>| match object {
        Some(Object::Node(node)) => seat_of(node),
        _ => None,
    };
    matches!(event.key, store::Key::Cluster) || seat(&event.before) != seat(&event.after)
}

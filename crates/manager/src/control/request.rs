//! Requests as managers pass them on to the leader.

use serde::{Deserialize, Serialize};
use types::network::NetworkSpec;
use types::node::NodeSpec;
use types::{ClusterSpec, NetworkId, NodeId, ServiceId, ServiceSpec};

use super::attachment::{Attached, Claim};
use super::cluster::Rotation;
use super::service::{Created, Update};
use crate::methods::{IssueRequest, Issued};

/// Everything that only the leader can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    CreateService(Box<ServiceSpec>),
    UpdateService(Box<Update>),
    RemoveService(ServiceId),
    CreateNetwork(Box<NetworkSpec>),
    RemoveNetwork(NetworkId),
    UpdateNode {
        id: NodeId,
        version: u64,
        spec: NodeSpec,
    },
    RemoveNode {
        id: NodeId,
        force: bool,
    },
    UpdateCluster {
        version: u64,
        spec: Box<ClusterSpec>,
        rotation: Rotation,
    },
    /// A manager asks for its seat in the consensus.
    TakeSeat {
        node: NodeId,
        raft_id: u64,
        address: String,
    },
    Issue(IssueRequest),
    Renew {
        node: NodeId,
        request: String,
    },
    Leave(NodeId),
    /// A node asks for a container's place in a network.
    Attach {
        node: NodeId,
        claim: Claim,
    },
    Detach {
        node: NodeId,
        network: NetworkId,
        container: String,
    },
    /// All containers that a node has in networks.
    Hold {
        node: NodeId,
        claims: Vec<Claim>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    ServiceCreated(Created),
    NetworkCreated(NetworkId),
    Issued(Box<Issued>),
    Attached(Box<Attached>),
}

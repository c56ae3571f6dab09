//! Machines of the cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::network::TunnelKey;
use crate::resources::Resources;
use crate::{Annotations, Meta, NodeId};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    /// Keeps its tasks, gets no new ones.
    Pause,
    /// Its tasks go elsewhere.
    Drain,
}

/// What the operator sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub annotations: Annotations,
    pub role: Role,
    pub availability: Availability,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    #[default]
    Unknown,
    Down,
    Ready,
    Disconnected,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// The address the node speaks from.
    pub address: String,
    /// Since when the node is down.
    pub down_since: Option<crate::Timestamp>,
}

/// What the leader last knew of another manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachability {
    Unknown,
    Unreachable,
    #[default]
    Reachable,
}

/// What the node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    pub engine_version: String,
    pub engine_labels: BTreeMap<String, String>,
    /// Kind and name, as (`Volume`, `local`).
    pub plugins: Vec<(String, String)>,
    /// PEM of the trusted root and the issuer of the node's certificate.
    pub tls: TlsInfo,
    /// The newest first; none before the node's first task in an encrypted network.
    pub tunnel_keys: Vec<TunnelKey>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsInfo {
    pub trust_root: String,
    #[serde(with = "serde_bytes")]
    pub issuer_subject: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub issuer_public_key: Vec<u8>,
}

/// A manager's seat in the consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerStatus {
    pub raft_id: u64,
    /// Host and port of the cluster service.
    pub address: String,
    pub reachability: Reachability,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: NodeSpec,
    #[serde(default)]
    pub description: Description,
    #[serde(default)]
    pub status: NodeStatus,
    #[serde(default)]
    pub manager: Option<ManagerStatus>,
}

impl Node {
    /// The name that tables show: the operator's, else the host's.
    pub fn name(&self) -> &str {
        if self.spec.annotations.name.is_empty() {
            &self.description.hostname
        } else {
            &self.spec.annotations.name
        }
    }

    /// What the node is to be now: one that is demoted keeps its work as a manager until the others have let it go.
    pub fn present_role(&self) -> Role {
        match self.manager {
            Some(_) => Role::Manager,
            None => self.spec.role,
        }
    }

    /// Whether new tasks may be placed here.
    pub fn accepts_tasks(&self) -> bool {
        self.status.state == NodeState::Ready && self.spec.availability == Availability::Active
    }

    /// Whether the tasks here must run elsewhere.
    pub fn sheds_tasks(&self) -> bool {
        self.status.state == NodeState::Down || self.spec.availability == Availability::Drain
    }
}

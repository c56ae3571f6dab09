//! What managers tell a node to do, and what a node tells them.

use std::sync::Arc;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::NetworkChange;
use crate::node::Role;
use crate::{NetworkId, NodeId, Task, TaskId, TaskStatus, TaskTemplate};

/// What a manager says in a node's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionMessage {
    Assignments(AssignmentSet),
    /// All of it each time something of it changed.
    News(News),
}

/// What a node has to know of its swarm beside its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// What the node is to be. One that is demoted hears of it when it has lost its seat.
    pub role: Role,
    pub managers: Arc<Vec<ManagerPeer>>,
    /// PEM of every root certificate to be trusted.
    pub trust_root: Arc<str>,
    /// The root that the node's certificate must be signed by; another one is to be asked for otherwise.
    pub issuer_digest: Arc<str>,
    /// How often the node has to speak.
    pub heartbeat_interval: Duration,
}

/// Where a manager is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManagerPeer {
    pub node: NodeId,
    pub raft_id: u64,
    /// Host and port of the cluster service.
    pub address: String,
}

/// A node's work: all of it, or what changed since the last set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    /// Whether everything not named here is to go.
    pub is_full: bool,
    /// Templates that the node has not been sent before; each one once.
    pub templates: Vec<Arc<TaskTemplate>>,
    pub tasks: Vec<Arc<Task>>,
    /// Tasks the cluster has forgotten: the node forgets them too.
    pub removed: Vec<TaskId>,
    /// What changed in the networks of these tasks, and in the ingress network. They come before the tasks: a task finds
    /// its network made.
    #[serde(default)]
    pub networks: Vec<NetworkChange>,
    /// Networks in which the node has no task any more.
    #[serde(default)]
    pub gone_networks: Vec<NetworkId>,
}

impl AssignmentSet {
    pub fn is_empty(&self) -> bool {
        !self.is_full
            && self.tasks.is_empty()
            && self.removed.is_empty()
            && self.networks.is_empty()
            && self.gone_networks.is_empty()
    }
}

/// One task's new status, as its node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    pub task: TaskId,
    pub status: TaskStatus,
}

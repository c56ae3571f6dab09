//! What managers tell a node to do, and what a node tells them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::endpoint::PortConfig;
use crate::{ServiceId, Task, TaskId, TaskStatus, TaskTemplate};

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
    /// Ports the services of these tasks are published on; an empty list withdraws them.
    pub endpoints: Vec<ServiceEndpoint>,
}

impl AssignmentSet {
    pub fn is_empty(&self) -> bool {
        !self.is_full
            && self.tasks.is_empty()
            && self.removed.is_empty()
            && self.endpoints.is_empty()
    }
}

/// The ingress ports of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    pub service: ServiceId,
    pub ports: Vec<PortConfig>,
}

/// One task's new status, as its node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    pub task: TaskId,
    pub status: TaskStatus,
}

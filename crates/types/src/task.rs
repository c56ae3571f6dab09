//! Tasks: one run of one container on one node.
//!
//! ```text
//! NEW → PENDING → ASSIGNED → ACCEPTED → PREPARING → READY → STARTING → RUNNING
//!  └ allocator ┘ └ scheduler           └──────────── agent ─────────────┘  │
//!                                                                          ▼
//!                            COMPLETE | SHUTDOWN | FAILED | REJECTED | ORPHANED
//! ```
//! States only move forward, a task never changes its node, and a finished task is replaced, never revived.

use serde::{Deserialize, Serialize};

use crate::endpoint::PortConfig;
use crate::network::TaskNetwork;
use crate::{Meta, NodeId, ServiceId, TaskId, Timestamp};

/// Observed or desired state; the order is the life line.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum TaskState {
    #[default]
    New,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    /// Only desired: stop the task, then forget it.
    Remove,
    Orphaned,
}

impl TaskState {
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Whether the task has ended.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Whether `next` may be reported after `self`.
    pub fn may_become(self, next: Self) -> bool {
        self < next && !self.is_terminal()
    }

    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What is known of a task. From ACCEPTED on the agent writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    pub at: Timestamp,
    pub state: TaskState,
    pub message: String,
    pub err: String,
    pub container: Option<ContainerStatus>,
    /// Host-mode ports as they were bound.
    pub ports: Vec<PortConfig>,
    /// When the task first ran.
    pub running_since: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    pub id: String,
    pub pid: i32,
    pub exit_code: i32,
    /// The container's address on the node's own bridge, which its published ports go to.
    pub address: String,
}

/// Where in its service a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// Replicated services count from 1.
    Replica(u64),
    /// Global services have one task for each node.
    Node(NodeId),
}

impl Slot {
    /// The API's number: 0 for tasks of global services.
    pub fn number(self) -> u64 {
        match self {
            Self::Replica(number) => number,
            Self::Node(_) => 0,
        }
    }
}

/// How often a slot was restarted, carried from task to task so that any leader can decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartHistory {
    pub count: u64,
    /// Times of the newest restarts, oldest first, as many as `max_attempts` needs.
    pub recent: Vec<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    #[serde(default)]
    pub meta: Meta,
    pub service: ServiceId,
    pub template_version: u64,
    pub slot: Slot,
    #[serde(default)]
    pub node: Option<NodeId>,
    pub desired_state: TaskState,
    pub status: TaskStatus,
    /// Not to be started before: the restart delay.
    #[serde(default)]
    pub start_after: Option<Timestamp>,
    /// Not to be placed before: what could not even be prepared is not tried again at once.
    #[serde(default)]
    pub place_after: Option<Timestamp>,
    /// The task whose end this one waits for, and until when.
    #[serde(default)]
    pub waits_for: Option<(TaskId, Timestamp)>,
    /// Its places in networks of the cluster, given with the node.
    #[serde(default)]
    pub networks: Vec<TaskNetwork>,
    #[serde(default)]
    pub restarts: RestartHistory,
    /// It ended by itself, and its restart policy leaves it at that: its slot has what it should.
    #[serde(default)]
    pub is_settled: bool,
}

impl Task {
    /// `service.slot.task`, with the node's identifier in the slot's place for global services.
    pub fn container_name(&self, service_name: &str) -> String {
        match self.slot {
            Slot::Replica(number) => format!("{service_name}.{number}.{}", self.id),
            Slot::Node(node) => format!("{service_name}.{node}.{}", self.id),
        }
    }

    /// Whether the orchestrator still wants it to run.
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Running
    }

    /// Whether it uses its node: placed there and not ended.
    pub fn occupies_node(&self) -> bool {
        self.node.is_some() && !self.status.state.is_terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_only_move_forward_and_end_once() {
        for from in TaskState::ALL {
            for to in TaskState::ALL {
                let expected = from < to && from <= TaskState::Running;
                assert_eq!(from.may_become(to), expected, "{from:?} -> {to:?}");
            }
        }
    }

    #[test]
    fn every_state_has_one_word() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::parse(state.as_str()), Some(state));
        }
    }
}

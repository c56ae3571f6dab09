//! Services: what the user wants to run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::{ContainerSpec, Driver};
use crate::endpoint::{Endpoint, EndpointSpec, PortConfig, PublishMode};
use crate::network::Attachment;
use crate::node::Platform;
use crate::resources::Requirements;
use crate::{Annotations, Meta, ServiceId, Timestamp};

/// A service as the user described it; the system never changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    pub annotations: Annotations,
    pub task: TaskSpec,
    pub mode: Mode,
    pub update: Option<UpdateConfig>,
    pub rollback: Option<UpdateConfig>,
    pub endpoint: Option<EndpointSpec>,
    /// Networks in the place where API 1.24 had them.
    pub networks: Vec<Attachment>,
}

/// What each task of a service is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    /// `None` where the user gave no `Resources`.
    pub resources: Option<Requirements>,
    pub restart: Option<RestartPolicy>,
    pub placement: Option<Placement>,
    pub networks: Vec<Attachment>,
    pub log_driver: Option<Driver>,
    /// Counter; a change replaces every task though nothing else differs.
    pub force_update: u64,
    /// The API's `Runtime`: empty or `container`.
    pub runtime: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Replicated { replicas: u64 },
    Global,
    ReplicatedJob { max_concurrent: u64, total_completions: u64 },
    GlobalJob,
}

impl Default for Mode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

impl Mode {
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

/// Whether and when a finished task is replaced. Absent fields take [`RestartPolicy::DELAY`] and no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Option<Duration>,
    /// 0 is no limit.
    pub max_attempts: u64,
    /// Attempts older than this do not count; zero counts all.
    pub window: Option<Duration>,
}

impl RestartPolicy {
    /// Docker's default, which guards against crash loops.
    pub const DELAY: Duration = Duration::from_secs(5);

    pub fn delay(&self) -> Duration {
        self.delay.unwrap_or(Self::DELAY)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    pub constraints: Vec<String>,
    pub preferences: Vec<Preference>,
    pub platforms: Vec<Platform>,
    /// 0 is no limit.
    pub max_replicas: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preference {
    /// Level tasks over the values of a label, as `node.labels.zone`.
    Spread { descriptor: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

/// How tasks are replaced when the template changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots at a time; 0 is all.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    /// How long a new task is watched for failure; `None` is [`UpdateConfig::MONITOR`].
    pub monitor: Option<Duration>,
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

// The ratio is user input that control refuses when it is not a number, so equality is total.
impl Eq for UpdateConfig {}

impl UpdateConfig {
    pub const MONITOR: Duration = Duration::from_secs(5);

    pub fn monitor(&self) -> Duration {
        self.monitor.unwrap_or(Self::MONITOR)
    }
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: None,
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

impl UpdateState {
    pub fn is_running(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }
}

/// Progress of a rolling update, kept as data so that a new leader goes on where the old one was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
    /// Slots to replace, counted when the update began.
    pub total: u64,
    /// New tasks that failed while they were watched.
    pub failures: u64,
}

/// The template in force under one version number.
///
/// Stored once; a task names it by (service, version) instead of carrying a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTemplate {
    pub service: ServiceId,
    pub version: u64,
    pub service_name: String,
    pub service_labels: BTreeMap<String, String>,
    pub task: TaskSpec,
    /// Ports published on the task's own node.
    pub host_ports: Vec<PortConfig>,
}

impl TaskTemplate {
    pub fn new(service: ServiceId, version: u64, spec: &ServiceSpec) -> Self {
        let ports = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        Self {
            service,
            version,
            service_name: spec.annotations.name.clone(),
            service_labels: spec.annotations.labels.clone(),
            task: spec.task.clone(),
            host_ports: ports.filter(|port| port.mode == PublishMode::Host).cloned().collect(),
        }
    }

    /// Whether tasks of this template need not be replaced to satisfy `spec`.
    pub fn satisfies(&self, spec: &ServiceSpec) -> bool {
        let mut ports = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        self.task == spec.task
            && ports.by_ref().filter(|port| port.mode == PublishMode::Host).eq(&self.host_ports)
    }

    /// The policy in force, defaults filled in.
    pub fn restart(&self) -> RestartPolicy {
        self.task.restart.unwrap_or_default()
    }
}

/// The spec before the last update, for rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub spec: Arc<ServiceSpec>,
    pub template_version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: Arc<ServiceSpec>,
    /// Version of the [`TaskTemplate`] that new tasks name.
    pub template_version: u64,
    #[serde(default)]
    pub previous: Option<Previous>,
    #[serde(default)]
    pub endpoint: Endpoint,
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
}

impl Service {
    pub fn name(&self) -> &str {
        &self.spec.annotations.name
    }
}

//! Services, as `docker service` sends and reads them.

use std::collections::BTreeMap;

use crate::container::{HealthConfig, Ulimit};
use crate::mount::{Driver, Mount};
use crate::object::{Empty, is_zero};
use crate::swarm::ObjectVersion;
use crate::time::Time;

object! {
    pub struct Service {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: ObjectVersion,
        pub created_at: Time,
        pub updated_at: Time,
        pub spec: ServiceSpec,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub previous_spec: Option<ServiceSpec>,
        pub endpoint: Endpoint,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub update_status: Option<UpdateStatus>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub service_status: Option<ServiceStatus>,
    }

    pub struct ServiceSpec {
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        pub labels: Option<BTreeMap<String, String>>,
        pub task_template: TaskSpec,
        pub mode: ServiceMode,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub update_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub rollback_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "is_zero")]
        pub networks: Vec<NetworkAttachmentConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub endpoint_spec: Option<EndpointSpec>,
    }

    pub struct ServiceMode {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub replicated: Option<Replicated>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub global: Option<Empty>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub replicated_job: Option<ReplicatedJob>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub global_job: Option<Empty>,
    }

    pub struct Replicated {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub replicas: Option<u64>,
    }

    pub struct ReplicatedJob {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_concurrent: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub total_completions: Option<u64>,
    }

    pub struct TaskSpec {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub container_spec: Option<ContainerSpec>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub resources: Option<ResourceRequirements>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub restart_policy: Option<RestartPolicy>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub placement: Option<Placement>,
        #[serde(skip_serializing_if = "is_zero")]
        pub networks: Vec<NetworkAttachmentConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub log_driver: Option<Driver>,
        pub force_update: u64,
        #[serde(skip_serializing_if = "is_zero")]
        pub runtime: String,
    }

    pub struct ContainerSpec {
        #[serde(skip_serializing_if = "is_zero")]
        pub image: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub command: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub args: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub hostname: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub dir: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub user: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub groups: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub privileges: Option<serde_json::Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub init: Option<bool>,
        #[serde(skip_serializing_if = "is_zero")]
        pub stop_signal: String,
        #[serde(rename = "TTY", skip_serializing_if = "is_zero")]
        pub tty: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub open_stdin: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub mounts: Vec<Mount>,
        /// Nanoseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub stop_grace_period: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "is_zero")]
        pub hosts: Vec<String>,
        #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
        pub dns_config: Option<DnsConfig>,
        #[serde(skip_serializing_if = "is_zero")]
        pub secrets: Vec<SecretReference>,
        #[serde(skip_serializing_if = "is_zero")]
        pub configs: Vec<ConfigReference>,
        #[serde(skip_serializing_if = "is_zero")]
        pub isolation: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub sysctls: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub capability_add: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub capability_drop: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub ulimits: Vec<Ulimit>,
        #[serde(skip_serializing_if = "is_zero")]
        pub oom_score_adj: i64,
    }

    pub struct DnsConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub nameservers: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub search: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub options: Vec<String>,
    }

    pub struct SecretReference {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub file: Option<FileTarget>,
        #[serde(rename = "SecretID")]
        pub secret_id: String,
        pub secret_name: String,
    }

    pub struct ConfigReference {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub file: Option<FileTarget>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub runtime: Option<Empty>,
        #[serde(rename = "ConfigID")]
        pub config_id: String,
        pub config_name: String,
    }

    pub struct FileTarget {
        pub name: String,
        #[serde(rename = "UID")]
        pub uid: String,
        #[serde(rename = "GID")]
        pub gid: String,
        pub mode: u32,
    }

    pub struct ResourceRequirements {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub limits: Option<Limit>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub reservations: Option<Resources>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub swap_bytes: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory_swappiness: Option<i64>,
    }

    pub struct Limit {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
        pub nano_cpus: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub memory_bytes: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub pids: i64,
    }

    pub struct Resources {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
        pub nano_cpus: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub memory_bytes: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub generic_resources: Vec<GenericResource>,
    }

    pub struct GenericResource {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub named_resource_spec: Option<NamedGenericResource>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub discrete_resource_spec: Option<DiscreteGenericResource>,
    }

    pub struct NamedGenericResource {
        #[serde(skip_serializing_if = "is_zero")]
        pub kind: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub value: String,
    }

    pub struct DiscreteGenericResource {
        #[serde(skip_serializing_if = "is_zero")]
        pub kind: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub value: i64,
    }

    pub struct RestartPolicy {
        #[serde(skip_serializing_if = "is_zero")]
        pub condition: String,
        /// Nanoseconds, as all durations here.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub delay: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_attempts: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub window: Option<i64>,
    }

    pub struct Placement {
        #[serde(skip_serializing_if = "is_zero")]
        pub constraints: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub preferences: Vec<PlacementPreference>,
        #[serde(skip_serializing_if = "is_zero")]
        pub max_replicas: u64,
        #[serde(skip_serializing_if = "is_zero")]
        pub platforms: Vec<Platform>,
    }

    pub struct PlacementPreference {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub spread: Option<SpreadOver>,
    }

    pub struct SpreadOver {
        pub spread_descriptor: String,
    }

    pub struct Platform {
        #[serde(skip_serializing_if = "is_zero")]
        pub architecture: String,
        #[serde(rename = "OS", skip_serializing_if = "is_zero")]
        pub os: String,
    }

    pub struct NetworkAttachmentConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub target: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub aliases: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub driver_opts: BTreeMap<String, String>,
    }

    pub struct UpdateConfig {
        pub parallelism: u64,
        #[serde(skip_serializing_if = "is_zero")]
        pub delay: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub failure_action: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub monitor: i64,
        #[serde(serialize_with = "crate::object::number_as_go")]
        pub max_failure_ratio: f32,
        pub order: String,
    }

    pub struct EndpointSpec {
        #[serde(skip_serializing_if = "is_zero")]
        pub mode: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub ports: Vec<PortConfig>,
    }

    pub struct PortConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub protocol: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub target_port: u16,
        #[serde(skip_serializing_if = "is_zero")]
        pub published_port: u16,
        #[serde(skip_serializing_if = "is_zero")]
        pub publish_mode: String,
    }

    pub struct Endpoint {
        pub spec: EndpointSpec,
        #[serde(skip_serializing_if = "is_zero")]
        pub ports: Vec<PortConfig>,
        #[serde(rename = "VirtualIPs", skip_serializing_if = "is_zero")]
        pub virtual_ips: Vec<VirtualIp>,
    }

    pub struct VirtualIp {
        #[serde(rename = "NetworkID", skip_serializing_if = "is_zero")]
        pub network_id: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub addr: String,
    }

    pub struct UpdateStatus {
        #[serde(skip_serializing_if = "is_zero")]
        pub state: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub started_at: Option<Time>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub completed_at: Option<Time>,
        #[serde(skip_serializing_if = "is_zero")]
        pub message: String,
    }

    /// How many tasks run and how many shall, for `docker service ls`.
    pub struct ServiceStatus {
        pub running_tasks: u64,
        pub desired_tasks: u64,
        pub completed_tasks: u64,
    }

    pub struct ServiceCreateResponse {
        #[serde(rename = "ID")]
        pub id: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub warnings: Vec<String>,
    }

    pub struct ServiceUpdateResponse {
        pub warnings: Option<Vec<String>>,
    }
}

//! Tasks, as `docker service ps` and `docker node ps` read them.

use std::collections::BTreeMap;

use crate::object::is_zero;
use crate::service::{GenericResource, PortConfig, TaskSpec};
use crate::swarm::ObjectVersion;
use crate::time::Time;

object! {
    pub struct Task {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: ObjectVersion,
        pub created_at: Time,
        pub updated_at: Time,
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        pub labels: BTreeMap<String, String>,
        pub spec: TaskSpec,
        #[serde(rename = "ServiceID", skip_serializing_if = "is_zero")]
        pub service_id: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub slot: u64,
        #[serde(rename = "NodeID", skip_serializing_if = "is_zero")]
        pub node_id: String,
        pub status: TaskStatus,
        #[serde(skip_serializing_if = "is_zero")]
        pub desired_state: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub generic_resources: Vec<GenericResource>,
    }

    pub struct TaskStatus {
        pub timestamp: Time,
        #[serde(skip_serializing_if = "is_zero")]
        pub state: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub message: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub err: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub container_status: Option<ContainerStatus>,
        pub port_status: PortStatus,
    }

    pub struct ContainerStatus {
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        #[serde(rename = "PID")]
        pub pid: i32,
        pub exit_code: i32,
    }

    pub struct PortStatus {
        #[serde(skip_serializing_if = "is_zero")]
        pub ports: Vec<PortConfig>,
    }
}

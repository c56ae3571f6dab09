//! Nodes, as `docker node` sends and reads them.

use std::collections::BTreeMap;

use crate::object::is_zero;
use crate::service::{Platform, Resources};
use crate::swarm::{ObjectVersion, TlsInfo};
use crate::time::Time;

object! {
    pub struct Node {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: ObjectVersion,
        pub created_at: Time,
        pub updated_at: Time,
        pub spec: NodeSpec,
        pub description: NodeDescription,
        pub status: NodeStatus,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub manager_status: Option<ManagerStatus>,
    }

    pub struct NodeSpec {
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        pub labels: Option<BTreeMap<String, String>>,
        #[serde(skip_serializing_if = "is_zero")]
        pub role: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub availability: String,
    }

    pub struct NodeDescription {
        #[serde(skip_serializing_if = "is_zero")]
        pub hostname: String,
        pub platform: Platform,
        pub resources: Resources,
        pub engine: EngineDescription,
        #[serde(rename = "TLSInfo")]
        pub tls_info: TlsInfo,
    }

    pub struct EngineDescription {
        #[serde(skip_serializing_if = "is_zero")]
        pub engine_version: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub plugins: Vec<PluginDescription>,
    }

    pub struct PluginDescription {
        #[serde(skip_serializing_if = "is_zero")]
        pub r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
    }

    pub struct NodeStatus {
        #[serde(skip_serializing_if = "is_zero")]
        pub state: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub message: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub addr: String,
    }

    pub struct ManagerStatus {
        #[serde(skip_serializing_if = "is_zero")]
        pub leader: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub reachability: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub addr: String,
    }
}

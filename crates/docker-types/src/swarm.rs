//! The swarm itself: init, join, settings, and what `docker info` says of it.

use std::collections::BTreeMap;

use crate::mount::Driver;
use crate::object::is_zero;
use crate::time::Time;

object! {
    /// The number to send back with an update.
    pub struct ObjectVersion {
        #[serde(skip_serializing_if = "is_zero")]
        pub index: u64,
    }

    pub struct TlsInfo {
        #[serde(skip_serializing_if = "is_zero")]
        pub trust_root: String,
        /// Base64 of DER.
        #[serde(skip_serializing_if = "is_zero")]
        pub cert_issuer_subject: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub cert_issuer_public_key: String,
    }

    /// `GET /swarm`.
    pub struct Swarm {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: ObjectVersion,
        pub created_at: Time,
        pub updated_at: Time,
        pub spec: SwarmSpec,
        #[serde(rename = "TLSInfo")]
        pub tls_info: TlsInfo,
        pub root_rotation_in_progress: bool,
        pub default_addr_pool: Vec<String>,
        pub subnet_size: u32,
        pub data_path_port: u32,
        /// Left out of what `docker info` carries.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub join_tokens: Option<JoinTokens>,
    }

    pub struct JoinTokens {
        pub worker: String,
        pub manager: String,
    }

    pub struct SwarmSpec {
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        pub labels: Option<BTreeMap<String, String>>,
        pub orchestration: OrchestrationConfig,
        pub raft: RaftConfig,
        pub dispatcher: DispatcherConfig,
        #[serde(rename = "CAConfig")]
        pub ca_config: CaConfig,
        pub task_defaults: TaskDefaults,
        pub encryption_config: EncryptionConfig,
    }

    pub struct OrchestrationConfig {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub task_history_retention_limit: Option<i64>,
    }

    pub struct RaftConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub snapshot_interval: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub keep_old_snapshots: Option<u64>,
        #[serde(skip_serializing_if = "is_zero")]
        pub log_entries_for_slow_followers: u64,
        pub election_tick: i64,
        pub heartbeat_tick: i64,
    }

    pub struct DispatcherConfig {
        /// Nanoseconds.
        #[serde(skip_serializing_if = "is_zero")]
        pub heartbeat_period: i64,
    }

    pub struct CaConfig {
        /// Nanoseconds.
        #[serde(skip_serializing_if = "is_zero")]
        pub node_cert_expiry: i64,
        #[serde(rename = "ExternalCAs", skip_serializing_if = "is_zero")]
        pub external_cas: Vec<ExternalCa>,
        #[serde(rename = "SigningCACert", skip_serializing_if = "is_zero")]
        pub signing_ca_cert: String,
        #[serde(rename = "SigningCAKey", skip_serializing_if = "is_zero")]
        pub signing_ca_key: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub force_rotate: u64,
    }

    pub struct ExternalCa {
        pub protocol: String,
        #[serde(rename = "URL")]
        pub url: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub options: BTreeMap<String, String>,
        #[serde(rename = "CACert")]
        pub ca_cert: String,
    }

    pub struct TaskDefaults {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub log_driver: Option<Driver>,
    }

    pub struct EncryptionConfig {
        pub auto_lock_managers: bool,
    }

    /// Body of `POST /swarm/init`.
    pub struct InitRequest {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub data_path_port: u32,
        pub force_new_cluster: bool,
        pub spec: SwarmSpec,
        pub auto_lock_managers: bool,
        pub availability: String,
        pub default_addr_pool: Vec<String>,
        pub subnet_size: u32,
    }

    /// Body of `POST /swarm/join`.
    pub struct JoinRequest {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub remote_addrs: Vec<String>,
        pub join_token: String,
        pub availability: String,
    }

    /// Body of `POST /swarm/unlock`.
    pub struct UnlockRequest {
        pub unlock_key: String,
    }

    /// The `Swarm` part of `GET /info`.
    pub struct SwarmInfo {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub node_addr: String,
        /// `inactive`, `pending`, `active`, `error` or `locked`.
        pub local_node_state: String,
        pub control_available: bool,
        pub error: String,
        pub remote_managers: Option<Vec<Peer>>,
        #[serde(skip_serializing_if = "is_zero")]
        pub nodes: u64,
        #[serde(skip_serializing_if = "is_zero")]
        pub managers: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cluster: Option<Swarm>,
        #[serde(skip_serializing_if = "is_zero")]
        pub warnings: Vec<String>,
    }

    pub struct Peer {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub addr: String,
    }
}

//! The cluster itself: one object, `default`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Annotations, ClusterId, Meta};

/// What the operator sets with `docker swarm update`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    pub annotations: Annotations,
    /// Finished tasks kept for each slot; negative keeps all.
    pub task_history_retention: i64,
    pub raft: RaftSpec,
    /// Between two heartbeats of a node.
    pub heartbeat_period: Duration,
    pub ca: CaSpec,
    pub autolock_managers: bool,
    pub log_driver: Option<crate::container::Driver>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            annotations: Annotations { name: "default".into(), labels: BTreeMap::new() },
            task_history_retention: 5,
            raft: RaftSpec::default(),
            heartbeat_period: Duration::from_secs(5),
            ca: CaSpec::default(),
            autolock_managers: false,
            log_driver: None,
        }
    }
}

/// Defaults are Docker Swarm's, so that `swarm inspect` reads the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RaftSpec {
    pub snapshot_interval: u64,
    pub keep_old_snapshots: u64,
    pub log_entries_for_slow_followers: u64,
    pub heartbeat_tick: i64,
    pub election_tick: i64,
}

impl Default for RaftSpec {
    fn default() -> Self {
        Self {
            snapshot_interval: 10_000,
            keep_old_snapshots: 0,
            log_entries_for_slow_followers: 500,
            heartbeat_tick: 1,
            election_tick: 10,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaSpec {
    pub node_cert_expiry: Duration,
    pub external: Vec<ExternalCa>,
    /// Each change asks for a new root.
    pub force_rotate: u64,
}

impl Default for CaSpec {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { node_cert_expiry: 90 * day, external: Vec::new(), force_rotate: 0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalCa {
    pub protocol: String,
    pub url: String,
    pub options: BTreeMap<String, String>,
    pub ca_cert: String,
}

/// The root authority and the secrets that admit nodes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// PEM.
    pub certificate: String,
    /// PEM of the private key; lives only in the encrypted log.
    pub key: String,
    /// SHA-256 of the certificate's DER, in base 36, as tokens carry it.
    pub digest: String,
    pub worker_token: String,
    pub manager_token: String,
}

impl RootCa {
    /// PEM of every certificate that nodes have to trust.
    pub fn trust_bundle(&self) -> &str {
        &self.certificate
    }

    /// The digest of the root that certificates are issued under.
    pub fn issuer_digest(&self) -> &str {
        &self.digest
    }
}

impl std::fmt::Debug for RootCa {
    /// Leaves key and tokens out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("digest", &self.digest).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    /// UDP port of the overlay's data path.
    pub data_path_port: u16,
    /// Subnets that networks are cut from, as `10.0.0.0/8`.
    pub default_address_pools: Vec<String>,
    /// Prefix length of a network cut from a pool.
    pub subnet_size: u8,
}

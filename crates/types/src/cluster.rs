//! The cluster itself: one object, `default`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::REMOVED_NODES_MAX;
use crate::{Annotations, ClusterId, Meta, NodeId, Timestamp};

/// UDP port of overlays where none is named.
pub const DATA_PATH_PORT: u16 = 4_789;

/// Prefix length of networks where none is named.
pub const SUBNET_SIZE: u8 = 24;

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

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaSpec {
    pub node_cert_expiry: Duration,
    pub external: Vec<ExternalCa>,
    /// The root to go to. Empty: whichever the swarm makes itself.
    pub signing_cert: String,
    /// Its key. Empty where an external authority holds it. Kept here only on its way into the root.
    pub signing_key: String,
    /// Each change asks for a new root.
    pub force_rotate: u64,
}

impl Default for CaSpec {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self {
            node_cert_expiry: 90 * day,
            external: Vec::new(),
            signing_cert: String::new(),
            signing_key: String::new(),
            force_rotate: 0,
        }
    }
}

impl std::fmt::Debug for CaSpec {
    /// Leaves the key out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaSpec")
            .field("node_cert_expiry", &self.node_cert_expiry)
            .field("external", &self.external)
            .field("force_rotate", &self.force_rotate)
            .finish_non_exhaustive()
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
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootCa {
    /// PEM.
    pub certificate: String,
    /// PEM of the private key; lives only in the encrypted log. Empty where an external authority holds it.
    pub key: String,
    /// SHA-256 of the certificate's DER, in base 36, as tokens carry it.
    pub digest: String,
    pub worker_token: String,
    pub manager_token: String,
    /// The root that the swarm is on its way to.
    pub rotation: Option<RootRotation>,
    /// [`CaSpec::force_rotate`] as it was when a root was last asked for.
    pub forced: u64,
}

/// A root that takes the place of another once every node has a certificate of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootRotation {
    /// PEM.
    pub certificate: String,
    /// PEM of the private key. Empty where an external authority holds it.
    pub key: String,
    pub digest: String,
    /// PEM of the new root as the old one signs it: who trusts only the old one believes certificates of the new one.
    pub cross_signed: String,
}

/// What node certificates are signed with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signer<'a> {
    /// PEM of the certificate that is named as the issuer.
    pub certificate: &'a str,
    /// PEM. Empty where an external authority holds it.
    pub key: &'a str,
    /// PEM of what a node shows beside its certificate to those who do not know the issuer yet.
    pub intermediate: Option<&'a str>,
    pub digest: &'a str,
}

impl RootCa {
    /// PEM of every certificate that nodes have to trust; the one that tokens name is first.
    pub fn trust_bundle(&self) -> String {
        let next = self.rotation.as_ref().map_or("", |rotation| &rotation.certificate);
        format!("{}{next}", self.certificate)
    }

    /// The root that certificates are issued under.
    pub fn signer(&self) -> Signer<'_> {
        match &self.rotation {
            Some(next) => Signer {
                certificate: &next.certificate,
                key: &next.key,
                intermediate: Some(&next.cross_signed),
                digest: &next.digest,
            },
            None => Signer {
                certificate: &self.certificate,
                key: &self.key,
                intermediate: None,
                digest: &self.digest,
            },
        }
    }
}

impl std::fmt::Debug for RootCa {
    /// Leaves key and tokens out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa")
            .field("digest", &self.digest)
            .field("rotation", &self.rotation)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RootRotation {
    /// Leaves the key out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootRotation").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Signer<'_> {
    /// Leaves the key out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The secret that managers' keys are locked with while autolock is on. Only managers know it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnlockKey(#[serde(with = "serde_bytes")] [u8; Self::BYTES]);

impl UnlockKey {
    pub const BYTES: usize = 32;

    pub fn from_random(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    /// There while [`ClusterSpec::autolock_managers`] is set.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
    /// UDP port of the overlay's data path.
    pub data_path_port: u16,
    /// Subnets that networks are cut from, as `10.0.0.0/8`.
    pub default_address_pools: Vec<String>,
    /// Prefix length of a network cut from a pool.
    pub subnet_size: u8,
    /// Nodes that were removed while their certificates may still be valid, the latest last.
    #[serde(default)]
    pub removed: Vec<RemovedNode>,
}

/// A node that is not to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    pub node: NodeId,
    /// When its certificate has ended, whichever it is.
    pub until: Timestamp,
}

impl Cluster {
    /// A cluster with Docker Swarm's defaults, and no root that could issue certificates yet.
    pub fn new(id: ClusterId) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa::default(),
            unlock_key: None,
            data_path_port: DATA_PATH_PORT,
            default_address_pools: Vec::new(),
            subnet_size: SUBNET_SIZE,
            removed: Vec::new(),
        }
    }

    /// Certificates of `node` are worth nothing from now on.
    pub fn shut_out(&mut self, node: NodeId, now: Timestamp) {
        self.removed.retain(|removed| removed.until > now && removed.node != node);
        let surplus = (self.removed.len() + 1).saturating_sub(REMOVED_NODES_MAX);
        self.removed.drain(..surplus);
        let until = now + self.spec.ca.node_cert_expiry;
        self.removed.push(RemovedNode { node, until });
    }

    pub fn is_shut_out(&self, node: NodeId) -> bool {
        self.removed.iter().any(|removed| removed.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster::new(ClusterId::from_random(1))
    }

    #[test]
    fn removed_nodes_are_shut_out_until_their_certificates_have_ended() {
        let (mut cluster, start) = (cluster(), Timestamp::ZERO);
        let (first, second) = (NodeId::from_random(1), NodeId::from_random(2));
        cluster.shut_out(first, start);
        cluster.shut_out(first, start);
        assert!(cluster.is_shut_out(first) && !cluster.is_shut_out(second));
        assert_eq!(cluster.removed.len(), 1);
        cluster.shut_out(second, start + cluster.spec.ca.node_cert_expiry);
        assert!(!cluster.is_shut_out(first) && cluster.is_shut_out(second));
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let mut cluster = cluster();
        let node = |number: usize| NodeId::from_random(number as u128);
        for number in 0..REMOVED_NODES_MAX + 5 {
            cluster.shut_out(node(number), Timestamp::ZERO);
        }
        assert_eq!(cluster.removed.len(), REMOVED_NODES_MAX);
        assert!(!cluster.is_shut_out(node(4)) && cluster.is_shut_out(node(5)));
    }

    #[test]
    fn debug_output_shows_no_secrets() {
        let root = RootCa {
            key: "root key".into(),
            worker_token: "token".into(),
            rotation: Some(RootRotation { key: "next key".into(), ..RootRotation::default() }),
            ..RootCa::default()
        };
        let spec = CaSpec { signing_key: "signing key".into(), ..CaSpec::default() };
        let key = UnlockKey::from_random([0x11; UnlockKey::BYTES]);
        let shown = format!("{root:?} {spec:?} {key:?} {:?}", root.signer());
        for secret in ["root key", "next key", "token", "signing key", "17"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}

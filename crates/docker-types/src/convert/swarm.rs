//! The cluster's settings.

use types::cluster::{CaSpec, ExternalCa, RaftSpec};
use types::node::TlsInfo;
use types::{Annotations, Cluster, ClusterSpec};

use super::container::{driver_from_api, driver_to_api};
use super::{Error, duration, nanos, node, time, version};
use crate::swarm as api;

/// What a client asks the cluster to be. Zero values take the defaults, as in Docker.
///
/// # Errors
/// Negative durations.
pub fn spec_from_api(spec: api::SwarmSpec) -> Result<ClusterSpec, Error> {
    let default = ClusterSpec::default();
    let or = |nanos: i64, what, default| match nanos {
        0 => Ok(default),
        nanos => duration(nanos, what),
    };
    let name = if spec.name.is_empty() { default.annotations.name.clone() } else { spec.name };
    Ok(ClusterSpec {
        annotations: Annotations { name, labels: spec.labels.unwrap_or_default() },
        task_history_retention: spec
            .orchestration
            .task_history_retention_limit
            .unwrap_or(default.task_history_retention),
        raft: raft_from_api(&spec.raft),
        heartbeat_period: or(
            spec.dispatcher.heartbeat_period,
            "dispatcher heartbeat period",
            default.heartbeat_period,
        )?,
        ca: CaSpec {
            node_cert_expiry: or(
                spec.ca_config.node_cert_expiry,
                "certificate expiry",
                default.ca.node_cert_expiry,
            )?,
            external: spec.ca_config.external_cas.into_iter().map(external_from_api).collect(),
            signing_cert: spec.ca_config.signing_ca_cert,
            signing_key: spec.ca_config.signing_ca_key,
            force_rotate: spec.ca_config.force_rotate,
        },
        autolock_managers: spec.encryption_config.auto_lock_managers,
        log_driver: spec.task_defaults.log_driver.map(driver_from_api),
    })
}

fn raft_from_api(raft: &api::RaftConfig) -> RaftSpec {
    let default = RaftSpec::default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let ticks = |value: i64, default: i64| if value == 0 { default } else { value };
    RaftSpec {
        snapshot_interval: or(raft.snapshot_interval, default.snapshot_interval),
        keep_old_snapshots: raft.keep_old_snapshots.unwrap_or(default.keep_old_snapshots),
        log_entries_for_slow_followers: or(
            raft.log_entries_for_slow_followers,
            default.log_entries_for_slow_followers,
        ),
        heartbeat_tick: ticks(raft.heartbeat_tick, default.heartbeat_tick),
        election_tick: ticks(raft.election_tick, default.election_tick),
    }
}

fn external_from_api(ca: api::ExternalCa) -> ExternalCa {
    ExternalCa { protocol: ca.protocol, url: ca.url, options: ca.options, ca_cert: ca.ca_cert }
}

/// The cluster as `GET /swarm` shows it, join tokens included.
pub fn swarm_to_api(cluster: &Cluster, tls: &TlsInfo) -> api::Swarm {
    api::Swarm {
        id: cluster.id.to_string(),
        version: version(&cluster.meta),
        created_at: time(cluster.meta.created_at),
        updated_at: time(cluster.meta.updated_at),
        spec: spec_to_api(&cluster.spec),
        tls_info: node::tls_to_api(tls),
        root_rotation_in_progress: cluster.root_ca.rotation.is_some(),
        default_addr_pool: cluster.default_address_pools.clone(),
        subnet_size: u32::from(cluster.subnet_size),
        data_path_port: u32::from(cluster.data_path_port),
        join_tokens: Some(api::JoinTokens {
            worker: cluster.root_ca.worker_token.clone(),
            manager: cluster.root_ca.manager_token.clone(),
        }),
    }
}

fn spec_to_api(spec: &ClusterSpec) -> api::SwarmSpec {
    api::SwarmSpec {
        name: spec.annotations.name.clone(),
        labels: Some(spec.annotations.labels.clone()),
        orchestration: api::OrchestrationConfig {
            task_history_retention_limit: Some(spec.task_history_retention),
        },
        raft: api::RaftConfig {
            snapshot_interval: spec.raft.snapshot_interval,
            keep_old_snapshots: Some(spec.raft.keep_old_snapshots),
            log_entries_for_slow_followers: spec.raft.log_entries_for_slow_followers,
            election_tick: spec.raft.election_tick,
            heartbeat_tick: spec.raft.heartbeat_tick,
        },
        dispatcher: api::DispatcherConfig { heartbeat_period: nanos(spec.heartbeat_period) },
        ca_config: api::CaConfig {
            node_cert_expiry: nanos(spec.ca.node_cert_expiry),
            external_cas: spec
                .ca
                .external
                .iter()
                .map(|ca| api::ExternalCa {
                    protocol: ca.protocol.clone(),
                    url: ca.url.clone(),
                    options: ca.options.clone(),
                    ca_cert: ca.ca_cert.clone(),
                })
                .collect(),
            signing_ca_cert: spec.ca.signing_cert.clone(),
            // It is taken in and never given out.
            signing_ca_key: String::new(),
            force_rotate: spec.ca.force_rotate,
        },
        task_defaults: api::TaskDefaults {
            log_driver: spec.log_driver.as_ref().map(driver_to_api),
        },
        encryption_config: api::EncryptionConfig { auto_lock_managers: spec.autolock_managers },
    }
}

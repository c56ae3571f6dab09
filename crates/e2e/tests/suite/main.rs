//! The end-to-end suite. One binary: what it costs to link is paid once.

mod ca;
mod cgroup2;
mod cluster_backup;
mod cluster_ca;
mod cluster_disk;
mod cluster_encrypted;
mod cluster_failover;
mod cluster_ingress;
mod cluster_join;
mod cluster_networks;
mod cluster_nodes;
mod cluster_placement;
mod cluster_quorum;
mod cluster_writes;
mod containers;
mod daemon;
mod digest;
mod doctor;
mod engine;
mod flags;
mod lock;
mod logs;
mod look;
mod outlive;
mod ports;
mod refusals;
mod restart;
mod service;
mod streams;
mod swarm;

use e2e::Host;

/// Creates a service whose tasks do nothing and end at once when they are to.
fn sleeper(host: &Host, name: &str, more: &[&str]) {
    let mut arguments = vec![
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        name,
        "--stop-signal",
        "SIGKILL",
    ];
    arguments.extend(more);
    arguments.extend(["busybox", "sleep", "100000"]);
    host.ok(&arguments);
}

//! The end-to-end suite. One binary: what it costs to link is paid once.

mod ca;
mod cgroup2;
mod cluster_attach;
mod cluster_backup;
mod cluster_ca;
mod cluster_disk;
mod cluster_encrypted;
mod cluster_failover;
mod cluster_ingress;
mod cluster_isolation;
mod cluster_join;
mod cluster_networks;
mod cluster_nodes;
mod cluster_own_networks;
mod cluster_placement;
mod cluster_quorum;
mod cluster_router;
mod cluster_stale;
mod cluster_updates;
mod cluster_web;
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
mod networks;
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

/// Starts a plain container that does nothing.
fn idle(host: &Host, name: &str, options: &[&str]) -> String {
    let arguments = [&["run", "-d", "--name", name], options, &["busybox", "sleep", "100000"]];
    host.ok(&arguments.concat())
}

/// Starts a plain container that answers on port 80 with its host's name.
fn answerer(host: &Host, name: &str, options: &[&str]) {
    host.ok(&[&["run", "-d", "--name", name, "--hostname", name], options, &["whoami"]].concat());
}

/// Whether a container is answered by `url`.
fn reaches(host: &Host, container: &str, url: &str) -> bool {
    let wget = ["timeout", "3", "wget", "-q", "-O", "-", url];
    host.docker(&[&["exec", container], &wget[..]].concat()).code == 0
}

//! A host with version 2 of control groups alone.

use std::path::PathBuf;

use e2e::Host;

fn host() -> Host {
    let mut host = Host::without_daemon();
    host.use_cgroup2();
    host.start();
    host.load_images();
    host
}

/// The control group of a container's first process, as the host sees it.
fn group(host: &Host, container: &str) -> PathBuf {
    let pid = host.ok(&["inspect", "--format", "{{.State.Pid}}", container]);
    let listed = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).expect("reads");
    let own = listed.lines().find_map(|line| line.strip_prefix("0::/")).expect("is in a group");
    PathBuf::from("/sys/fs/cgroup").join(own)
}

fn on_host(host: &Host, script: &str) {
    let done = host.exec(&["sh", "-c", script]);
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn containers_run_pause_end_and_outlive_the_daemon_on_control_groups_of_version_2() {
    e2e::skep_only!("stock Docker's systemd driver wants a systemd");
    let mut host = host();
    assert_eq!(host.ok(&["info", "--format", "{{.CgroupVersion}}"]).trim(), "2");
    host.ok(&["run", "-d", "--name", "box", "busybox", "sh", "-c", "while :; do sleep 1; done"]);
    assert_eq!(host.ok(&["exec", "box", "echo", "here"]), "here");
    host.ok(&["pause", "box"]);
    assert_eq!(host.ok(&["inspect", "--format", "{{.State.Status}}", "box"]).trim(), "paused");
    host.ok(&["unpause", "box"]);
    assert!(host.ok(&["top", "box"]).contains("while :"));
    host.kill();
    host.start();
    assert_eq!(host.ok(&["exec", "box", "echo", "still"]), "still");
    let held = group(&host, "box");
    host.ok(&["rm", "-f", "box"]);
    on_host(&host, &format!("test ! -e {}", held.display()));
    assert_eq!(host.docker(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]).code, 7);
    let refused = host.docker(&["run", "--rm", "busybox", "cat", "/dev/mem"]);
    assert_ne!(refused.code, 0, "devices are kept from containers");
    host.init();
    crate::sleeper(&host, "web", &["--replicas", "2"]);
    host.until_running("web", 2);
}

#[test]
fn a_command_runs_in_a_container_that_has_made_groups_of_its_own() {
    e2e::skep_only!("stock Docker's systemd driver wants a systemd");
    let host = host();
    host.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);
    let group = group(&host, "box");
    // What an init system within the container does: its processes into a leaf, controllers on above it.
    let directory = group.display();
    on_host(
        &host,
        &format!(
            "mkdir {directory}/init && cd {directory} && for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs; done"
        ),
    );
    on_host(
        &host,
        &format!(
            "cd {directory} && for c in $(cat cgroup.controllers); do echo +$c > cgroup.subtree_control; done"
        ),
    );
    assert_eq!(host.ok(&["exec", "box", "echo", "here"]), "here");
    let placed = host.ok(&["exec", "box", "cat", "/proc/self/cgroup"]);
    assert!(placed.lines().any(|line| line.ends_with("/init")), "{placed}");
    host.ok(&["rm", "-f", "box"]);
    on_host(&host, &format!("test ! -e {directory}"));
}

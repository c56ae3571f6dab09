//! The swarm's state in one file, and hosts that go on without managers.

use e2e::{Cluster, Host, nodes};

use crate::sleeper;

fn file(host: &Host, name: &str) -> String {
    host.path(name).display().to_string()
}

#[test]
fn a_lost_swarm_comes_back_from_its_backup_on_another_host() {
    e2e::skep_only!("Docker has no backup");
    let mut cluster = Cluster::swarm(1, 1);
    let spare = Host::in_swarm();
    sleeper(cluster.host(1), "kept", &["--replicas", "2", "--label", "k=v"]);
    cluster.host(1).until_running("kept", 2);
    let backup = file(cluster.host(1), "backup");
    let taken = cluster.host(1).skep("backup", &[&backup]);
    assert_eq!(taken.code, 0, "{taken:?}");
    let key = taken.stdout.lines().map(str::trim).find(|line| line.starts_with("SKEPBACKUP-1-"));
    std::fs::write(cluster.host(1).path("key"), key.expect("the key is printed")).expect("writes");
    let sealed = std::fs::read(&backup).expect("reads");
    assert!(!sealed.windows(4).any(|bytes| bytes == b"kept"), "nothing can be read in it");
    let again = cluster.host(1).skep("backup", &[&backup]);
    assert!(again.code != 0 && again.stderr.contains("File exists"), "{again:?}");

    let key_file = file(cluster.host(1), "key");
    let restore = ["--key-file", &key_file, &backup];
    let refused = spare.skep("restore", &restore);
    assert!(refused.stderr.contains("already part of a swarm"), "{refused:?}");
    spare.ok(&["swarm", "leave", "--force"]);
    let other = other_key(&spare);
    let refused = spare.skep("restore", &["--key-file", &other, &backup]);
    assert!(refused.stderr.contains("made with another key"), "{refused:?}");
    assert_eq!(spare.ok(&["info", "--format", "{{.Swarm.LocalNodeState}}"]), "inactive");

    cluster.host_mut(1).kill();
    let restored = spare.skep("restore", &restore);
    assert_eq!(restored.code, 0, "{restored:?}");
    spare.until_running("kept", 2);
    assert_eq!(spare.ok(&["service", "inspect", "kept", "--format", "{{.Spec.Labels.k}}"]), "v");
    let rows = nodes(&spare);
    let of = |status: &str| rows.iter().filter(|row| row.status == status).count();
    assert_eq!((of("Ready"), of("Down")), (1, 2), "{rows:?}");
}

/// A key that sealed nothing.
fn other_key(host: &Host) -> String {
    let key = format!("SKEPBACKUP-1-{}", "A".repeat(43));
    std::fs::write(host.path("other-key"), key).expect("writes");
    file(host, "other-key")
}

#[test]
fn a_worker_that_starts_without_managers_watches_over_its_containers_and_tells_later() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut cluster = Cluster::swarm(1, 1);
    let on_worker = ["--constraint", "node.role==worker", "--restart-delay", "1s"];
    sleeper(cluster.host(1), "watched", &on_worker);
    cluster.host(1).until_running("watched", 1);
    let container = cluster.host(2).containers("watched").remove(0);
    let kept = cluster.host(2).path("data/swarm/assignment");
    cluster.host(2).until("the work is on disk", || kept.exists());
    cluster.host_mut(1).stop();
    cluster.host_mut(2).kill();
    cluster.host_mut(2).start();
    assert_eq!(cluster.host(2).containers("watched"), std::slice::from_ref(&container));
    cluster.host(2).ok(&["kill", &container]);
    cluster.host(2).until("it has ended", || cluster.host(2).containers("watched").is_empty());
    cluster.host_mut(1).start();
    let manager = cluster.host(1);
    manager.until("its end is told", || {
        let rows = manager.docker(&["service", "ps", "watched", "--format", "{{.Error}}"]);
        rows.stdout.contains("non-zero exit (137)")
    });
    manager.until("and it is replaced", || cluster.host(2).containers("watched").len() == 1);
}

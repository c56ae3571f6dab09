//! Managers' disks: full, damaged, and far behind.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use e2e::{Cluster, Host, nodes};

use crate::sleeper;

const FULL: &str =
    "the disk of this manager is full and nothing can be written: free some space and try again";

/// Writes within which a full disk must have been noticed: log files are given their room beforehand.
const WRITES_MAX: usize = 400;

/// Creates a service that takes some room in the log.
fn create(host: &Host, name: &str) -> e2e::Printed {
    let label = format!("text={}", "x".repeat(100_000));
    let create = ["service", "create", "--detach", "--no-resolve-image", "--replicas", "0"];
    host.docker(&[&create[..], &["--label", &label, "--name", name, "busybox"]].concat())
}

fn names(host: &Host) -> Vec<String> {
    let listed = host.ok(&["service", "ls", "--format", "{{.Name}}"]);
    let mut names: Vec<_> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn error(host: &Host) -> String {
    host.ok(&["info", "--format", "{{.Swarm.Error}}"])
}

/// Takes all room that is left where the host's daemon keeps its data.
fn fill(host: &Host) -> PathBuf {
    let path = host.path("data/filler");
    let mut file = File::create(&path).expect("creates");
    for block in [1 << 20, 4 << 10, 1] {
        while file.write_all(&vec![1; block]).is_ok() {}
    }
    path
}

#[test]
fn a_manager_with_a_full_disk_only_reads_and_says_so_and_goes_on_when_there_is_room() {
    e2e::skep_only!("Docker's manager ends");
    let mut host = Host::without_daemon();
    host.use_small_disk("64m");
    host.start();
    host.load_images();
    host.init();
    sleeper(&host, "web", &["--replicas", "2"]);
    host.until_running("web", 2);
    let containers = host.containers("web");
    let filler = fill(&host);
    let mut made = Vec::new();
    let refusal = loop {
        let name = format!("s{}", made.len());
        let printed = create(&host, &name);
        if printed.code != 0 {
            break printed.stderr;
        }
        made.push(name);
        assert!(made.len() < WRITES_MAX, "the disk is full, and the manager writes on");
    };
    assert!(refusal.contains(FULL), "{refusal}");
    assert!(names(&host).iter().any(|name| name == "web"), "it reads");
    assert!(error(&host).contains(FULL), "{}", error(&host));
    assert_eq!(host.containers("web"), containers, "tasks run on");
    std::fs::remove_file(filler).expect("removes");
    host.until("it writes again", || create(&host, "later").code == 0);
    assert_eq!(error(&host), "");
    let before = names(&host);
    assert!(made.iter().all(|name| before.contains(name)), "what was answered is kept");
    host.kill();
    host.start();
    assert_eq!(names(&host), before);
    assert_eq!(host.containers("web"), containers);
}

#[test]
fn a_leader_whose_disk_fills_up_is_followed_by_another_and_comes_back() {
    e2e::skep_only!("Docker's manager ends");
    let mut cluster = Cluster::without_daemons(3);
    cluster.host(1).use_small_disk("48m");
    cluster.all(Host::start);
    cluster.host(1).init();
    cluster.join_all(3);
    let (first, second) = (cluster.host(1), cluster.host(2));
    let filler = fill(first);
    let mut count = 0;
    let mut made = Vec::new();
    while !error(first).contains(FULL) {
        let name = format!("s{count}");
        if create(second, &name).code == 0 {
            made.push(name);
        }
        count += 1;
        assert!(count < WRITES_MAX, "the disk is full, and the manager writes on");
    }
    second.until("another leads", || {
        let leader = nodes(second).into_iter().find(|row| row.manager == "Leader");
        leader.is_some_and(|row| row.hostname != "host1")
    });
    second.until("writes go on", || create(second, "during").code == 0);
    std::fs::remove_file(filler).expect("removes");
    first.until("it has caught up", || {
        error(first).is_empty() && names(first).contains(&"during".to_owned())
    });
    let all = names(second);
    assert!(made.iter().all(|name| all.contains(name)), "what was answered is kept");
    assert_eq!(names(first), all);
}

/// The files that hold a manager's state, log segments or snapshots.
fn state_files(host: &Host, kind: &str) -> Vec<PathBuf> {
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .flat_map(
                |entry| {
                    if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }
                },
            )
            .collect()
    }
    let mut found = files(&host.path("data/swarm/raft"));
    found.retain(|path| path.extension().is_some_and(|extension| extension == kind));
    found
}

#[test]
fn a_manager_with_a_damaged_log_or_snapshot_does_not_start_and_says_where_it_is_and_what_helps() {
    e2e::skep_only!("Docker's log is another");
    let mut cluster = Cluster::swarm(3, 0);
    for number in 0..3 {
        assert_eq!(create(cluster.host(1), &format!("s{number}")).code, 0);
    }
    cluster.host_mut(3).stop();
    let host = cluster.host(3);
    for (kind, told) in
        [("log", "log segment PATH is damaged at byte "), ("snap", "snapshot PATH is damaged: ")]
    {
        let file = state_files(host, kind).pop().expect("one is there");
        let mut bytes = std::fs::read(&file).expect("reads");
        let written = bytes.iter().rposition(|byte| *byte != 0).expect("something is written");
        bytes[written / 2] ^= 1;
        std::fs::write(&file, &bytes).expect("writes");
        let failed = host.daemon_fails(&[]);
        assert_ne!(failed.code, 0, "{failed:?}");
        let told = told.replace("PATH", &file.display().to_string());
        assert!(failed.stderr.contains(&told), "{failed:?}");
        let advice = "restore this manager from another one or from a backup";
        assert!(failed.stderr.contains(advice), "{failed:?}");
        bytes[written / 2] ^= 1;
        std::fs::write(&file, &bytes).expect("writes");
    }
    assert_eq!(create(cluster.host(1), "meanwhile").code, 0, "the others go on");
    cluster.host_mut(3).start();
    let host = cluster.host(3);
    host.until("it has caught up", || host.docker(&["service", "inspect", "meanwhile"]).code == 0);
}

#[test]
fn a_manager_that_was_away_for_long_catches_up_with_a_snapshot() {
    let mut cluster = Cluster::swarm(3, 0);
    let leader = cluster.leader(1);
    let (away, third) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let settings = ["swarm", "update", "--snapshot-interval", "10"];
    cluster.host(leader).ok(&settings);
    cluster.host_mut(away).kill();
    let host = cluster.host(leader);
    for number in 0..40 {
        assert_eq!(create(host, &format!("s{number}")).code, 0);
    }
    host.ok(&["service", "rm", "s0", "s1"]);
    let expected = names(host);
    cluster.host_mut(away).start();
    let back = cluster.host(away);
    back.until("it is there", || back.docker(&["service", "ls"]).code == 0);
    assert_eq!(names(back), expected);
    cluster.host_mut(third).kill();
    let host = cluster.host(leader);
    host.until("it takes part", || {
        create(host, "with-it").code == 0
            || host.docker(&["service", "inspect", "with-it"]).code == 0
    });
    let back = cluster.host(away);
    back.until("it has what it agreed to", || names(back).contains(&"with-it".to_owned()));
}

#[test]
fn each_slot_keeps_as_many_old_tasks_as_the_swarm_is_told() {
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["swarm", "update", "--task-history-limit", "2"]);
    let run = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "short",
        "--restart-delay",
        "0s",
    ];
    first.ok(&[&run[..], &["--replicas", "2", "busybox", "false"]].concat());
    let history = || {
        let rows = first.ok(&["service", "ps", "--format", "{{.Name}}", "short"]);
        rows.lines().count()
    };
    let seen = || first.ok(&["service", "ps", "-q", "--no-trunc", "short"]);
    let before = seen();
    first.until("all tasks are new", || seen().lines().all(|task| !before.contains(task)));
    first.ok(&["service", "scale", "--detach", "short=0"]);
    first.ok(&["service", "scale", "--detach", "short=2"]);
    first.until("old ones are forgotten", || history() <= 2 * 3);
}

//! Hosts fail, and come back.

use std::collections::BTreeMap;

use e2e::{Cluster, Host, nodes};

use crate::sleeper;

/// How a host goes, and how it comes back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Frozen,
    CutOff,
}

const FAULTS: [Fault; 3] = [Fault::Killed, Fault::Frozen, Fault::CutOff];

impl Fault {
    fn befall(self, cluster: &mut Cluster, number: usize) {
        match self {
            Self::Killed => cluster.host_mut(number).kill(),
            Self::Frozen => cluster.host(number).freeze(),
            Self::CutOff => cluster.cut(number),
        }
    }

    fn end(self, cluster: &mut Cluster, number: usize) {
        match self {
            Self::Killed => cluster.host_mut(number).start(),
            Self::Frozen => cluster.host(number).thaw(),
            Self::CutOff => cluster.heal(number),
        }
    }
}

fn status(host: &Host, hostname: &str) -> String {
    let row = nodes(host).into_iter().find(|row| row.hostname == hostname);
    row.map(|row| row.status).unwrap_or_default()
}

/// The running tasks of a service and their nodes.
fn places(host: &Host, service: &str) -> BTreeMap<String, String> {
    let list =
        ["service", "ps", "--filter", "desired-state=running", "--format", "{{.ID}} {{.Node}}"];
    let rows = host.ok(&[&list[..], &[service]].concat());
    rows.lines()
        .filter_map(|row| row.split_once(' '))
        .map(|(id, node)| (id.into(), node.into()))
        .collect()
}

#[test]
fn a_worker_that_fails_is_down_and_its_tasks_run_elsewhere_and_none_moves_when_it_is_back() {
    let mut cluster = Cluster::swarm(1, 3);
    for fault in FAULTS {
        let service = format!("{fault:?}").to_lowercase();
        sleeper(cluster.host(1), &service, &["--replicas", "4"]);
        cluster.host(1).until_running(&service, 4);
        let before = places(cluster.host(1), &service);
        assert!(before.values().any(|node| node == "host4"), "{before:?}");
        fault.befall(&mut cluster, 4);
        let manager = cluster.host(1);
        manager.until("it is down", || status(manager, "host4") == "Down");
        manager.until("its task is replaced", || {
            let places = places(manager, &service);
            places.len() == 4 && places.values().all(|node| node != "host4")
        });
        manager.until_running(&service, 4);
        let meanwhile = places(manager, &service);
        let stayed = before.iter().filter(|(_, node)| *node != "host4");
        assert!(
            stayed.clone().all(|(id, _)| meanwhile.contains_key(id)),
            "no other task was touched"
        );
        fault.end(&mut cluster, 4);
        let manager = cluster.host(1);
        manager.until("it is back", || status(manager, "host4") == "Ready");
        cluster.host(4).until_containers(&service, 0);
        assert_eq!(places(manager, &service), meanwhile, "nothing moves back");
        manager.until_running(&service, 4);
        let running: usize =
            (1..=3).map(|number| cluster.host(number).containers(&service).len()).sum();
        assert_eq!(running, 4, "nothing is doubled");
        manager.ok(&["service", "rm", &service]);
    }
}

#[test]
fn a_leader_that_fails_is_followed_by_another_and_writes_go_on() {
    let mut cluster = Cluster::swarm(3, 1);
    sleeper(cluster.host(1), "web", &["--constraint", "node.hostname==host4"]);
    cluster.host(1).until_running("web", 1);
    let container = cluster.host(4).containers("web");
    for fault in FAULTS {
        let name = format!("{fault:?}").to_lowercase();
        let old = cluster.leader(1);
        let other = 1 + old % 3;
        fault.befall(&mut cluster, old);
        let create = [
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--replicas",
            "0",
            "--name",
            &name,
            "busybox",
        ];
        let host = cluster.host(other);
        host.until("another takes the write", || host.docker(&create).code == 0);
        host.until("another leads", || {
            let leader = nodes(host).into_iter().find(|row| row.manager == "Leader");
            leader.is_some_and(|row| row.hostname != format!("host{old}"))
        });
        let gone = format!("host{old}");
        host.until("the lost one is shown", || {
            nodes(host).iter().any(|row| {
                row.hostname == gone && row.manager == "Unreachable" && row.status == "Down"
            })
        });
        fault.end(&mut cluster, old);
        let back = cluster.host(old);
        back.until("the old leader follows", || {
            back.docker(&["service", "inspect", &name]).code == 0
        });
        let host = cluster.host(other);
        host.until("all are well", || {
            nodes(host).iter().all(|row| row.status == "Ready" && row.manager != "Unreachable")
        });
    }
    assert_eq!(cluster.host(4).containers("web"), container, "the worker's task never noticed");
}

#[test]
fn a_leader_that_is_cut_off_shows_nothing_old_and_takes_no_write() {
    let cluster = Cluster::swarm(3, 0);
    let old = cluster.leader(1);
    let other = cluster.host(1 + old % 3);
    cluster.cut(old);
    let create = |host: &Host, name: &str| {
        host.docker(&[
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--replicas",
            "0",
            "--name",
            name,
            "busybox",
        ])
    };
    other.until("another takes the write", || create(other, "new").code == 0);
    let cut = cluster.host(old);
    let no_leader = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.";
    cut.until("it knows that it does not lead", || create(cut, "old").stderr.contains(no_leader));
    let listed = cut.docker(&["service", "ls"]);
    assert!(listed.stderr.contains(no_leader), "{listed:?}");
    cluster.heal(old);
    cut.until("it follows", || cut.docker(&["service", "inspect", "new"]).code == 0);
    assert_eq!(cut.ok(&["service", "ls", "--format", "{{.Name}}"]), "new");
}

#[test]
fn a_leader_that_is_stopped_hands_over_and_no_write_is_refused() {
    e2e::skep_only!("Docker's leader goes without a word");
    let mut cluster = Cluster::swarm(3, 0);
    let old = cluster.leader(1);
    let other = 1 + old % 3;
    cluster.host_mut(old).stop();
    let host = cluster.host(other);
    sleeper(host, "web", &["--replicas", "0"]);
    assert_ne!(cluster.leader(other), old);
    cluster.host_mut(old).start();
    assert_eq!(cluster.host(old).ok(&["service", "ls", "--format", "{{.Name}}"]), "web");
}

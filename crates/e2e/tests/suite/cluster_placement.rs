//! Which node a task goes to, and when it has to go.

use std::collections::BTreeMap;

use e2e::{Cluster, Host};

use crate::sleeper;

/// How many running tasks of a service each node has.
fn spread(host: &Host, service: &str) -> BTreeMap<String, usize> {
    let list = [
        "service",
        "ps",
        "--filter",
        "desired-state=running",
        "--format",
        "{{.Node}}|{{.CurrentState}}",
    ];
    let rows = host.ok(&[&list[..], &[service]].concat());
    let mut spread = BTreeMap::new();
    for (node, state) in rows.lines().filter_map(|row| row.split_once('|')) {
        if state.starts_with("Running") {
            *spread.entry(node.to_owned()).or_default() += 1;
        }
    }
    spread
}

fn until_spread(host: &Host, service: &str, expected: &[(&str, usize)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
    host.until(&format!("{service} is spread as {expected:?}"), || {
        spread(host, service) == expected
    });
}

fn availability(host: &Host, node: &str, availability: &str) {
    host.ok(&["node", "update", "--availability", availability, node]);
}

#[test]
fn a_drained_node_empties_in_the_services_own_time_and_gets_nothing_back() {
    let cluster = Cluster::swarm(1, 2);
    let (first, third) = (cluster.host(1), cluster.host(3));
    let script = "trap 'sleep 1; exit 7' TERM; while true; do sleep 0.1; done";
    first.ok(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "slow",
        "--replicas",
        "3",
        "--stop-grace-period",
        "60s",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    first.until_running("slow", 3);
    let container = third.containers("slow");
    assert_eq!(container.len(), 1);
    availability(first, "host3", "drain");
    third.until_containers("slow", 0);
    let ended = third.docker(&["inspect", &container[0], "--format", "{{.State.ExitCode}}"]);
    assert!(ended.code != 0 || ended.stdout.trim() == "7", "it ended by itself: {ended:?}");
    first.until_running("slow", 3);
    assert_eq!(spread(first, "slow").get("host3"), None);
    availability(first, "host3", "active");
    sleeper(first, "web", &["--replicas", "3"]);
    until_spread(first, "web", &[("host1", 1), ("host2", 1), ("host3", 1)]);
    assert_eq!(spread(first, "slow").get("host3"), None, "nothing moves back");
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    sleeper(first, "web", &["--replicas", "2"]);
    until_spread(first, "web", &[("host1", 1), ("host2", 1)]);
    availability(first, "host2", "pause");
    first.ok(&["service", "scale", "--detach", "web=5"]);
    until_spread(first, "web", &[("host1", 4), ("host2", 1)]);
    availability(first, "host2", "active");
    first.ok(&["service", "scale", "--detach", "web=8"]);
    until_spread(first, "web", &[("host1", 4), ("host2", 4)]);
}

#[test]
fn a_global_service_follows_the_nodes() {
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    sleeper(first, "agent", &["--mode", "global"]);
    until_spread(first, "agent", &[("host1", 1), ("host2", 1), ("host3", 1)]);
    availability(first, "host2", "drain");
    until_spread(first, "agent", &[("host1", 1), ("host3", 1)]);
    cluster.host(3).ok(&["swarm", "leave"]);
    until_spread(first, "agent", &[("host1", 1)]);
    availability(first, "host2", "active");
    first.until("it has left", || first.docker(&["node", "rm", "host3"]).code == 0);
    assert_eq!(cluster.join(3, &first.token("worker")).code, 0);
    until_spread(first, "agent", &[("host1", 1), ("host2", 1), ("host3", 1)]);
}

#[test]
fn constraints_choose_nodes_by_role_name_and_label_and_are_kept_to() {
    let cluster = Cluster::swarm(2, 2);
    let first = cluster.host(1);
    first.ok(&["node", "update", "--label-add", "zone=east", "host4"]);
    for (service, constraint, expected) in [
        ("managers", "node.role==manager", &[("host1", 2), ("host2", 2)][..]),
        ("named", "node.hostname==host3", &[("host3", 4)]),
        ("east", "node.labels.zone==east", &[("host4", 4)]),
        ("others", "node.labels.zone!=east", &[("host1", 2), ("host2", 1), ("host3", 1)]),
    ] {
        sleeper(first, service, &["--replicas", "4", "--constraint", constraint]);
        first.until_running(service, 4);
        let spread = spread(first, service);
        let nodes: Vec<_> = spread.keys().map(String::as_str).collect();
        assert_eq!(nodes, expected.iter().map(|(node, _)| *node).collect::<Vec<_>>(), "{service}");
    }
    first.ok(&["node", "update", "--label-rm", "zone", "host4"]);
    cluster.host(4).until_containers("east", 0);
    let reason = "no suitable node (scheduling constraints not satisfied on 4 nodes)";
    first.until("the reason is shown", || {
        first
            .ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "east"])
            .contains(reason)
    });
    first.ok(&["node", "update", "--label-add", "zone=east", "host2"]);
    until_spread(first, "east", &[("host2", 4)]);
}

#[test]
fn a_placement_preference_spreads_over_zones_before_nodes() {
    let cluster = Cluster::swarm(1, 3);
    let first = cluster.host(1);
    for (node, zone) in
        [("host1", "zone=a"), ("host2", "zone=a"), ("host3", "zone=a"), ("host4", "zone=b")]
    {
        first.ok(&["node", "update", "--label-add", zone, node]);
    }
    sleeper(first, "web", &["--replicas", "6", "--placement-pref", "spread=node.labels.zone"]);
    until_spread(first, "web", &[("host1", 1), ("host2", 1), ("host3", 1), ("host4", 3)]);
    sleeper(first, "even", &["--replicas", "4", "--replicas-max-per-node", "1"]);
    until_spread(first, "even", &[("host1", 1), ("host2", 1), ("host3", 1), ("host4", 1)]);
    first.ok(&["service", "scale", "--detach", "even=5"]);
    first.until("the reason is shown", || {
        first
            .ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "even"])
            .contains("max replicas per node limit exceed")
    });
}

//! The nodes of a swarm, as an operator sees and changes them.

use e2e::{Cluster, Host, nodes};

use crate::sleeper;

fn manager_of(host: &Host, hostname: &str) -> String {
    let row = nodes(host).into_iter().find(|row| row.hostname == hostname);
    row.map(|row| row.manager).unwrap_or_default()
}

#[test]
fn nodes_are_promoted_and_demoted_and_the_last_manager_is_not() {
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    let said = first.ok(&["node", "promote", "host2", "host3"]);
    assert_eq!(
        said,
        "Node host2 promoted to a manager in the swarm.\nNode host3 promoted to a manager in the swarm."
    );
    for number in [2, 3] {
        cluster.host(number).until("it manages", || !nodes(cluster.host(number)).is_empty());
    }
    assert_eq!(
        first.ok(&["node", "promote", "host2"]),
        format!("Node {} is already a manager.", cluster.host(2).node())
    );
    assert_eq!(
        cluster.host(2).ok(&["node", "demote", "host1"]),
        "Manager host1 demoted in the swarm."
    );
    let second = cluster.host(2);
    second.until("it does not manage any more", || manager_of(second, "host1").is_empty());
    first.until("and knows", || {
        first.docker(&["node", "ls"]).stderr.contains("Worker nodes can't be used")
    });
    second.ok(&["node", "demote", "host3"]);
    second.until("one is left", || manager_of(second, "host3").is_empty());
    assert_eq!(manager_of(second, "host2"), "Leader");
    let refusal = second.refused(&["node", "demote", "host2"]);
    assert!(refusal.contains("attempting to demote the last manager of the swarm"), "{refusal}");
    assert_eq!(
        second.ok(&["node", "demote", "host3"]),
        format!("Node {} is already a worker.", cluster.host(3).node())
    );
}

#[test]
fn a_manager_that_was_demoted_and_promoted_while_it_was_away_manages_again() {
    let mut cluster = Cluster::swarm(3, 0);
    let leader = cluster.leader(1);
    let away = 1 + leader % 3;
    cluster.host_mut(away).kill();
    let (host, name) = (cluster.host(leader), format!("host{away}"));
    host.until("it is down", || nodes(host)[away - 1].status == "Down");
    host.ok(&["node", "demote", &name]);
    host.until("its seat is gone", || nodes(host)[away - 1].manager.is_empty());
    host.ok(&["node", "promote", &name]);
    cluster.host_mut(away).start();
    let host = cluster.host(leader);
    host.until("it manages", || manager_of(host, &name) == "Reachable");
    let back = cluster.host(away);
    back.until("and it knows", || nodes(back).len() == 3);
}

#[test]
fn a_node_is_removed_only_when_it_is_down_or_by_force() {
    let mut cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    let id = cluster.host(2).node();
    let refusal = first.refused(&["node", "rm", "host2"]);
    assert!(
        refusal.contains(&format!(
            "rpc error: code = FailedPrecondition desc = node {id} is not down and can't be removed"
        )),
        "{refusal}"
    );
    let refusal = first.refused(&["node", "rm", "--force", "host1"]);
    let manager = first.node();
    assert!(refusal.contains(&format!("rpc error: code = FailedPrecondition desc = node {manager} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal")), "{refusal}");
    cluster.host(3).ok(&["swarm", "leave"]);
    first.until("it is down", || nodes(first)[2].status == "Down");
    assert_eq!(first.ok(&["node", "rm", "host3"]), "host3");
    assert_eq!(nodes(first).len(), 2);
    sleeper(first, "web", &["--replicas", "2"]);
    first.until_running("web", 2);
    assert_eq!(first.ok(&["node", "rm", "--force", "host2"]), "host2");
    cluster.host(2).until_containers("web", 0);
    first.until_containers("web", 2);
    let refusal = first.refused(&["node", "inspect", "host2"]);
    // The older docker command has words of its own for a 404.
    let is_told =
        ["node host2 not found", "No such node: host2"].iter().any(|it| refusal.contains(it));
    assert!(is_told, "{refusal}");
    cluster.host_mut(2).kill();
}

#[test]
fn nodes_are_inspected_labelled_and_their_tasks_listed() {
    let cluster = Cluster::swarm(3, 2);
    let (first, follower) = (cluster.host(1), cluster.host(2));
    follower.ok(&[
        "node",
        "update",
        "--label-add",
        "zone=east",
        "--label-add",
        "disk=fast",
        "host4",
    ]);
    let labels = ["node", "inspect", "host4", "--format", "{{json .Spec.Labels}}"];
    assert_eq!(first.ok(&labels), r#"{"disk":"fast","zone":"east"}"#);
    follower.ok(&["node", "update", "--label-rm", "disk", "host4"]);
    assert_eq!(first.ok(&labels), r#"{"zone":"east"}"#);
    follower.ok(&["node", "update", "--role", "manager", "host5"]);
    first.until("it manages", || manager_of(first, "host5") == "Reachable");
    follower.ok(&["node", "update", "--role", "worker", "host5"]);
    first.until("it does not any more", || manager_of(first, "host5").is_empty());
    let refusal = follower.refused(&["node", "update", "--label-rm", "disk", "host4"]);
    assert!(refusal.contains("key disk doesn't exist in node's labels"), "{refusal}");
    let pretty = first.ok(&["node", "inspect", "--pretty", "host3"]);
    for part in [
        "Hostname:              \thost3",
        "State:\t\t\tReady",
        "Address:\t\t10.99.0.3",
        "Manager Status:",
        "Address:\t\t10.99.0.3:2377",
        "Raft Status:\t\tReachable",
        "Leader:\t\tNo",
    ] {
        assert!(pretty.contains(part), "{part:?} in {pretty}");
    }
    let pretty = first.ok(&["node", "inspect", "--pretty", "host4"]);
    assert!(pretty.contains(" - zone=east") && !pretty.contains("Manager Status:"), "{pretty}");
    assert_eq!(first.ok(&["node", "ls", "-q", "--filter", "role=worker"]).lines().count(), 2);
    let filtered =
        first.ok(&["node", "ls", "--filter", "node.label=zone=east", "--format", "{{.Hostname}}"]);
    assert_eq!(filtered, "host4");
    sleeper(first, "web", &["--mode", "global"]);
    first.until_running("web", 5);
    let row = ["node", "ps", "--format", "{{.Node}} {{.DesiredState}}"];
    assert_eq!(follower.ok(&[&row[..], &["host4"]].concat()), "host4 Running");
    assert_eq!(follower.ok(&[&row[..], &["self"]].concat()), "host2 Running");
    let refusal = follower.refused(&["node", "ps", "host9"]);
    assert!(refusal.contains("host9"), "{refusal}");
}

#[test]
fn a_worker_leaves_and_its_tasks_go_elsewhere() {
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    sleeper(first, "web", &["--replicas", "6"]);
    first.until_running("web", 6);
    cluster.host(3).until_containers("web", 2);
    assert_eq!(cluster.host(3).ok(&["swarm", "leave"]), "Node left the swarm.");
    cluster.host(3).until_containers("web", 0);
    first.until_containers("web", 3);
    cluster.host(2).until_containers("web", 3);
    first.until("it is down", || nodes(first)[2].status == "Down");
}

#[test]
fn a_manager_leaves_only_by_force_and_the_others_go_on() {
    let cluster = Cluster::swarm(3, 0);
    let leader = cluster.host(1);
    let refusal = leader.refused(&["swarm", "leave"]);
    assert!(
        refusal.contains(
            "You are attempting to leave the swarm on a node that is participating as a manager. "
        ),
        "{refusal}"
    );
    assert!(refusal.contains("The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."), "{refusal}");
    assert_eq!(leader.ok(&["swarm", "leave", "--force"]), "Node left the swarm.");
    let second = cluster.host(2);
    assert_ne!(cluster.leader(2), 1);
    sleeper(second, "web", &["--replicas", "2"]);
    second.until_running("web", 2);
}

//! Nodes come into a swarm of several hosts, or are kept out of it.

use e2e::{Cluster, nodes};

const NO_TOKEN: &str = "A valid join token is necessary to join this cluster";

fn state(cluster: &Cluster, number: usize) -> String {
    let format = "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}";
    cluster.host(number).ok(&["info", "--format", format])
}

#[test]
fn managers_and_workers_join_all_at_once() {
    let cluster = Cluster::swarm(3, 2);
    let rows = nodes(cluster.host(2));
    let names: Vec<_> = rows.iter().map(|row| row.hostname.as_str()).collect();
    assert_eq!(names, ["host1", "host2", "host3", "host4", "host5"]);
    let managers: Vec<_> = rows.iter().map(|row| row.manager.as_str()).collect();
    assert_eq!(managers, ["Leader", "Reachable", "Reachable", "", ""]);
    assert!(rows.iter().all(|row| row.availability == "Active"), "{rows:?}");
    assert_eq!(state(&cluster, 3), "active true");
    assert_eq!(state(&cluster, 4), "active false");
    let counts = cluster.host(3).ok(&["info", "--format", "{{.Swarm.Nodes}} {{.Swarm.Managers}}"]);
    assert_eq!(counts, "5 3");
    let remote = cluster.host(4).get("/v1.41/info")["Swarm"]["RemoteManagers"].clone();
    let mut known: Vec<_> =
        remote.as_array().expect("a list").iter().map(|peer| peer["Addr"].to_string()).collect();
    known.sort();
    assert_eq!(known, [r#""10.99.0.1:2377""#, r#""10.99.0.2:2377""#, r#""10.99.0.3:2377""#]);
}

#[test]
fn tokens_that_are_rotated_invented_or_of_another_swarm_are_refused() {
    let cluster = Cluster::of(3);
    let (first, other) = (cluster.host(1), cluster.host(3));
    first.init();
    other.init();
    let old = first.token("worker");
    let new = first.ok(&["swarm", "join-token", "-q", "--rotate", "worker"]);
    let (pinned, secret) = new.rsplit_once('-').expect("four parts");
    let invented = format!("{pinned}-{}", secret.chars().rev().collect::<String>());
    for (token, expected) in [
        (old.as_str(), NO_TOKEN),
        (&invented, NO_TOKEN),
        (&other.token("worker"), "remote CA does not match fingerprint. Expected: "),
        ("SWMTKN-1-x", "invalid join token"),
        ("", NO_TOKEN),
        ("word", "invalid join token"),
    ] {
        let refused = cluster.join(2, token);
        assert!(refused.code != 0 && refused.stderr.contains(expected), "{token}: {refused:?}");
        assert_eq!(state(&cluster, 2), "inactive false", "{token}");
    }
    assert_eq!(nodes(first).len(), 1, "nobody was taken in");
    let joined = cluster.join(2, &new);
    assert_eq!((joined.code, joined.stdout.trim()), (0, "This node joined a swarm as a worker."));
}

#[test]
fn a_node_joins_in_the_role_of_its_token_and_one_swarm_at_a_time() {
    let cluster = Cluster::swarm(1, 1);
    let worker = cluster.host(2);
    let refusal = worker.refused(&["node", "ls"]);
    assert!(refusal.contains("Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."), "{refusal}");
    let again = cluster.join(2, &cluster.host(1).token("manager"));
    assert!(again.stderr.contains("This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."), "{again:?}");
    worker.ok(&["swarm", "leave"]);
    assert_eq!(state(&cluster, 2), "inactive false");
    let joined = cluster.join(2, &cluster.host(1).token("manager"));
    assert_eq!((joined.code, joined.stdout.trim()), (0, "This node joined a swarm as a manager."));
    worker.ok(&["node", "ls"]);
}

#[test]
fn a_node_may_join_drained() {
    let cluster = Cluster::of(2);
    let (first, second) = (cluster.host(1), cluster.host(2));
    first.init();
    let (token, remote) = (first.token("worker"), format!("{}:2377", first.address));
    second.ok(&["swarm", "join", "--token", &token, "--availability", "drain", &remote]);
    first.until("it is there", || {
        nodes(first).iter().any(|row| row.hostname == "host2" && row.availability == "Drain")
    });
}

#[test]
fn a_manager_that_is_not_there_cannot_be_joined() {
    let cluster = Cluster::of(2);
    cluster.host(1).init();
    let token = cluster.host(1).token("worker");
    let refusal = cluster.host(2).refused(&["swarm", "join", "--token", &token, "10.99.0.1:2378"]);
    assert!(refusal.contains("10.99.0.1:2378"), "{refusal}");
}

#[test]
fn an_interface_names_the_address_that_others_know_a_node_by() {
    let cluster = Cluster::of(2);
    let (first, second) = (cluster.host(1), cluster.host(2));
    first.ok(&["swarm", "init", "--advertise-addr", "eth0:2400", "--listen-addr", "eth0:2400"]);
    let remote = "10.99.0.1:2400";
    let join = ["swarm", "join", "--advertise-addr", "eth0", "--token"];
    second.ok(&[&join[..], &[&first.token("manager"), remote]].concat());
    let address = ["node", "inspect", "--format", "{{.ManagerStatus.Addr}}"];
    assert_eq!(second.ok(&[&address[..], &["host1"]].concat()), remote);
    assert_eq!(second.ok(&[&address[..], &["host2"]].concat()), "10.99.0.2:2377");
    let refusal = second.refused(&["swarm", "leave"]);
    assert!(
        refusal.contains("Without a Raft quorum your swarm will be inaccessible."),
        "{refusal}"
    );
}

//! Too few managers are left, or all were away.

use e2e::{Cluster, Host, nodes};

use crate::sleeper;

const NO_LEADER: &str = "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.";

fn containers(cluster: &Cluster, service: &str) -> Vec<Vec<String>> {
    let sorted = |host: &Host| {
        let mut containers = host.containers(service);
        containers.sort();
        containers
    };
    cluster.hosts().iter().map(sorted).collect()
}

/// Five hosts, each with one task of the service `web`.
fn with_web() -> Cluster {
    let cluster = Cluster::swarm(3, 2);
    sleeper(cluster.host(1), "web", &["--mode", "global"]);
    cluster.host(1).until_running("web", 5);
    cluster
}

#[test]
fn without_a_quorum_tasks_run_on_and_the_api_says_what_is_wrong_and_what_to_do() {
    e2e::skep_only!("a killed daemon of Docker takes its containers along here");
    let mut cluster = with_web();
    let before = containers(&cluster, "web");
    cluster.host_mut(2).kill();
    cluster.host_mut(3).kill();
    let first = cluster.host(1);
    first.until("the API says so", || first.docker(&["node", "ls"]).stderr.contains(NO_LEADER));
    let create = ["service", "create", "--detach", "--no-resolve-image", "busybox"];
    for arguments in [
        &create[..],
        &["service", "ls"],
        &["service", "rm", "web"],
        &["node", "update", "--label-add", "a=b", "host4"],
    ] {
        let refusal = first.refused(arguments);
        assert!(refusal.contains(NO_LEADER), "{arguments:?}: {refusal}");
    }
    assert!(first.ok(&["info", "--format", "{{.Swarm.Error}}"]).contains(NO_LEADER));
    assert_eq!(containers(&cluster, "web")[3..], before[3..], "the workers' tasks run on");
    cluster.host_mut(2).start();
    let first = cluster.host(1);
    first.until("there is a leader again", || first.docker(&["node", "ls"]).code == 0);
    cluster.host_mut(3).start();
    cluster.host(1).until_running("web", 5);
    assert_eq!(containers(&cluster, "web"), before, "nothing was restarted");
}

#[test]
fn a_new_cluster_is_forced_from_one_manager_and_nothing_is_lost() {
    let mut cluster = with_web();
    let first = cluster.host(1);
    first.ok(&["node", "update", "--label-add", "zone=east", "host4"]);
    sleeper(first, "more", &["--replicas", "6", "--constraint", "node.role==worker"]);
    first.until_running("more", 6);
    let before = containers(&cluster, "more");
    let (token, node) = (first.token("worker"), first.node());
    cluster.host_mut(2).kill();
    cluster.host_mut(3).kill();
    let first = cluster.host(1);
    first.until("the quorum is lost", || first.docker(&["node", "ls"]).code != 0);
    first.ok(&["swarm", "init", "--force-new-cluster", "--advertise-addr", &first.address]);
    first.until("the workers are found", || {
        nodes(first).iter().filter(|row| row.status == "Ready").count() == 3
    });
    assert_eq!((first.token("worker"), first.node()), (token, node), "it is the same swarm");
    let rows = nodes(first);
    assert_eq!(rows[0].manager, "Leader");
    assert!(rows[1..].iter().all(|row| row.manager.is_empty()), "{rows:?}");
    assert_eq!(
        first.ok(&["node", "inspect", "host4", "--format", "{{.Spec.Labels.zone}}"]),
        "east"
    );
    first.until_running("more", 6);
    first.until_running("web", 3);
    assert_eq!(containers(&cluster, "more"), before, "the workers' tasks run on");
    cluster.host_mut(2).start();
    assert_eq!(cluster.host(2).docker(&["swarm", "leave", "--force"]).code, 0);
    assert_eq!(cluster.join(2, &cluster.host(1).token("manager")).code, 0);
    let first = cluster.host(1);
    first.until("it has two managers", || {
        nodes(first).iter().filter(|row| !row.manager.is_empty()).count() == 2
    });
    first.until_running("web", 4);
}

#[test]
fn all_daemons_are_restarted_and_no_container_is() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut cluster = with_web();
    let before = containers(&cluster, "web");
    let ids = cluster.host(1).ok(&["service", "ps", "-q", "web"]);
    for is_crash in [false, true] {
        cluster.all(|host| if is_crash { host.kill() } else { host.stop() });
        cluster.all(Host::start);
        let first = cluster.host(1);
        first.until("all are ready", || {
            let rows = nodes(first);
            rows.len() == 5
                && rows.iter().all(|row| row.status == "Ready" && row.manager != "Unreachable")
        });
        first.until_running("web", 5);
        assert_eq!(containers(&cluster, "web"), before, "by a crash: {is_crash}");
        let first = cluster.host(1);
        assert_eq!(first.ok(&["service", "ps", "-q", "web"]), ids, "no task was replaced");
    }
}

#[test]
fn daemons_are_restarted_one_after_the_other_and_no_task_moves() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut cluster = with_web();
    cluster.host(1).ok(&["swarm", "update", "--dispatcher-heartbeat", "60s"]);
    let before = containers(&cluster, "web");
    let ids = cluster.host(1).ok(&["service", "ps", "-q", "web"]);
    for number in [5, 4, 3, 2, 1] {
        cluster.host_mut(number).stop();
        cluster.host_mut(number).start();
        let asked = cluster.host(1 + number % 3);
        asked.until("all are ready", || {
            let rows = nodes(asked);
            rows.len() == 5
                && rows.iter().all(|row| row.status == "Ready" && row.manager != "Unreachable")
        });
    }
    cluster.host(1).until_running("web", 5);
    assert_eq!(containers(&cluster, "web"), before);
    assert_eq!(cluster.host(1).ok(&["service", "ps", "-q", "web"]), ids, "no task was replaced");
}

#[test]
fn a_demotion_that_would_cost_the_quorum_is_refused() {
    let mut cluster = Cluster::swarm(3, 0);
    let leader = cluster.leader(1);
    let lost = 1 + leader % 3;
    let kept = 1 + lost % 3;
    cluster.host_mut(lost).kill();
    let host = cluster.host(leader);
    host.until("it is missed", || nodes(host)[lost - 1].manager == "Unreachable");
    let refusal = host.refused(&["node", "demote", &format!("host{kept}")]);
    assert!(
        refusal
            .contains("can't remove member from the raft: this would result in a loss of quorum"),
        "{refusal}"
    );
    host.ok(&["node", "demote", &format!("host{lost}")]);
    host.until("its seat is gone", || nodes(host)[lost - 1].manager.is_empty());
    host.until("it is down", || nodes(host)[lost - 1].status == "Down");
    host.ok(&["node", "rm", &format!("host{lost}")]);
}

//! Keys of many hosts: another root while managers go and come, and managers that are locked.

use e2e::{Cluster, Host, nodes};

use crate::ca::{is_rotating, renewed};
use crate::lock::{is_closed, local_state, unlock};
use crate::sleeper;

fn tasks(host: &Host) -> Vec<String> {
    let list = ["service", "ps", "-q", "--filter", "desired-state=running", "web"];
    let mut tasks: Vec<_> = host.ok(&list).lines().map(str::to_owned).collect();
    tasks.sort();
    tasks
}

/// A service on the workers, which nothing that befalls managers may disturb.
fn work(host: &Host) -> Vec<String> {
    sleeper(host, "web", &["--replicas", "4", "--constraint", "node.role==worker"]);
    host.until_running("web", 4);
    tasks(host)
}

#[test]
fn a_rotation_goes_on_over_the_end_of_its_leader_and_moves_no_task() {
    let mut cluster = Cluster::swarm(3, 2);
    let before = work(cluster.host(1));
    let old = cluster.host(2).ok(&["swarm", "ca"]);
    let leader = cluster.leader(1);
    let (other, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.host(leader).ok(&["swarm", "ca", "--rotate", "--detach"]);
    cluster.host_mut(leader).kill();
    let host = cluster.host(other);
    host.until("all that are there have their certificates", || {
        host.docker(&["node", "ls"]).code == 0 && renewed(host) >= 4
    });
    cluster.host_mut(leader).start();
    let host = cluster.host(other);
    host.until("all have arrived", || host.docker(&["node", "ls"]).code == 0 && !is_rotating(host));
    assert_eq!(renewed(host), 5);
    for number in [leader, other, third] {
        assert_ne!(cluster.host(number).ok(&["swarm", "ca"]), old);
    }
    assert_eq!(tasks(cluster.host(other)), before, "no task noticed");

    // What managers say to each other goes on with the new certificates, and so does joining.
    cluster.host_mut(third).stop();
    cluster.host_mut(third).start();
    cluster.host(other).until("all are there", || {
        let rows = nodes(cluster.host(other));
        rows.len() == 5
            && rows.iter().all(|row| row.status == "Ready" && row.manager != "Unreachable")
    });
    cluster.host(4).ok(&["swarm", "leave"]);
    let token = cluster.host(other).token("worker");
    let first = cluster.host(1);
    assert_eq!(first.docker(&["node", "ls"]).code, 0);
    let joined = cluster.join(4, &token);
    assert_eq!(joined.code, 0, "{joined:?}");
}

#[test]
fn locked_managers_make_no_quorum_until_they_are_unlocked() {
    let mut cluster = Cluster::swarm(3, 1);
    let before = work(cluster.host(1));
    cluster.host(2).ok(&["swarm", "update", "--autolock=true"]);
    let key = cluster.host(3).ok(&["swarm", "unlock-key", "-q"]);
    for number in 1..=3 {
        let host = cluster.host(number);
        host.until("its keys are locked", || is_closed(host));
    }
    assert!(!is_closed(cluster.host(4)), "a worker is never locked");
    for number in 1..=3 {
        cluster.host_mut(number).kill();
    }
    cluster.host_mut(4).kill();
    cluster.host_mut(4).start();
    for number in 1..=3 {
        cluster.host_mut(number).start();
        assert_eq!(local_state(cluster.host(number)), "locked");
    }
    assert_eq!(unlock(cluster.host(1), &key).code, 0);
    let refusal = cluster.host(1).refused(&["node", "ls"]);
    assert!(refusal.contains("The swarm does not have a leader."), "{refusal}");
    assert_eq!(unlock(cluster.host(2), &key).code, 0);
    let host = cluster.host(1);
    host.until("two are enough", || host.docker(&["node", "ls"]).code == 0);
    assert!(cluster.host(3).refused(&["node", "ls"]).contains("Swarm is encrypted and needs"));

    // The third is opened with a key that has gone out of use meanwhile, and takes the new one.
    let rotated = host.ok(&["swarm", "unlock-key", "-q", "--rotate"]);
    assert!(unlock(cluster.host(3), &rotated).stderr.contains("invalid key provided"));
    assert_eq!(unlock(cluster.host(3), &key).code, 0);
    let host = cluster.host(3);
    host.until("it takes part again", || host.docker(&["node", "ls"]).code == 0);
    let same = || cluster.host(3).docker(&["swarm", "unlock-key", "-q"]).stdout.trim() == rotated;
    host.until("it knows the new key", same);
    host.until("the tasks are known to run", || host.running("web").len() == 4);
    assert_eq!(tasks(host), before, "no task noticed");
}

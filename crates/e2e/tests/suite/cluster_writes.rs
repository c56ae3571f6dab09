//! Any manager takes any request.

use std::collections::BTreeSet;

use e2e::{Cluster, Host};

use crate::sleeper;

const CREATE: [&str; 4] = ["service", "create", "--detach", "--no-resolve-image"];

fn names(host: &Host) -> BTreeSet<String> {
    host.ok(&["service", "ls", "--format", "{{.Name}}"]).lines().map(str::to_owned).collect()
}

#[test]
fn a_follower_takes_writes_and_shows_them_at_once() {
    let cluster = Cluster::swarm(3, 0);
    let leader = cluster.leader(1);
    let follower = cluster.host(if leader == 3 { 2 } else { 3 });
    for number in 0..20 {
        let name = format!("s{number}");
        follower.ok(&[&CREATE[..], &["--name", &name, "--replicas", "0", "busybox"]].concat());
        assert_eq!(follower.ok(&["service", "inspect", &name, "--format", "{{.Spec.Name}}"]), name);
        follower.ok(&["service", "update", "--detach", "--label-add", "k=v", &name]);
        let label = ["service", "inspect", &name, "--format", "{{.Spec.Labels.k}}"];
        for host in cluster.hosts() {
            assert_eq!(host.ok(&label), "v", "every manager shows what was answered");
        }
        assert_eq!(follower.ok(&["service", "rm", &name]), name);
        assert!(follower.docker(&["service", "inspect", &name]).code != 0);
    }
    let refusal = follower.refused(&["service", "update", "--detach", "--replicas", "1", "none"]);
    // The older docker command has words of its own for a 404.
    let is_told =
        ["service none not found", "No such service: none"].iter().any(|it| refusal.contains(it));
    assert!(is_told, "{refusal}");
}

#[test]
fn many_clients_create_services_through_all_managers_at_once() {
    let cluster = Cluster::swarm(3, 0);
    let expected: BTreeSet<_> = (0..12)
        .flat_map(|client| (0..5).map(move |number| format!("s{client}-{number}")))
        .collect();
    std::thread::scope(|scope| {
        for client in 0..12 {
            let host = cluster.host(1 + client % 3);
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("s{client}-{number}");
                    host.ok(
                        &[&CREATE[..], &["--name", &name, "--replicas", "0", "busybox"]].concat()
                    );
                    assert!(names(host).contains(&name), "its own write is shown at once");
                }
            });
        }
    });
    for host in cluster.hosts() {
        assert_eq!(names(host), expected);
    }
}

#[test]
fn of_two_clients_that_take_one_name_one_gets_it() {
    let cluster = Cluster::swarm(3, 0);
    for number in 0..5 {
        let name = format!("s{number}");
        let create = [&CREATE[..], &["--name", &name, "--replicas", "0", "busybox"]].concat();
        let codes = std::thread::scope(|scope| {
            let create = &create;
            let take = |host: &Host| host.docker(create);
            let asked: Vec<_> =
                cluster.hosts().iter().map(|host| scope.spawn(move || take(host))).collect();
            asked.into_iter().map(|asked| asked.join().expect("ends")).collect::<Vec<_>>()
        });
        let taken = codes.iter().filter(|printed| printed.code == 0).count();
        assert_eq!(taken, 1, "{codes:?}");
        let conflict = |printed: &&e2e::Printed| {
            printed.stderr.contains("name conflicts with an existing object")
        };
        assert_eq!(codes.iter().filter(conflict).count(), 2, "{codes:?}");
    }
}

#[test]
fn tasks_run_on_all_nodes_whichever_manager_was_asked() {
    let cluster = Cluster::swarm(3, 2);
    sleeper(cluster.host(2), "web", &["--replicas", "10"]);
    cluster.host(3).until_running("web", 10);
    for host in cluster.hosts() {
        host.until_containers("web", 2);
    }
    cluster.host(3).ok(&["service", "rm", "web"]);
    for host in cluster.hosts() {
        host.until_containers("web", 0);
    }
}

//! Nothing stale: whatever befalls hosts, their kernels and the names they tell are what the store says, and nothing more.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use e2e::{Cluster, Host, nodes, skep_only, within};

use crate::{answerer, sleeper};

/// Networks, names, ports, a plain container and networks of one host: something of everything that leaves traces.
fn populate(cluster: &Cluster) {
    let first = cluster.host(1);
    let create = ["network", "create", "-d", "overlay", "--attachable"];
    first.ok(&[&create[..], &["blue"]].concat());
    first.ok(&[&create[..], &["--opt", "encrypted", "sealed"]].concat());
    let service = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    let more = ["--network", "blue", "--publish", "8080:80", "--replicas", "6"];
    // Whoever was cut off or away is to have its share again after the next update.
    let last = ["--update-parallelism", "0", "--stop-signal", "SIGKILL", "whoami"];
    first.ok(&[&service[..], &more, &last].concat());
    let both = ["--network", "blue", "--network", "sealed", "--mode", "global"];
    sleeper(first, "client", &both);
    for host in cluster.hosts() {
        host.ok(&["network", "create", "local"]);
        answerer(
            host,
            &format!("one-{}", host.hostname()),
            &["--network", "local", "-p", "8081:80"],
        );
    }
    let last = cluster.host(4);
    answerer(last, "plain", &["--network", "blue", "--restart", "always"]);
}

/// What the managers have of the service's tasks: their addresses in the network.
fn stored(manager: &Host, service: &str) -> BTreeSet<String> {
    let filters = format!(r#"{{"service":["{service}"],"desired-state":["running"]}}"#);
    let tasks = manager.get(&format!("/v1.41/tasks?filters={}", e2e::encoded(&filters)));
    let tasks = tasks.as_array().cloned().unwrap_or_default();
    let running = tasks.iter().filter(|task| task["Status"]["State"] == "running");
    let places = running.filter_map(|task| task["NetworksAttachments"].as_array());
    let places = places.flatten().filter(|it| it["Network"]["Spec"]["Name"] == "blue");
    let addresses = places.filter_map(|place| place["Addresses"][0].as_str());
    addresses.filter_map(|it| it.split('/').next().map(str::to_owned)).collect()
}

/// What a host's client is told of them.
fn named(host: &Host, service: &str) -> BTreeSet<String> {
    let Some(client) = host.containers("client").pop() else { return BTreeSet::new() };
    let name = format!("tasks.{service}");
    let said = host.docker(&["exec", &client, "nslookup", &name]).stdout;
    let after = said.split("Name:").skip(1).flat_map(str::lines);
    let addresses = after.filter_map(|line| line.split_once("Address"));
    let words = addresses.filter_map(|(_, rest)| rest.split_whitespace().nth(1));
    words.filter(|it| it.starts_with("10.")).map(str::to_owned).collect()
}

/// Until all is as the managers say, on every host; then nothing may differ.
fn settle(cluster: &Cluster, manager: usize, replicas: usize, what: &str) {
    let manager = cluster.host(manager);
    let hosts = cluster.hosts().len();
    manager.until(&format!("{what}: all nodes are ready"), || {
        nodes(manager).iter().filter(|row| row.status == "Ready").count() == hosts
    });
    manager.until_running("web", replicas);
    manager.until_running("client", hosts);
    for host in cluster.hosts() {
        host.until(&format!("{what}: {} tells the tasks' addresses", host.hostname()), || {
            let stored = stored(manager, "web");
            stored.len() == replicas && named(host, "web") == stored
        });
    }
    cluster.audit();
    for host in cluster.hosts() {
        let log = std::fs::read_to_string(host.path("log")).expect("there is a log");
        let mended = log.lines().find(|line| line.contains("was not as it should be"));
        assert_eq!(mended, None, "{what}: nothing had to be mended");
    }
}

#[test]
fn nothing_is_stale_after_crashes_reboots_partitions_and_new_leaders() {
    skep_only!("stock Docker has no audit");
    let mut cluster = Cluster::swarm(3, 1);
    populate(&cluster);
    settle(&cluster, 1, 6, "at first");
    for number in 1..=4 {
        cluster.host_mut(number).kill();
        cluster.host_mut(number).start();
    }
    settle(&cluster, 1, 6, "after crashes");
    cluster.reboot(4);
    cluster.reboot(2);
    settle(&cluster, 1, 6, "after reboots");
    cluster.cut(4);
    let first = cluster.host(1);
    first.until("it is down", || {
        nodes(first).iter().any(|row| row.hostname == "host4" && row.status == "Down")
    });
    first.ok(&["service", "scale", "--detach", "web=9"]);
    first.until_running("web", 9);
    cluster.heal(4);
    settle(&cluster, 1, 9, "after a partition");
    let leader = cluster.leader(1);
    cluster.host_mut(leader).kill();
    let other = 1 + leader % 3;
    cluster.host(other).until("another leads", || {
        let rows = nodes(cluster.host(other));
        let old = format!("host{leader}");
        rows.iter().any(|row| row.manager == "Leader" && row.hostname != old)
    });
    cluster.host(other).ok(&["service", "scale", "--detach", "web=5"]);
    cluster.host_mut(leader).start();
    settle(&cluster, other, 5, "after another leader");
}

#[test]
fn nothing_is_stale_after_hundreds_of_changes() {
    skep_only!("stock Docker has no audit");
    let cluster = Cluster::swarm(3, 1);
    populate(&cluster);
    let first = cluster.host(1);
    for count in [24, 3, 24, 6] {
        first.ok(&["service", "scale", "--detach", &format!("web={count}")]);
        first.until_running("web", count);
    }
    for _ in 0..15 {
        let before: BTreeSet<_> = first.running("web").into_iter().collect();
        first.ok(&["service", "update", "--detach", "--force", "web"]);
        first.until("all are new", || {
            let now = first.running("web");
            now.len() == 6 && now.iter().all(|container| !before.contains(container))
        });
    }
    settle(&cluster, 1, 6, "after many changes");
    first.ok(&["service", "rm", "web", "client"]);
    for host in cluster.hosts() {
        let one = format!("one-{}", host.hostname());
        host.ok(&["rm", "-f", &one]);
        host.ok(&["network", "rm", "local"]);
    }
    cluster.host(4).ok(&["rm", "-f", "plain"]);
    for host in cluster.hosts() {
        host.until("nothing of them is left", || host.docker(&["ps", "-aq"]).stdout.is_empty());
        let left = host.path("exec/network");
        host.until("no namespace is left", || {
            let folders = ["netns", "overlays", "joins"].map(|name| left.join(name));
            let count = |folder| std::fs::read_dir(folder).map_or(0, Iterator::count);
            folders.iter().map(count).sum::<usize>() == 0
        });
    }
    cluster.audit();
}

/// A client that goes on asking from one port, as servers of names and of time are asked.
fn asker(namespace: &Path, to: &str) -> UdpSocket {
    within(namespace, || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("is told so");
        socket.connect(to).expect("connects");
        socket
    })
}

/// Which container answers.
fn answer(socket: &UdpSocket) -> Option<String> {
    let mut bytes = [0; 512];
    // What is refused is refused to the next who sends or receives.
    let length = socket.send(b"who?").and_then(|_| socket.recv(&mut bytes)).ok()?;
    let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
    Some(said.lines().find_map(|line| line.strip_prefix("Hostname: "))?.to_owned())
}

#[test]
fn clients_are_led_on_from_a_task_that_ended_while_their_daemon_was_away() {
    skep_only!("stock Docker leads them by another way");
    let mut cluster = Cluster::swarm(1, 2);
    let client = cluster.client();
    let first = cluster.host(1);
    first.ok(&["network", "create", "-d", "overlay", "--attachable", "blue"]);
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    let publish = ["--publish", "published=5353,target=80,protocol=udp", "--network", "blue"];
    let place = ["--constraint", "node.hostname==host2", "--stop-signal", "SIGKILL", "whoami"];
    first.ok(&[&create[..], &publish, &place].concat());
    first.until_running("web", 1);
    let third = cluster.host(3);
    crate::idle(third, "asker", &["--network", "blue"]);
    let service: serde_json::Value = first.get("/services/web");
    let network = first.ok(&["network", "inspect", "blue", "--format", "{{.Id}}"]);
    let given = service["Endpoint"]["VirtualIPs"].as_array().expect("a list").clone();
    let here = given.iter().find(|given| given["NetworkID"] == network.as_str());
    let address = here.and_then(|given| given["Addr"].as_str()).expect("one in the network");
    let address = address.split('/').next().expect("an address").to_owned();
    let by_name = asker(&third.namespace_of("asker"), &format!("{address}:80"));
    let by_port = asker(&client.namespace(), &format!("{}:5353", third.address));
    let sockets = [by_name, by_port];
    third.until("both are answered", || sockets.iter().all(|socket| answer(socket).is_some()));
    let before = answer(&sockets[0]);
    cluster.host_mut(3).kill();
    let first = cluster.host(1);
    let moved = ["--constraint-rm", "node.hostname==host2", "--constraint-add"];
    let update = ["service", "update", "--detach", "--no-resolve-image"];
    first.ok(&[&update[..], &moved, &["node.hostname==host1", "web"]].concat());
    first.until("it runs elsewhere", || first.containers("web").len() == 1);
    let second = cluster.host(2);
    second.until("it is gone from where it was", || second.containers("web").is_empty());
    cluster.host_mut(3).start();
    for socket in &sockets {
        cluster.host(3).until("the client is led on", || {
            answer(socket).is_some_and(|now| Some(now) != before)
        });
    }
    cluster.audit();
}

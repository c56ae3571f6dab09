//! Encrypted networks: nothing that is said in them can be read on the wire, whatever happens.

use std::collections::BTreeSet;
use std::path::PathBuf;

use e2e::{Cluster, Host, Wire};

use crate::sleeper;

const SEALED: [u16; 2] = [4_790, 4_791];
const PLAIN: u16 = 4_789;

/// As short as keys may live, so that a test sees them change.
const SHORT_LIVES: [&str; 2] = ["--tunnel-key-lifetime", "8"];

fn network(host: &Host, name: &str, more: &[&str]) {
    let create = ["network", "create", "--driver", "overlay"];
    host.ok(&[&create[..], more, &[name]].concat());
}

/// A service on every host that answers HTTP.
fn answering(host: &Host, name: &str, network: &str) {
    let create = ["service", "create", "--detach", "--no-resolve-image", "--mode", "global"];
    let more = ["--name", name, "--network", network, "--restart-delay", "1s", "whoami"];
    host.ok(&[&create[..], &more].concat());
}

/// Asks each task of the service by its own address, with a word; answers with the hosts that replied.
fn reached(host: &Host, client: &str, service: &str, word: &str) -> BTreeSet<String> {
    let container = host.containers(client).remove(0);
    let script = format!(
        "for it in $(nslookup tasks.{service} | awk '/^Name/ {{on=1}} on && /^Address/ {{print $NF}}'); \
         do timeout 3 wget -q -O - http://$it/{word}; done"
    );
    let said = host.docker(&["exec", &container, "sh", "-c", &script]).stdout;
    said.lines().filter_map(|line| line.strip_prefix("Hostname: ")).map(str::to_owned).collect()
}

fn until_reached(cluster: &Cluster, from: usize, service: &str, word: &str, count: usize) {
    let host = cluster.host(from);
    let what = format!("host{from} reaches {count} tasks of {service} ({word})");
    host.until(&what, || reached(host, "client", service, word).len() == count);
}

/// The public keys of the host's tunnel.
fn keys(host: &Host) -> BTreeSet<String> {
    let files = (0..2).map(|slot| host.path(&format!("exec/network/tunnel/{slot}/key.json")));
    files.filter_map(|file| key_in(&file)).collect()
}

fn key_in(file: &PathBuf) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(value["key"].as_str()?.to_owned())
}

/// Process numbers of the host's tunnel.
fn processes(host: &Host) -> Vec<String> {
    let place = host.path("exec/network/tunnel");
    let found = std::fs::read_dir("/proc").expect("lists").flatten().filter(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let mut words = words.split('\0').skip(1);
        words.next() == Some("tunnel")
            && words.next().is_some_and(|path| path.starts_with(&*place.to_string_lossy()))
    });
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The encrypted network `blue` with the service `web` and a client of it on each of the hosts, which reach each other.
fn sealed_services(cluster: &Cluster) {
    let first = cluster.host(1);
    network(first, "blue", &["--opt", "encrypted"]);
    answering(first, "web", "blue");
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    let hosts = cluster.hosts().len();
    first.until_running("web", hosts);
    first.until_running("client", hosts);
    until_reached(cluster, 1, "web", "sealed-secret", hosts);
}

fn assert_sealed(wire: &Wire, word: &str, when: &str) {
    assert_eq!(wire.readable(word), 0, "{word} is readable {when}");
}

#[test]
fn nothing_of_an_encrypted_network_is_readable_on_the_wire() {
    e2e::skep_only!("Docker's encryption needs IPsec in the kernel");
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    let wire = cluster.wire(&["open-secret", "sealed-secret"], &[PLAIN, SEALED[0]]);
    network(first, "clear", &[]);
    network(first, "blue", &["--opt", "encrypted"]);
    answering(first, "open", "clear");
    answering(first, "web", "blue");
    sleeper(first, "client", &["--network", "clear", "--network", "blue", "--mode", "global"]);
    first.until_running("open", 3);
    first.until_running("web", 3);
    first.until_running("client", 3);
    until_reached(&cluster, 1, "open", "open-secret", 3);
    assert!(wire.readable("open-secret") > 0, "the capture sees what is open");
    let before = wire.datagrams(PLAIN);
    for from in 1..=3 {
        until_reached(&cluster, from, "web", "sealed-secret", 3);
    }
    assert_sealed(&wire, "sealed-secret", "at all");
    assert!(wire.datagrams(SEALED[0]) > 0, "it went through the tunnel");
    assert_eq!(wire.datagrams(PLAIN), before, "and no other way");
    let address = "{{range .IPAM.Config}}{{.Subnet}}{{end}} {{.Options.encrypted}}";
    assert!(first.docker(&["network", "inspect", "blue", "--format", address]).code == 0);
    let container = first.containers("client").remove(0);
    let by_name = ["exec", &container, "wget", "-q", "-O", "-", "http://web/sealed-secret"];
    assert!(first.ok(&by_name).contains("Hostname: "), "by name and virtual address");
    cluster.audit();
}

#[test]
fn keys_are_replaced_while_packets_flow() {
    e2e::skep_only!("Docker's encryption needs IPsec in the kernel");
    let cluster = Cluster::swarm_with_flags(&[&SHORT_LIVES, &SHORT_LIVES]);
    let wire = cluster.wire(&["sealed-secret"], &SEALED);
    sealed_services(&cluster);
    until_reached(&cluster, 2, "web", "sealed-secret", 2);
    let old: Vec<_> = cluster.hosts().iter().map(keys).collect();
    let is_renewed = || {
        let mut now = cluster.hosts().iter().map(keys).zip(&old);
        now.all(|(now, old)| !now.is_empty() && now.is_disjoint(old))
    };
    let mut asked = 0;
    while !is_renewed() {
        assert!(asked < 2_000, "the keys are never replaced");
        for from in 1..=2 {
            let replied = reached(cluster.host(from), "client", "web", "sealed-secret");
            assert_eq!(replied.len(), 2, "from host{from}, at try {asked}");
        }
        asked += 1;
    }
    assert!(asked > 0, "somebody asked meanwhile");
    assert_sealed(&wire, "sealed-secret", "while keys were replaced");
    assert!(SEALED.iter().all(|port| wire.datagrams(*port) > 0), "both keys were used");
}

#[test]
fn a_tunnel_outlives_its_daemon_and_is_made_anew_when_it_is_killed() {
    e2e::skep_only!("Docker's encryption needs IPsec in the kernel");
    let mut cluster = Cluster::swarm(1, 1);
    let wire = cluster.wire(&["sealed-secret"], &[PLAIN]);
    sealed_services(&cluster);
    let before = keys(cluster.host(2));
    cluster.host_mut(2).kill();
    assert_eq!(reached(cluster.host(1), "client", "web", "sealed-secret").len(), 2, "no daemon");
    cluster.host_mut(2).start();
    until_reached(&cluster, 2, "web", "sealed-secret", 2);
    assert_eq!(keys(cluster.host(2)), before, "the same tunnel");
    let killed = processes(cluster.host(2));
    assert_eq!(killed.len(), 1, "{killed:?}");
    // With the daemon in its tracks nobody mends what is killed.
    cluster.host(2).freeze();
    e2e::run(std::process::Command::new("kill").args(["-KILL", &killed[0]]));
    let alone = reached(cluster.host(1), "client", "web", "sealed-secret");
    assert_eq!(alone.len(), 1, "nothing goes where no tunnel is: {alone:?}");
    cluster.host(2).thaw();
    until_reached(&cluster, 1, "web", "sealed-secret", 2);
    until_reached(&cluster, 2, "web", "sealed-secret", 2);
    assert!(keys(cluster.host(2)).is_disjoint(&before), "with another key");
    assert_sealed(&wire, "sealed-secret", "with and without daemon and tunnel");
    cluster.audit();
    let second = cluster.host(2);
    second.ok(&["swarm", "leave"]);
    second.until("nothing of the tunnel is left", || {
        processes(second).is_empty() && !second.path("exec/network/tunnel/netns").exists()
    });
}

#[test]
fn a_host_that_cannot_seal_is_told_of_and_sends_nothing() {
    e2e::skep_only!("Docker's encryption needs IPsec in the kernel");
    let cluster = Cluster::swarm_with_flags(&[&[], &[], &["--tunnel", "off"]]);
    let first = cluster.host(1);
    let wire = cluster.wire(&["sealed-secret"], &[PLAIN]);
    network(first, "blue", &["--opt", "encrypted"]);
    answering(first, "web", "blue");
    sleeper(first, "client", &["--network", "blue", "--constraint", "node.role==manager"]);
    first.until_running("web", 2);
    first.until_running("client", 1);
    until_reached(&cluster, 1, "web", "sealed-secret", 2);
    let format = ["service", "ps", "web", "--no-trunc", "--format", "{{.Node}} {{.Error}}"];
    let reason = "encrypted network blue: encrypted networks are turned off on this node";
    first.until("the reason is told", || {
        first.ok(&format).lines().any(|line| line.starts_with("host3") && line.contains(reason))
    });
    assert!(cluster.host(3).containers("web").is_empty(), "nothing runs there");
    assert_sealed(&wire, "sealed-secret", "with a host that has no keys");
    assert_eq!(wire.datagrams(PLAIN), 0, "nothing leaves unsealed");
}

#[test]
fn the_mesh_is_sealed_between_nodes_where_its_network_is_encrypted() {
    e2e::skep_only!("Docker's encryption needs IPsec in the kernel");
    let mut cluster = Cluster::swarm(1, 2);
    let client = cluster.client();
    let first = cluster.host(1);
    first.until("the ingress network can be removed", || {
        first.on_stdin(&["network", "rm", "ingress"], "y\n").code == 0
    });
    network(first, "mesh", &["--ingress", "--opt", "encrypted", "--subnet", "10.11.0.0/16"]);
    let wire = cluster.wire(&["sealed-secret"], &[PLAIN, SEALED[0]]);
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    let place = ["--constraint", "node.hostname==host3", "--publish", "8080:80", "whoami"];
    first.ok(&[&create[..], &place].concat());
    first.until_running("web", 1);
    let url = "http://127.0.0.1:8080/sealed-secret";
    let ask = |host: &Host| host.exec(&["curl", "-sS", "-m", "3", url]).code == 0;
    for host in cluster.hosts() {
        host.until("it answers", || ask(host));
        let answer = client.ask(&host.address, 8080).expect("it answers");
        let seen = format!("RemoteAddr: {}:", client.address);
        assert!(answer.contains(&seen), "{answer}");
    }
    assert_sealed(&wire, "sealed-secret", "at all");
    assert!(wire.datagrams(SEALED[0]) > 0, "it went through the tunnel");
    assert_eq!(wire.datagrams(PLAIN), 0, "and no other way");
    cluster.audit();
    // Who does not seal, does not send.
    let (first, third) = (cluster.host(1), cluster.host(3));
    let sealing = processes(third);
    let signal = |what: &str| {
        for process in &sealing {
            third.exec(&["kill", what, process]);
        }
    };
    if !sealing.is_empty() {
        signal("-STOP");
        first.until("nothing passes", || !ask(first));
        signal("-CONT");
        first.until("it answers again", || ask(first));
    }
    cluster.host_mut(2).kill();
    cluster.host_mut(2).start();
    let second = cluster.host(2);
    second.until("it answers, taken over", || ask(second));
    assert_sealed(&wire, "sealed-secret", "meanwhile");
    assert_eq!(wire.datagrams(PLAIN), 0, "and went no other way");
    cluster.audit();
}

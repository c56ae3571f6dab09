//! A host whose firewall or kernel state somebody else changes: what is ours comes back, what is in the way is told.

use std::process::Command;

use e2e::{Cluster, Host, run};

use crate::sleeper;

/// Runs a program in the network namespace that a file of the daemon's names.
fn inside(host: &Host, namespace: &str, program: &[&str]) {
    let file = host.path(&format!("exec/network/{namespace}"));
    let mut command = Command::new("nsenter");
    run(command.arg(format!("--net={}", file.display())).arg("--").args(program));
}

fn nft(host: &Host, arguments: &[&str]) {
    let done = host.exec(&[&["nft"], arguments].concat());
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn a_flushed_ruleset_comes_back_and_tables_of_others_are_left_alone() {
    e2e::skep_only!("Docker does not put its rules back");
    let host = Host::new();
    host.load_images();
    host.ok(&["run", "-d", "--name", "web", "-p", "8080:80", "whoami"]);
    host.ok(&["network", "create", "--internal", "walled"]);
    host.ok(&["run", "-d", "--name", "prisoner", "--network", "walled", "whoami"]);
    host.until("it answers", || host.ask("127.0.0.1", 8080).is_some());
    assert_eq!(host.differences(), Vec::<String>::new());
    nft(&host, &["flush", "ruleset"]);
    host.until("it answers again", || host.ask("127.0.0.1", 8080).is_some());
    nft(&host, &["add", "table", "inet", "theirs"]);
    nft(&host, &["flush", "ruleset"]);
    nft(&host, &["add", "table", "inet", "theirs"]);
    host.until("it answers once more", || host.ask("127.0.0.1", 8080).is_some());
    let tables = host.exec(&["nft", "list", "tables"]).stdout;
    assert!(tables.contains("inet theirs"), "{tables}");
    host.until("all is well", || host.differences().is_empty());
}

#[test]
fn the_routing_mesh_comes_back_after_a_flush() {
    e2e::skep_only!("Docker does not put its rules back");
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    let elsewhere = ["--publish", "8080:80", "--constraint", "node.role==worker", "whoami"];
    first.ok(&[&web[..], &elsewhere].concat());
    first.until_running("web", 1);
    first.until("the other host's task answers", || first.ask("10.99.0.1", 8080).is_some());
    cluster.audit();
    for host in cluster.hosts() {
        nft(host, &["flush", "ruleset"]);
    }
    first.until("it answers again", || first.ask("10.99.0.1", 8080).is_some());
    let link = "ip route show | awk '/ing-/ {print $1}' | xargs -n1 ip route del";
    assert_eq!(first.exec(&["sh", "-c", link]).code, 0);
    let named = first.differences().join("\n");
    assert!(named.contains("no route to task"), "{named}");
    first.doctor(&["--mend"]);
    cluster.audit();
    assert!(first.ask("10.99.0.1", 8080).is_some());
}

#[test]
fn what_drops_packets_for_containers_is_told_with_its_remedy() {
    e2e::skep_only!("Docker has no doctor");
    let mut host = Host::without_daemon();
    nft(&host, &["add", "table", "inet", "fw"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    nft(&host, &["add", "chain", "inet", "fw", "forward", chain]);
    host.start();
    let told = "chain forward of table inet fw drops what this host passes on";
    let remedy = "nft add chain inet fw forward '{ policy accept; }'";
    host.until("docker info warns", || {
        let warnings = host.ok(&["info", "--format", "{{join .Warnings \"\\n\"}}"]);
        warnings.contains(told) && warnings.contains(remedy)
    });
    let examined = host.doctor(&[]);
    assert_eq!(examined.code, 1, "{examined:?}");
    assert!(examined.stdout.contains(told) && examined.stdout.contains(remedy), "{examined:?}");
    nft(&host, &["add", "chain", "inet", "fw", "forward", "{ policy accept; }"]);
    let examined = host.doctor(&["--format", "json"]);
    assert_eq!((examined.code, examined.stdout.contains("firewall")), (0, false), "{examined:?}");
}

#[test]
fn what_somebody_takes_out_of_a_network_is_named_and_put_back() {
    e2e::skep_only!("Docker has no audit");
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    let id = first.ok(&["network", "inspect", "blue", "--format", "{{.Id}}"]);
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    let everywhere = ["--mode", "global", "--network", "blue", "whoami"];
    first.ok(&[&web[..], &everywhere].concat());
    sleeper(first, "client", &["--network", "blue", "--constraint", "node.role==manager"]);
    first.until_running("web", 2);
    first.until_running("client", 1);
    first.until("the kernel has it all", || first.differences().is_empty());
    let (network, client) = (format!("overlays/{id}"), first.containers("client").remove(0));
    inside(first, &network, &["ip", "neigh", "flush", "dev", "vx0", "nud", "permanent"]);
    inside(first, &network, &["ip", "link", "set", "vx0", "down"]);
    inside(first, &format!("netns/{client}"), &["nft", "flush", "ruleset"]);
    let named = first.differences().join("\n");
    for part in ["link vx0 is down", "has no neighbour entry", &format!("container {client}")] {
        assert!(named.contains(part), "{part} in {named}");
    }
    assert_eq!(first.doctor(&["--mend"]).code, 1, "it says what it mends");
    assert_eq!(first.differences(), Vec::<String>::new());
    let reach = "for i in 1 2 3 4 5 6 7 8 9 10; do timeout 3 wget -q -O - http://web/; done";
    first.until("both replicas answer by name", || {
        let said = first.docker(&["exec", &client, "sh", "-c", reach]).stdout;
        let hosts: std::collections::BTreeSet<_> =
            said.lines().filter(|line| line.starts_with("Hostname: ")).collect();
        hosts.len() == 2
    });
    inside(first, &network, &["ip", "link", "del", "vx0"]);
    first.doctor(&["--mend"]);
    assert_eq!(first.differences(), Vec::<String>::new());
    first.until("both replicas answer over new links", || {
        let said = first.docker(&["exec", &client, "sh", "-c", reach]).stdout;
        let hosts: std::collections::BTreeSet<_> =
            said.lines().filter(|line| line.starts_with("Hostname: ")).collect();
        hosts.len() == 2
    });
}

#[test]
fn networks_follow_the_length_of_packets_that_the_way_between_hosts_takes() {
    e2e::skep_only!("Docker is told by option only");
    let cluster = Cluster::without_daemons(2);
    for host in cluster.hosts() {
        assert_eq!(host.exec(&["ip", "link", "set", "eth0", "mtu", "1400"]).code, 0);
    }
    let cluster = cluster.started();
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    first.ok(&["network", "create", "--driver", "overlay", "--opt", "encrypted", "sealed"]);
    let both = ["--network", "blue", "--network", "sealed", "--mode", "global"];
    sleeper(first, "client", &both);
    first.until_running("client", 2);
    let client = first.containers("client").remove(0);
    let lengths = || {
        let said = first.ok(&["exec", &client, "ip", "link"]);
        let words: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
        let taken = words.windows(2).filter(|pair| pair[0] == "mtu").map(|pair| pair[1].clone());
        taken.collect::<std::collections::BTreeSet<_>>()
    };
    let has = |plain: &str, sealed: &str| {
        let lengths = lengths();
        lengths.contains(plain) && lengths.contains(sealed)
    };
    assert!(has("1350", "1270"), "{:?}", lengths());
    assert_eq!(first.exec(&["ip", "link", "set", "eth0", "mtu", "1500"]).code, 0);
    let named = first.differences().join("\n");
    assert!(named.contains("link vx0 takes 1350 bytes, and 1450 fit the way out"), "{named}");
    first.doctor(&["--mend"]);
    assert!(has("1450", "1370"), "{:?}", lengths());
    assert_eq!(first.differences(), Vec::<String>::new());
}

//! Networks of the swarm: services find each other by name, on whichever host they run.

use std::collections::BTreeSet;

use e2e::{Cluster, Host};

use crate::sleeper;

/// Runs a command in the service's container on this host.
fn within(host: &Host, service: &str, command: &[&str]) -> String {
    let container = host.containers(service).remove(0);
    host.docker(&[&["exec", &container], command].concat()).stdout
}

/// Which replicas answer in so many tries.
fn answers(host: &Host, service: &str, url: &str, tries: usize) -> BTreeSet<String> {
    let ask = |_| within(host, service, &["timeout", "3", "wget", "-q", "-O", "-", url]);
    let hostname = |answer: String| {
        let named = answer.lines().find_map(|line| line.strip_prefix("Hostname: "));
        named.map(str::to_owned)
    };
    (0..tries).map(ask).filter_map(hostname).collect()
}

fn addresses(host: &Host, service: &str, name: &str) -> BTreeSet<String> {
    let found = within(host, service, &["nslookup", name]);
    let after = found.split("Name:").skip(1);
    let lines = after.flat_map(str::lines).filter_map(|line| line.split_once("Address"));
    lines
        .filter_map(|(_, rest)| rest.split_whitespace().nth(1).map(str::to_owned))
        .filter(|address| address.starts_with("10."))
        .collect()
}

#[test]
fn services_find_each_other_by_name_across_hosts() {
    e2e::needs_balancing!();
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "--attachable", "blue"]);
    first.ok(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "web",
        "--network",
        "blue",
        "--mode",
        "global",
        "whoami",
    ]);
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    first.until_running("web", 3);
    first.until_running("client", 3);
    for host in cluster.hosts() {
        host.until("every replica answers by the service's name", || {
            answers(host, "client", "http://web/", 30).len() == 3
        });
        host.until("every task has an address by name", || {
            addresses(host, "client", "tasks.web").len() == 3
        });
        assert_eq!(addresses(host, "client", "web").len(), 1, "one virtual address");
    }
    let virtual_ip =
        ["service", "inspect", "web", "--format", "{{(index .Endpoint.VirtualIPs 0).Addr}}"];
    let virtual_ip = first.ok(&virtual_ip);
    let shown = virtual_ip.split('/').next().unwrap_or_default().to_owned();
    assert_eq!(addresses(first, "client", "WEB"), [shown].into());
    cluster.audit();
    first.ok(&["service", "rm", "web", "client"]);
    for host in cluster.hosts() {
        host.until("nothing of them is left", || host.docker(&["ps", "-aq"]).stdout.is_empty());
    }
    cluster.audit();
}

#[test]
fn labels_say_how_connections_to_a_virtual_address_are_shared_out() {
    e2e::skep_only!("stock Docker knows no such labels");
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    let place = ["--network", "blue", "--replicas", "4"];
    for (name, label) in [("near", "skep.prefer=local"), ("same", "skep.sticky=client")] {
        let create = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
        first.ok(&[&create[..], &place, &["--label", label, "whoami"]].concat());
        first.until_running(name, 4);
    }
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    first.until_running("client", 2);
    for host in cluster.hosts() {
        let own: BTreeSet<_> =
            host.containers("near").iter().map(|container| container[..12].to_owned()).collect();
        assert!(!own.is_empty(), "tasks are spread");
        host.until("those of its own node answer", || {
            answers(host, "client", "http://near/", 20) == own
        });
        host.until("one answers, always", || {
            answers(host, "client", "http://same/", 20).len() == 1
        });
    }
    first.ok(&["service", "update", "--detach", "--label-rm", "skep.prefer", "near"]);
    for host in cluster.hosts() {
        host.until("all answer", || answers(host, "client", "http://near/", 40).len() == 4);
    }
    cluster.audit();
}

#[test]
fn a_virtual_address_without_tasks_refuses_at_once() {
    e2e::skep_only!("Docker lets clients wait");
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    first.ok(&[&web[..], &["--network", "blue", "--replicas", "0", "whoami"]].concat());
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    first.until_running("client", 2);
    for host in cluster.hosts() {
        let container = host.containers("client").remove(0);
        let ask = ["exec", &container, "wget", "-q", "-O", "-", "http://web/"];
        host.until("it refuses", || host.docker(&ask).stderr.contains("Connection refused"));
    }
    first.ok(&["service", "scale", "--detach", "web=1"]);
    for host in cluster.hosts() {
        host.until("it answers", || answers(host, "client", "http://web/", 1).len() == 1);
    }
    cluster.audit();
}

#[test]
fn services_are_reached_by_ipv6_too_where_their_network_has_it() {
    e2e::skep_only!("Docker balances over IPv4 only");
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    let network = ["network", "create", "--driver", "overlay", "--ipv6"];
    first.ok(&[&network[..], &["--subnet", "fd00:77::/64", "blue"]].concat());
    let subnets = "{{.EnableIPv6}} {{range .IPAM.Config}}{{.Subnet}} {{end}}";
    let subnets = first.ok(&["network", "inspect", "blue", "--format", subnets]);
    assert!(subnets.contains("true") && subnets.contains("fd00:77::/64"), "{subnets}");
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    first.ok(&[&web[..], &["--network", "blue", "--mode", "global", "whoami"]].concat());
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    first.until_running("web", 2);
    first.until_running("client", 2);
    let given = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let given = first.ok(&["service", "inspect", "web", "--format", given]);
    let (ipv4, ipv6): (Vec<_>, Vec<_>) =
        given.split_whitespace().partition(|address| address.starts_with("10."));
    assert_eq!((ipv4.len(), ipv6.len()), (1, 1), "{given}");
    let address = ipv6[0].split('/').next().unwrap_or_default();
    for host in cluster.hosts() {
        for url in ["http://web/".to_owned(), format!("http://[{address}]/")] {
            host.until("both replicas answer", || answers(host, "client", &url, 20).len() == 2);
        }
        let named = within(host, "client", &["nslookup", "-type=aaaa", "web"]);
        assert!(named.contains(address), "{named}");
        let seen =
            within(host, "client", &["wget", "-q", "-O", "-", &format!("http://[{address}]/")]);
        assert!(seen.contains("RemoteAddr: [fd00:77:"), "{seen}");
    }
}

#[test]
fn a_replica_that_leaves_is_not_asked_any_more() {
    e2e::needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    first.ok(&[&web[..], &["--network", "blue", "--replicas", "4", "whoami"]].concat());
    sleeper(first, "client", &["--network", "blue", "--constraint", "node.role==manager"]);
    first.until_running("web", 4);
    first.until_running("client", 1);
    first.until("all answer", || answers(first, "client", "http://web/", 40).len() == 4);
    first.ok(&["service", "scale", "--detach", "web=1"]);
    first.until_running("web", 1);
    first.until("one is left by name", || addresses(first, "client", "tasks.web").len() == 1);
    let container = first.containers("client").remove(0);
    for _ in 0..20 {
        first.ok(&["exec", &container, "timeout", "3", "wget", "-q", "-O", "-", "http://web/"]);
    }
    cluster.audit();
}

#[test]
fn networks_are_created_listed_and_removed_as_docker_does() {
    let host = Host::in_swarm();
    let id = host.ok(&["network", "create", "-d", "overlay", "--subnet", "10.77.0.0/24", "red"]);
    assert_eq!(id.len(), 25, "{id}");
    let subnet = ["network", "inspect", "red", "--format", "{{(index .IPAM.Config 0).Subnet}}"];
    assert_eq!(host.ok(&subnet), "10.77.0.0/24");
    let listed = host.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    assert!(listed.lines().any(|line| line == "red overlay swarm"), "{listed}");
    assert!(listed.lines().any(|line| line == "ingress overlay swarm"), "{listed}");
    let taken = host.refused(&["network", "create", "-d", "overlay", "red"]);
    assert!(taken.contains("network with name red already exists"), "{taken}");
    // Stock Docker takes it, and nothing that uses it ever starts.
    if e2e::is_skep() {
        let wider = ["network", "create", "-d", "overlay", "--subnet", "10.77.0.0/16", "other"];
        let overlapping = host.refused(&wider);
        assert!(overlapping.contains("Pool overlaps with other one"), "{overlapping}");
    }
    sleeper(&host, "user", &["--network", "red"]);
    host.until_running("user", 1);
    let used = host.refused(&["network", "rm", "red"]);
    assert!(used.contains("is in use by service"), "{used}");
    let container = host.containers("user").remove(0);
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = host.ok(&["inspect", &container, "--format", address]);
    assert!(address.starts_with("10.77.0."), "{address}");
    host.ok(&["service", "rm", "user"]);
    host.until("it can be removed", || host.docker(&["network", "rm", "red"]).code == 0);
    assert!(!host.ok(&["network", "ls"]).contains("red"));
}

#[test]
fn names_and_virtual_addresses_outlive_the_daemon() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--driver", "overlay", "blue"]);
    let web = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    first.ok(&[&web[..], &["--network", "blue", "--replicas", "2", "whoami"]].concat());
    sleeper(first, "client", &["--network", "blue", "--constraint", "node.role==worker"]);
    first.until_running("web", 2);
    first.until_running("client", 1);
    let address = |host: &Host| addresses(host, "client", "web").into_iter().next();
    let worker = cluster.host(2);
    worker.until("it is answered", || address(worker).is_some());
    let virtual_ip = address(worker).expect("just seen");
    cluster.host_mut(1).stop();
    cluster.host_mut(2).kill();
    cluster.host_mut(2).start();
    let url = format!("http://{virtual_ip}/");
    let worker = cluster.host(2);
    assert!(!answers(worker, "client", &url, 10).is_empty(), "without any manager");
    worker.until("names are answered before any manager is reached", || {
        address(worker) == Some(virtual_ip.clone())
            && !answers(worker, "client", "http://web/", 5).is_empty()
    });
    cluster.host_mut(1).start();
    let worker = cluster.host(2);
    worker.until("names are answered again", || address(worker) == Some(virtual_ip.clone()));
    worker.until("both answer", || answers(worker, "client", "http://web/", 20).len() == 2);
    cluster.audit();
}

//! Plain containers in networks of the swarm, on managers and workers.

use std::collections::BTreeSet;

use e2e::{Cluster, Host, skep_only};

use crate::{answerer, idle, reaches, sleeper};

fn until_reached(host: &Host, container: &str, url: &str) {
    host.until(&format!("{container} reaches {url}"), || reaches(host, container, url));
}

fn address(host: &Host, container: &str, network: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    host.ok(&["inspect", container, "--format", &format])
}

/// Containers of the swarm's networks by the managers' books.
fn attached(host: &Host) -> BTreeSet<String> {
    let filters = e2e::encoded(r#"{"runtime":["attachment"]}"#);
    let tasks = host.get(&format!("/v1.41/tasks?filters={filters}"));
    let tasks = tasks.as_array().cloned().unwrap_or_default();
    let addresses = tasks.iter().filter_map(|task| {
        let places = task["NetworksAttachments"].as_array()?;
        places.first()?["Addresses"][0].as_str().map(str::to_owned)
    });
    addresses.map(|address| address.split('/').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn plain_containers_and_services_find_each_other_on_all_hosts() {
    let cluster = Cluster::swarm(1, 2);
    let (first, second, third) = (cluster.host(1), cluster.host(2), cluster.host(3));
    first.ok(&["network", "create", "-d", "overlay", "--attachable", "blue"]);
    answerer(second, "web", &["--network", "blue", "--network-alias", "site"]);
    idle(third, "client", &["--network", "blue"]);
    idle(first, "boss", &["--network", "blue"]);
    for (host, container) in [(third, "client"), (first, "boss"), (second, "web")] {
        if container != "web" {
            until_reached(host, container, "http://web/");
            assert!(reaches(host, container, "http://site/"), "by its alias");
            assert!(reaches(host, container, "http://web.blue/"), "with the network's name");
        }
    }
    let service = ["service", "create", "--detach", "--no-resolve-image", "--name", "shop"];
    first.ok(&[&service[..], &["--network", "blue", "--replicas", "2", "whoami"]].concat());
    first.until_running("shop", 2);
    for (host, container) in [(third, "client"), (first, "boss")] {
        if e2e::balances() {
            until_reached(host, container, "http://shop/");
        }
        until_reached(host, container, "http://tasks.shop/");
    }
    sleeper(first, "asker", &["--network", "blue", "--constraint", "node.hostname==host3"]);
    first.until_running("asker", 1);
    let task = third.containers("asker").remove(0);
    until_reached(third, &task, "http://web/");
    assert!(third.ok(&["exec", "client", "ip", "route"]).contains("default via 172."));
    let known = attached(first);
    let given: BTreeSet<_> = [(second, "web"), (third, "client"), (first, "boss")]
        .map(|(host, container)| address(host, container, "blue"))
        .into();
    assert_eq!(known, given, "one address each, by the managers' books");
    third.ok(&["rm", "-f", "client"]);
    first.until("its address is given back", || attached(first).len() == 2);
    let used = first.refused(&["network", "rm", "blue"]);
    assert!(used.contains("is in use by service"), "{used}");
}

#[test]
fn workers_show_the_networks_they_take_part_in_and_who_is_there() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    let options = ["--attachable", "--label", "a=b", "--subnet", "10.88.0.0/24"];
    first.ok(&[&["network", "create", "-d", "overlay"], &options[..], &["blue"]].concat());
    let listed = |host: &Host| host.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    assert!(listed(first).lines().any(|line| line == "blue overlay"));
    assert!(!listed(second).contains("blue"), "nobody there has asked for it");
    idle(second, "box1", &["--network", "blue", "--ip", "10.88.0.77"]);
    assert!(listed(second).lines().any(|line| line == "blue overlay"));
    assert!(listed(second).lines().any(|line| line == "docker_gwbridge bridge"));
    assert_eq!(address(second, "box1", "blue"), "10.88.0.77");
    let inspect = |host: &Host, format: &str| {
        host.ok(&["network", "inspect", "--verbose", "blue", "--format", format])
    };
    for host in [first, second] {
        let config = "{{(index .IPAM.Config 0).Subnet}} {{.Attachable}} {{.Labels.a}}";
        assert_eq!(inspect(host, config), "10.88.0.0/24 true b");
    }
    // Stock Docker has an end of its own in the network.
    let members = |host: &Host| {
        let shown = inspect(host, "{{range .Containers}}{{.Name}} {{.IPv4Address}},{{end}}");
        let others = shown.split(',').filter(|it| !it.is_empty() && !it.contains("-endpoint"));
        others.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(members(second), ["box1 10.88.0.77/24"]);
    assert_eq!(members(first), Vec::<String>::new(), "it is on the other host");
    let peers = "{{range .Peers}}{{.IP}}{{end}}";
    first.until("its node is named", || inspect(first, peers) == "10.99.0.2");
    sleeper(first, "idle", &["--network", "blue", "--constraint", "node.role==worker"]);
    first.until_running("idle", 1);
    for host in [first, second] {
        let services = "{{range $name, $it := .Services}}{{$name}}={{len $it.Tasks}} {{end}}";
        host.until("the service and the container are shown", || {
            inspect(host, services).trim() == "=1 idle=1"
        });
    }
    let gateways = "{{range .Containers}}{{.Name}} {{end}}";
    let gateways = second.ok(&["network", "inspect", "docker_gwbridge", "--format", gateways]);
    assert_eq!(gateways.matches("gateway_").count(), 2, "{gateways}");
    let task = first.ok(&["service", "ps", "-q", "idle"]);
    let network = "{{(index .NetworksAttachments 0).Network.Spec.Name}}";
    assert_eq!(first.ok(&["inspect", &task, "--format", network]), "blue");
    let given =
        first.ok(&["inspect", &task, "--format", "{{(index .NetworksAttachments 0).Addresses}}"]);
    assert!(given.starts_with("[10.88.0.") && given.ends_with("/24]"), "{given}");
    second.ok(&["rm", "-f", "box1"]);
    first.ok(&["service", "rm", "idle"]);
    second.until("the network leaves the worker", || !listed(second).contains("blue"));
    first.until("it can be removed", || first.docker(&["network", "rm", "blue"]).code == 0);
}

#[test]
fn only_attachable_networks_take_plain_containers_and_addresses_are_the_swarms() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    first.ok(&["network", "create", "-d", "overlay", "closed"]);
    first.ok(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--subnet",
        "10.88.0.0/24",
        "blue",
    ]);
    for host in [first, second] {
        for network in ["closed", "ingress"] {
            let refused = host.refused(&["run", "-d", "--network", network, "busybox"]);
            let text = format!(
                "Could not attach to network {network}: rpc error: code = PermissionDenied desc = network {network} not manually attachable"
            );
            assert!(refused.contains(&text), "{refused}");
        }
        let refused = host.refused(&["run", "-d", "--network", "nope", "busybox"]);
        assert!(refused.contains("network nope not found"), "{refused}");
    }
    idle(first, "box1", &["--network", "blue", "--ip", "10.88.0.77"]);
    skep_only!("stock Docker says no more than that it has waited in vain");
    for (ip, text) in [("10.88.0.77", "is in use"), ("10.99.0.77", "is in none of the subnets")] {
        let refused = second.refused(&["run", "-d", "--network", "blue", "--ip", ip, "busybox"]);
        assert!(refused.contains("Could not attach to network blue") && refused.contains(text));
    }
    assert_eq!(attached(first).len(), 1);
}

#[test]
fn running_containers_join_and_leave_networks_of_the_swarm() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    for network in ["blue", "red"] {
        first.ok(&["network", "create", "-d", "overlay", "--attachable", network]);
    }
    answerer(first, "web", &["--network", "red"]);
    idle(second, "box1", &[]);
    second.ok(&["network", "connect", "blue", "box1"]);
    second.ok(&["network", "connect", "--alias", "mine", "red", "box1"]);
    until_reached(second, "box1", "http://web/");
    let again = second.refused(&["network", "connect", "red", "box1"]);
    assert!(again.contains("is already attached to network red"), "{again}");
    assert!(
        second.ok(&["exec", "box1", "nslookup", "mine"]).contains(&address(second, "box1", "red"))
    );
    second.ok(&["network", "disconnect", "red", "box1"]);
    assert!(!reaches(second, "box1", "http://web/"));
    first.until("its place is given back", || attached(first).len() == 2);
    second.ok(&["restart", "-t", "0", "box1"]);
    second.ok(&["network", "connect", "red", "box1"]);
    until_reached(second, "box1", "http://web/");
    second.ok(&["stop", "-t", "0", "box1"]);
    first.until("all its places are given back", || attached(first).len() == 1);
    second.ok(&["start", "box1"]);
    until_reached(second, "box1", "http://web/");
    first.ok(&["network", "create", "-d", "overlay", "--attachable", "--internal", "inner"]);
    idle(second, "box2", &["--network", "inner"]);
    assert!(!second.ok(&["exec", "box2", "ip", "route"]).contains("default"));
}

#[test]
fn a_container_is_found_by_its_new_name_once_it_is_renamed() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    first.ok(&["network", "create", "-d", "overlay", "--attachable", "blue"]);
    let run = ["run", "-d", "--name", "web", "--hostname", "it", "--network-alias", "site"];
    second.ok(&[&run[..], &["--network", "blue", "whoami"]].concat());
    idle(first, "client", &["--network", "blue"]);
    until_reached(first, "client", "http://web/");
    let before = address(second, "web", "blue");
    second.ok(&["rename", "web", "shop"]);
    skep_only!("stock Docker keeps the old name until the container is started again");
    until_reached(first, "client", "http://shop/");
    assert!(!reaches(first, "client", "http://web/"), "the old name is nobody's");
    assert!(reaches(first, "client", "http://site/"), "its alias stays");
    assert_eq!(address(second, "shop", "blue"), before, "so does its address");
    assert_eq!(attached(first).len(), 2, "and its place");
}

#[test]
fn attached_containers_outlive_daemons_and_leaders_and_what_ended_meanwhile_is_given_back() {
    skep_only!("Docker refuses live restore in a swarm");
    let mut cluster = Cluster::swarm(3, 1);
    cluster.host(1).ok(&["network", "create", "-d", "overlay", "--attachable", "blue"]);
    answerer(cluster.host(2), "web", &["--network", "blue"]);
    idle(cluster.host(4), "client", &["--network", "blue"]);
    idle(cluster.host(4), "short", &["--network", "blue"]);
    idle(cluster.host(4), "always", &["--network", "blue", "--restart", "always"]);
    until_reached(cluster.host(4), "client", "http://web/");
    let pid = |name: &str| cluster.host(4).ok(&["inspect", name, "--format", "{{.State.Pid}}"]);
    let (ends, returns) = (pid("short"), pid("always"));
    cluster.host_mut(4).kill();
    e2e::run(std::process::Command::new("kill").args(["-KILL", &ends, &returns]));
    let leader = cluster.leader(1);
    cluster.host_mut(leader).stop();
    cluster.host_mut(4).start();
    let other = if leader == 3 { 1 } else { 3 };
    let (other, worker) = (cluster.host(other), cluster.host(4));
    until_reached(worker, "client", "http://web/");
    until_reached(worker, "always", "http://web/");
    other.until("what ended meanwhile is given back", || attached(other).len() == 3);
    idle(worker, "later", &["--network", "blue"]);
    until_reached(worker, "later", "http://web/");
}

#[test]
fn a_node_that_leaves_gives_its_places_back() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    first.ok(&["network", "create", "-d", "overlay", "--attachable", "blue"]);
    idle(second, "box1", &["--network", "blue"]);
    assert_eq!(attached(first).len(), 1);
    second.ok(&["swarm", "leave"]);
    let listed = second.ok(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!listed.contains("blue") && !listed.contains("ingress"), "{listed}");
    first.until("the node is down", || {
        let rows = e2e::nodes(first);
        rows.iter().any(|row| row.hostname == "host2" && row.status == "Down")
    });
    first.ok(&["node", "rm", "host2"]);
    first.until("nothing is held", || attached(first).is_empty());
    first.ok(&["network", "rm", "blue"]);
}

#[test]
fn services_take_and_leave_networks_by_updates() {
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    for network in ["blue", "red"] {
        first.ok(&["network", "create", "-d", "overlay", "--attachable", network]);
    }
    answerer(first, "inblue", &["--network", "blue"]);
    answerer(first, "inred", &["--network", "red"]);
    let options = ["--network", "name=blue,alias=here", "--constraint", "node.role==worker"];
    sleeper(first, "box1", &options);
    first.until_running("box1", 1);
    let second = cluster.host(2);
    let within = |url: &str| {
        let containers = second.containers("box1");
        containers.len() == 1 && reaches(second, &containers[0], url)
    };
    second.until("the first network is there", || within("http://inblue/"));
    let update = ["service", "update", "--detach", "--network-add"];
    first.ok(&[&update[..], &["name=red,alias=there", "box1"]].concat());
    second.until("both are there", || within("http://inblue/") && within("http://inred/"));
    idle(first, "asker", &["--network", "red"]);
    first.until("its alias is known", || {
        first.docker(&["exec", "asker", "nslookup", "there"]).stdout.contains("Name:")
    });
    first.ok(&["service", "update", "--detach", "--network-rm", "blue", "box1"]);
    second.until("the first one is gone", || within("http://inred/") && !within("http://inblue/"));
}

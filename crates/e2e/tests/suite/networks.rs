//! Networks of one host, by the docker command.

use e2e::{Host, skep_only};

use crate::{answerer, idle, reaches};

/// A host with images, in no swarm.
fn host() -> Host {
    let host = Host::new();
    host.load_images();
    host
}

/// What a container's place in a network is.
fn place(host: &Host, container: &str, network: &str, field: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).{field}}}}}");
    host.ok(&["inspect", container, "--format", &format])
}

/// What names lead to, as a container asks for them.
fn resolves(host: &Host, container: &str, name: &str) -> Option<String> {
    let found = host.docker(&["exec", container, "nslookup", name]).stdout;
    let after = found.split("Name:").nth(1)?;
    let address = after.lines().find_map(|line| line.trim().strip_prefix("Address"))?;
    address.split_whitespace().last().map(str::to_owned)
}

#[test]
fn containers_of_a_network_find_each_other_by_name_and_no_others() {
    let host = host();
    for network in ["blue", "red"] {
        assert_eq!(host.ok(&["network", "create", network]).len(), 64);
    }
    answerer(&host, "web", &["--network", "blue", "--network-alias", "site"]);
    answerer(&host, "other", &["--network", "red"]);
    answerer(&host, "plain", &[]);
    idle(&host, "client", &["--network", "blue"]);
    let id = host.ok(&["inspect", "web", "--format", "{{.Id}}"]);
    for name in ["web", "WEB", "site", "web.blue", &id[..12]] {
        assert!(reaches(&host, "client", &format!("http://{name}/")), "{name}");
    }
    for name in ["other", "plain"] {
        assert!(resolves(&host, "client", name).is_none(), "{name}");
    }
    let address = |container: &str, network: &str| place(&host, container, network, "IPAddress");
    for (container, network) in [("other", "red"), ("plain", "bridge")] {
        let url = format!("http://{}/", address(container, network));
        assert!(!reaches(&host, "client", &url), "{container} is another network's");
    }
    assert_eq!(resolves(&host, "client", "web"), Some(address("web", "blue")));
    idle(&host, "before", &["--network", "blue"]);
    host.ok(&["rename", "before", "after"]);
    assert!(resolves(&host, "client", "after").is_some());
    assert!(resolves(&host, "client", "before").is_none());
    let resolver = host.ok(&["exec", "client", "cat", "/etc/resolv.conf"]);
    assert!(resolver.contains("nameserver 127.0.0.11\n") && resolver.contains("ndots:0"));
}

/// Names of the networks that a list with these filters shows.
fn listed(host: &Host, filters: &[&str]) -> String {
    let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
    let arguments = ["network", "ls", "--format", "{{.Name}}"].into_iter().chain(filters);
    let names = host.ok(&arguments.collect::<Vec<_>>());
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn networks_are_made_as_asked_for() {
    let host = host();
    host.ok(&[
        "network",
        "create",
        "--subnet=10.123.0.0/16",
        "--ip-range=10.123.5.0/24",
        "--gateway=10.123.5.254",
        "--aux-address=router=10.123.5.1",
        "--opt=com.docker.network.driver.mtu=1400",
        "--opt=com.docker.network.bridge.name=mybr0",
        "blue",
    ]);
    let shown = host.get("/v1.41/networks/blue");
    let config = serde_json::json!([{
        "Subnet": "10.123.0.0/16",
        "IPRange": "10.123.5.0/24",
        "Gateway": "10.123.5.254",
        "AuxiliaryAddresses": {"router": "10.123.5.1"},
    }]);
    assert_eq!(shown["IPAM"]["Config"], config);
    assert_eq!(shown["Options"]["com.docker.network.driver.mtu"], "1400");
    assert_eq!((&shown["Scope"], &shown["Driver"]), (&"local".into(), &"bridge".into()));
    idle(&host, "box1", &["--network", "blue"]);
    assert!(host.ok(&["exec", "box1", "ip", "link", "show", "eth0"]).contains("mtu 1400"));
    assert!(host.exec(&["ip", "-br", "link"]).stdout.contains("mybr0"));
    let members = "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}";
    let members = host.ok(&["network", "inspect", "blue", "--format", members]);
    assert!(members.starts_with("box1 10.123.5.") && members.ends_with("/16"), "{members}");
    host.ok(&["rm", "-f", "box1"]);
    host.ok(&["network", "rm", "blue"]);
    assert!(!host.exec(&["ip", "-br", "link"]).stdout.contains("mybr0"));
}

#[test]
fn networks_are_listed_and_removed_as_docker_does() {
    let host = host();
    let id = host.ok(&["network", "create", "--label", "tier=back", "blue"]);
    host.ok(&["network", "create", "--internal", "red"]);
    for (filters, expected) in [
        (&[][..], "blue bridge host none red"),
        (&["driver=bridge"], "blue bridge red"),
        (&["driver=null"], "none"),
        (&["label=tier=back"], "blue"),
        (&["type=builtin"], "bridge host none"),
        (&["type=custom"], "blue red"),
        (&["name=lu"], "blue"),
        (&["scope=swarm"], ""),
        (&["dangling=true"], "blue red"),
        (&[&format!("id={}", &id[..6])], "blue"),
    ] {
        assert_eq!(listed(&host, filters), expected, "{filters:?}");
    }
    let shown = host.ok(&["network", "ls", "--filter", "name=blue"]);
    let line = shown.lines().nth(1).expect("one network");
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, [&id[..12], "blue", "bridge", "local"]);
    idle(&host, "box1", &["--network", "blue"]);
    // Stock Docker of 2022 lists those in use too.
    if e2e::is_skep() {
        assert_eq!(listed(&host, &["dangling=true"]), "red");
    }
    let used = host.refused(&["network", "rm", "blue"]);
    assert!(used.contains("error while removing network: network blue"), "{used}");
    assert!(used.contains("has active endpoints"), "{used}");
    host.ok(&["rm", "-f", "box1"]);
    assert_eq!(host.ok(&["network", "rm", &id[..8], "red"]), format!("{}\nred", &id[..8]));
    assert_eq!(listed(&host, &[]), "bridge host none");
}

#[test]
fn wrong_requests_for_networks_are_refused_in_dockers_words_and_change_nothing() {
    let host = host();
    for (arguments, text) in [
        (&["network", "rm", "bridge"][..], "bridge is a pre-defined network and cannot be removed"),
        (&["network", "rm", "nope"], "network nope not found"),
        (&["network", "inspect", "nope"], "network nope not found"),
        (&["network", "create", "host"], "operation is not permitted on predefined host network"),
        (&["network", "create", "-d", "foo", "x"], "plugin \"foo\" not found"),
        (
            &["network", "create", "--subnet", "172.17.0.0/24", "x"],
            "Pool overlaps with other one on this address space",
        ),
        (
            &["network", "create", "--opt", "com.docker.network.driver.mtu=x", "x"],
            "failed to parse com.docker.network.driver.mtu value: x (strconv.Atoi: parsing \"x\": invalid syntax)",
        ),
        (
            &["network", "create", "--scope", "swarm", "x"],
            "cannot create a swarm scoped network when swarm is not active",
        ),
        (
            &["network", "create", "-d", "overlay", "x"],
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"",
        ),
        (&["network", "ls", "--filter", "type=x"], "invalid filter: 'type'='x'"),
    ] {
        let refused = host.refused(arguments);
        // The older command has words of its own for what is not there.
        let is_said = refused.contains(text) || refused.contains("No such network: nope");
        assert!(is_said, "{arguments:?}: {refused}");
    }
    assert_eq!(listed(&host, &[]), "bridge host none");
}

#[test]
fn a_container_takes_and_leaves_networks_while_it_runs_and_while_it_does_not() {
    let host = host();
    host.ok(&["network", "create", "blue"]);
    host.ok(&["network", "create", "--subnet", "10.77.0.0/24", "red"]);
    answerer(&host, "web", &["--network", "red"]);
    idle(&host, "box1", &[]);
    assert!(resolves(&host, "box1", "web").is_none());
    host.ok(&["network", "connect", "--alias", "mine", "--ip", "10.77.0.77", "red", "box1"]);
    assert!(reaches(&host, "box1", "http://web/"));
    assert_eq!(resolves(&host, "box1", "mine"), Some("10.77.0.77".into()));
    let routes = || host.ok(&["exec", "box1", "ip", "route"]);
    assert!(routes().contains("default via 172."), "the first by name leads out: {}", routes());
    host.ok(&["network", "disconnect", "bridge", "box1"]);
    assert!(routes().contains("default via 10.77.0.1"), "{}", routes());
    host.ok(&["network", "connect", "blue", "box1"]);
    let networks = "{{range $name, $it := .NetworkSettings.Networks}}{{$name}} {{end}}";
    let networks = || host.ok(&["inspect", "box1", "--format", networks]);
    assert_eq!(networks().trim(), "blue red");
    let again = host.refused(&["network", "connect", "blue", "box1"]);
    assert!(again.contains("endpoint with name box1 already exists in network blue"), "{again}");
    host.ok(&["restart", "-t", "0", "box1"]);
    assert_eq!(place(&host, "box1", "red", "IPAddress"), "10.77.0.77");
    assert!(reaches(&host, "box1", "http://web/"));
    host.ok(&["stop", "-t", "0", "box1"]);
    host.ok(&["network", "disconnect", "blue", "box1"]);
    host.ok(&["network", "connect", "bridge", "box1"]);
    assert_eq!(networks().trim(), "bridge red");
    host.ok(&["start", "box1"]);
    assert!(reaches(&host, "box1", "http://web/"));
    assert!(place(&host, "box1", "bridge", "IPAddress").starts_with("172."));
    let id = host.ok(&["inspect", "box1", "--format", "{{.Id}}"]);
    idle(&host, "shared", &["--network", "host"]);
    idle(&host, "closed", &["--network", "none"]);
    let not_in = format!("container {id} is not connected to network blue");
    for (arguments, text) in [
        (&["disconnect", "blue", "box1"][..], not_in.as_str()),
        (&["connect", "nope", "box1"], "network nope not found"),
        (&["connect", "blue", "nope"], "No such container: nope"),
        (
            &["connect", "blue", "shared"],
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ),
        (
            &["connect", "blue", "closed"],
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ),
        (
            &["connect", "host", "box1"],
            "container cannot be disconnected from host network or connected to host network",
        ),
        (
            &["connect", "--ip", "172.20.0.9", "blue", "box1"],
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        ),
    ] {
        let refused = host.refused(&[&["network"], arguments].concat());
        assert!(refused.contains(text), "{arguments:?}: {refused}");
    }
}

#[test]
fn addresses_can_be_asked_for_and_are_refused_in_dockers_words() {
    let host = host();
    host.ok(&["network", "create", "--subnet", "10.77.0.0/29", "red"]);
    idle(&host, "box1", &["--network", "red", "--ip", "10.77.0.5"]);
    assert_eq!(place(&host, "box1", "red", "IPAddress"), "10.77.0.5");
    assert_eq!(place(&host, "box1", "red", "MacAddress"), "02:42:0a:4d:00:05");
    for (ip, text) in [
        ("10.77.0.5", "Address already in use"),
        (
            "10.88.0.5",
            "Invalid address 10.88.0.5: It does not belong to any of this network's subnets",
        ),
    ] {
        let refused = host.refused(&["run", "-d", "--network", "red", "--ip", ip, "busybox"]);
        assert!(refused.contains(text), "{refused}");
    }
    let refused =
        host.refused(&["run", "--network", "bridge", "--ip", "1.2.3.4", "busybox", "true"]);
    let text = "user specified IP address is supported on user defined networks only";
    assert!(refused.contains(text), "{refused}");
    let refused = host.refused(&["run", "-d", "--name", "lost", "--network", "nope", "busybox"]);
    assert!(refused.contains("network nope not found"), "{refused}");
    let lost = host.ok(&["ps", "-a", "--filter", "name=lost", "--format", "{{.Status}}"]);
    assert_eq!(lost, "Created");
    for number in 2..6 {
        idle(&host, &format!("more{number}"), &["--network", "red"]);
    }
    let refused = host.refused(&["run", "-d", "--network", "red", "busybox"]);
    assert!(refused.contains("no available IPv4 addresses on this network's address pools: red"));
    host.ok(&["rm", "-f", "box1"]);
    idle(&host, "last", &["--network", "red"]);
    assert_eq!(place(&host, "last", "red", "IPAddress"), "10.77.0.5");
}

#[test]
fn from_an_internal_network_nothing_outside_is_reached_or_asked() {
    let host = host();
    host.ok(&["network", "create", "--internal", "inner"]);
    host.ok(&["network", "create", "outer"]);
    answerer(&host, "web", &["--network", "inner"]);
    answerer(&host, "other", &["--network", "outer", "-p", "8080:80"]);
    idle(&host, "box1", &["--network", "inner"]);
    idle(&host, "box2", &["--network", "outer"]);
    assert!(reaches(&host, "box1", "http://web/"));
    assert!(reaches(&host, "box2", "http://10.99.0.1:8080/"), "by the published port");
    for url in ["http://10.99.0.1:8080/", "http://172.17.0.1:8080/"] {
        assert!(!reaches(&host, "box1", url), "{url}");
    }
    // Stock Docker of 2022 leaves a default route that leads nowhere.
    if e2e::is_skep() {
        assert!(!host.ok(&["exec", "box1", "ip", "route"]).contains("default"));
    }
    let asked = host.docker(&["exec", "box1", "nslookup", "example.org"]);
    assert!(format!("{}{}", asked.stdout, asked.stderr).contains("NXDOMAIN"), "{asked:?}");
}

#[test]
fn published_ports_of_containers_in_networks_answer_everywhere() {
    let host = host();
    host.ok(&["network", "create", "blue"]);
    answerer(&host, "web", &["--network", "blue", "-p", "8080:80"]);
    for address in ["127.0.0.1", "10.99.0.1"] {
        assert!(host.ask(address, 8080).is_some(), "{address}");
    }
    host.ok(&["network", "create", "--subnet", "10.77.0.0/24", "alpha"]);
    host.ok(&["network", "connect", "alpha", "web"]);
    assert!(host.ask("127.0.0.1", 8080).is_some(), "the way out has changed");
    host.ok(&["network", "disconnect", "blue", "web"]);
    assert!(host.ask("127.0.0.1", 8080).is_some(), "the old way is gone");
    assert_eq!(host.ok(&["port", "web", "80"]).lines().next(), Some("0.0.0.0:8080"));
}

#[test]
fn networks_and_names_outlive_the_daemon() {
    skep_only!("stock Docker is asked for live restore by a flag");
    let mut host = host();
    host.ok(&["network", "create", "--subnet", "10.77.0.0/24", "blue"]);
    answerer(&host, "web", &["--network", "blue", "-p", "8080:80"]);
    idle(&host, "client", &["--network", "blue"]);
    let before = place(&host, "web", "blue", "IPAddress");
    host.kill();
    assert!(host.ask("127.0.0.1", 8080).is_some(), "without a daemon");
    host.start();
    assert_eq!(place(&host, "web", "blue", "IPAddress"), before);
    assert!(reaches(&host, "client", "http://web/"));
    idle(&host, "later", &["--network", "blue"]);
    assert!(reaches(&host, "later", "http://web/"));
    host.ok(&["rm", "-f", "web", "client", "later"]);
    host.ok(&["network", "rm", "blue"]);
    host.kill();
    host.start();
    assert!(!host.ok(&["network", "ls"]).contains("blue"));
    assert!(!host.exec(&["ip", "-br", "link"]).stdout.contains("br-"));
}

#[test]
fn unused_networks_are_pruned_and_events_tell() {
    let host = host();
    host.ok(&["network", "create", "--label", "keep=yes", "kept"]);
    host.ok(&["network", "create", "used"]);
    host.ok(&["network", "create", "idle"]);
    idle(&host, "box1", &["--network", "used"]);
    let pruned = host.ok(&["network", "prune", "-f", "--filter", "label!=keep=yes"]);
    assert!(pruned.contains("idle") && !pruned.contains("used") && !pruned.contains("kept"));
    host.ok(&["rm", "-f", "box1"]);
    host.ok(&["network", "rm", "used"]);
    let format = "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}}";
    let filters = ["--since", "5m", "--filter", "type=network", "--format", format];
    let events = host.follow(&[&["events"], &filters[..]].concat());
    for event in [
        "create kept bridge",
        "create used bridge",
        "create idle bridge",
        "connect used bridge",
        "destroy idle bridge",
        "disconnect used bridge",
        "destroy used bridge",
    ] {
        while events.line() != event {}
    }
}

#[test]
fn hosts_links_and_shared_networks_work_as_in_docker() {
    let host = host();
    answerer(&host, "web", &[]);
    idle(&host, "linked", &["--link", "web:db"]);
    assert!(reaches(&host, "linked", "http://db/"));
    let hosts = host.ok(&["exec", "linked", "cat", "/etc/hosts"]);
    assert!(hosts.lines().any(|line| line.ends_with(" web") && line.contains("\tdb ")), "{hosts}");
    host.ok(&["network", "create", "blue"]);
    answerer(&host, "site", &["--network", "blue"]);
    idle(&host, "client", &["--network", "blue", "--link", "site:shop"]);
    assert!(reaches(&host, "client", "http://shop/"));
    idle(&host, "beside", &["--network", "container:site"]);
    assert!(reaches(&host, "beside", "http://127.0.0.1/"));
    let refused = host.refused(&["run", "--link", "nope:db", "busybox", "true"]);
    assert!(refused.contains("could not get container for nope"), "{refused}");
}

#[test]
fn a_container_cannot_speak_for_another() {
    skep_only!("stock Docker lets containers use any address");
    let host = host();
    host.ok(&["network", "create", "--subnet", "10.77.0.0/24", "blue"]);
    answerer(&host, "web", &["--network", "blue", "--ip", "10.77.0.10"]);
    let options = ["--network", "blue", "--ip", "10.77.0.20", "--cap-add", "NET_ADMIN"];
    idle(&host, "liar", &options);
    assert!(reaches(&host, "liar", "http://10.77.0.10/"));
    let within = |command: &[&str]| host.ok(&[&["exec", "liar"], command].concat());
    within(&["ip", "addr", "flush", "dev", "eth0"]);
    within(&["ip", "addr", "add", "10.77.0.99/24", "dev", "eth0"]);
    assert!(!reaches(&host, "liar", "http://10.77.0.10/"), "from another address");
    within(&["ip", "addr", "flush", "dev", "eth0"]);
    within(&["ip", "addr", "add", "10.77.0.20/24", "dev", "eth0"]);
    assert!(reaches(&host, "liar", "http://10.77.0.10/"), "from its own again");
}

//! The routing mesh: every node answers on a published port, and tasks see who asks.

use std::collections::BTreeSet;
use std::net::{TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use e2e::{Client, Cluster, Host, needs_balancing, skep_only};

const CREATE: [&str; 5] = ["service", "create", "--detach", "--no-resolve-image", "--name"];

fn create(host: &Host, name: &str, more: &[&str]) {
    host.ok(&[&CREATE[..], &[name], more].concat());
}

/// What whoami says in a line that begins so.
fn said<'a>(answer: &'a str, what: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(what))
}

/// The address, without its port, that the task saw.
fn seen(answer: &str) -> Option<String> {
    let caller = said(answer, "RemoteAddr: ")?;
    Some(caller.rsplit_once(':')?.0.to_owned())
}

/// Which replicas answer a client in so many tries; every try must be answered.
fn replicas(client: &Client, address: &str, tries: usize) -> BTreeSet<String> {
    let ask = |_| client.ask(address, 8080).unwrap_or_else(|| panic!("{address} does not answer"));
    let answers = (0..tries).map(ask);
    answers.filter_map(|answer| said(&answer, "Hostname: ").map(str::to_owned)).collect()
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.hosts().iter().map(|host| host.address.clone()).collect()
}

#[test]
fn every_node_answers_and_the_task_sees_the_client() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    create(first, "web", &["--publish", "8080:80", "whoami"]);
    first.until_running("web", 1);
    for host in cluster.hosts() {
        host.until("it answers", || client.ask(&host.address, 8080).is_some());
        let answer = client.ask(&host.address, 8080).expect("it answers");
        if e2e::is_skep() {
            assert_eq!(seen(&answer).as_deref(), Some(&client.address[..]), "{answer}");
        }
        for address in ["127.0.0.1", "localhost", &host.address] {
            assert!(host.ask(address, 8080).is_some(), "{} asks {address}", host.hostname());
        }
        let bridge = host.exec(&["ip", "-4", "-o", "addr", "show"]).stdout;
        for address in bridge.split_whitespace().filter_map(|word| word.split_once('/')) {
            assert!(host.ask(address.0, 8080).is_some(), "{} asks {address:?}", host.hostname());
        }
        for other in cluster.hosts() {
            assert!(host.ask(&other.address, 8080).is_some(), "nodes ask each other");
        }
    }
    let ports = first.ok(&["service", "ls", "--format", "{{.Ports}}"]);
    assert_eq!(ports, "*:8080->80/tcp");
    cluster.audit();
}

#[test]
fn datagrams_reach_tasks_by_every_node() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let (first, client) = (cluster.host(1), cluster.client());
    let place = ["--constraint", "node.role==worker"];
    let publish = ["--publish", "published=5353,target=80,protocol=udp"];
    create(first, "web", &[&publish[..], &place, &["whoami"]].concat());
    first.until_running("web", 1);
    for address in addresses(&cluster) {
        let ask = || ask_by_datagram(&address, 5353);
        first.until("a datagram is answered", || client.within(ask).is_ok());
        let answer = client.within(ask).expect("just seen");
        if e2e::is_skep() {
            assert_eq!(seen(&answer).as_deref(), Some(&client.address[..]), "{answer}");
        }
    }
    cluster.audit();
}

/// Gives a host of the switch, and the client, addresses of IPv6; answers with those of the hosts.
fn speak_ipv6(cluster: &Cluster, client: &Client) -> Vec<String> {
    let of = |address: &str| format!("fd99::{}", address.rsplit('.').next().expect("a number"));
    let arguments = |address: &str| {
        let address = format!("{}/64", of(address));
        ["ip", "-6", "addr", "add", &address, "dev", "eth0", "nodad"].map(str::to_owned)
    };
    let given = arguments(&client.address);
    client.exec(&given.each_ref().map(String::as_str));
    for host in cluster.hosts() {
        let given = arguments(&host.address);
        host.exec(&given.each_ref().map(String::as_str));
    }
    cluster.hosts().iter().map(|host| of(&host.address)).collect()
}

#[test]
fn every_node_answers_over_ipv6_and_the_task_sees_the_client() {
    skep_only!("stock Docker's mesh has no IPv6, and its proxy hides the client");
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    let nodes = speak_ipv6(&cluster, &client);
    let seen_from = format!("[fd99::{}]", client.address.rsplit('.').next().expect("a number"));
    let udp = ["--publish", "published=5353,target=80,protocol=udp"];
    create(first, "web", &[&["--publish", "8080:80"], &udp[..], &["whoami"]].concat());
    first.until_running("web", 1);
    for (host, address) in cluster.hosts().iter().zip(&nodes) {
        let address = format!("[{address}]");
        host.until("it answers", || client.ask(&address, 8080).is_some());
        let answer = client.ask(&address, 8080).expect("it answers");
        assert_eq!(seen(&answer).as_deref(), Some(&seen_from[..]), "{answer}");
        for own in ["[::1]", "localhost", &address] {
            assert!(host.ask(own, 8080).is_some(), "{} asks {own}", host.hostname());
        }
        let answer = client.within(|| ask_by_datagram(&address, 5353)).expect("it answers");
        assert_eq!(seen(&answer).as_deref(), Some(&seen_from[..]), "{answer}");
    }
    cluster.audit();
}

#[test]
fn ports_of_a_tasks_own_node_answer_over_ipv6_and_are_shown_so() {
    let cluster = Cluster::swarm(1, 0);
    let (first, client) = (cluster.host(1), cluster.client());
    let nodes = speak_ipv6(&cluster, &client);
    let publish = ["--publish", "mode=host,published=8080,target=80"];
    create(first, "web", &[&publish[..], &["whoami"]].concat());
    first.until_running("web", 1);
    let address = format!("[{}]", nodes[0]);
    first.until("it answers", || client.ask(&address, 8080).is_some());
    if e2e::is_skep() {
        let answer = client.ask(&address, 8080).expect("it answers");
        let expected = format!("[fd99::{}]", client.address.rsplit('.').next().expect("a number"));
        assert_eq!(seen(&answer), Some(expected), "{answer}");
    }
    assert!(first.ask("[::1]", 8080).is_some(), "the host itself");
    let ports = first.ok(&["ps", "--format", "{{.Ports}}", "--filter", "name=web"]);
    // The brackets are newer commands'.
    assert_eq!(ports.replace(":::", "[::]:"), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp");
}

#[test]
fn a_process_that_listens_on_ipv4_alone_is_reached_over_ipv6_too() {
    skep_only!("stock Docker's mesh has no IPv6");
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    let nodes = speak_ipv6(&cluster, &client);
    let httpd = ["busybox", "httpd", "-f", "-p", "0.0.0.0:80", "-h", "/etc"];
    create(first, "web", &[&["--publish", "8080:80"], &httpd[..]].concat());
    let publish = ["--mode", "global", "--publish", "mode=host,published=8081,target=80"];
    create(first, "own", &[&publish[..], &httpd].concat());
    first.ok(&[&["run", "-d", "--name", "plain", "-p", "8082:80"], &httpd[..]].concat());
    first.until_running("web", 1);
    first.until_running("own", 3);
    let has = |said: Option<String>| said.is_some_and(|said| said.contains("404"));
    for (host, address) in cluster.hosts().iter().zip(&nodes) {
        let address = format!("[{address}]");
        let ports = if host.name == first.name { 8080..=8082 } else { 8080..=8081 };
        for port in ports {
            first.until("it answers", || has(client.ask(&address, port)));
            for own in ["[::1]", "localhost", &address] {
                assert!(has(host.ask(own, port)), "{} asks {own}:{port}", host.hostname());
            }
        }
    }
    cluster.audit();
}

/// What a port answers to a datagram.
fn ask_by_datagram(address: &str, port: u16) -> std::io::Result<String> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(format!("{address}:{port}"))?;
    socket.send(b"who?")?;
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[test]
fn all_replicas_answer_by_every_node_and_those_that_leave_do_not() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    create(first, "web", &["--publish", "8080:80", "--replicas", "4", "whoami"]);
    first.until_running("web", 4);
    for address in addresses(&cluster) {
        first.until("all answer", || {
            client.ask(&address, 8080).is_some() && replicas(&client, &address, 40).len() == 4
        });
    }
    first.ok(&["service", "scale", "--detach", "web=1"]);
    for address in addresses(&cluster) {
        first.until("one is left", || replicas(&client, &address, 10).len() == 1);
    }
    first.ok(&["service", "scale", "--detach", "web=3"]);
    first.until_running("web", 3);
    for address in addresses(&cluster) {
        first.until("all answer", || replicas(&client, &address, 40).len() == 3);
    }
    first.ok(&["service", "rm", "web"]);
    for address in addresses(&cluster) {
        first.until("nobody answers", || client.ask(&address, 8080).is_none());
    }
    cluster.audit();
}

#[test]
fn a_port_that_nobody_serves_refuses_at_once_by_every_node() {
    skep_only!("stock Docker lets clients wait");
    let cluster = Cluster::swarm(1, 1);
    let (first, client) = (cluster.host(1), cluster.client());
    let udp = "published=5353,target=80,protocol=udp";
    let publish = ["--publish", "8080:80", "--publish", udp, "--replicas", "0", "whoami"];
    create(first, "web", &publish);
    let nodes = [addresses(&cluster), speak_ipv6(&cluster, &client)].concat();
    for address in nodes {
        let address = if address.contains(':') { format!("[{address}]") } else { address };
        let refused = || {
            let tcp = TcpStream::connect(format!("{address}:8080")).map(drop);
            let udp = ask_by_datagram(&address, 5353).map(drop);
            [tcp, udp].map(|asked| asked.expect_err("nobody is there").kind())
        };
        let expected = [std::io::ErrorKind::ConnectionRefused; 2];
        first.until("it refuses", || client.within(refused) == expected);
    }
    cluster.audit();
}

#[test]
fn a_client_stays_with_its_task_by_every_node_where_a_label_asks_for_it() {
    skep_only!("stock Docker knows no such label");
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    let strange = ["--label", "skep.sticky=cookie", "--publish", "8080:80", "whoami"];
    let refused = first.refused(&[&CREATE[..], &["web"], &strange[..]].concat());
    assert!(refused.contains("only skep.sticky=client is known"), "{refused}");
    let publish = ["--publish", "8080:80", "--replicas", "4", "whoami"];
    create(first, "web", &[&["--label", "skep.sticky=client"], &publish[..]].concat());
    first.until_running("web", 4);
    let by_all = || {
        let answers = addresses(&cluster).into_iter().map(|it| replicas(&client, &it, 5));
        answers.reduce(|all, more| &all | &more).unwrap_or_default()
    };
    for address in addresses(&cluster) {
        first.until("it answers", || client.ask(&address, 8080).is_some());
    }
    first.until("the same one answers by every node", || by_all().len() == 1);
    cluster.audit();
    first.ok(&["service", "update", "--detach", "--label-rm", "skep.sticky", "web"]);
    first.until("all answer", || by_all().len() == 4);
    cluster.audit();
}

#[test]
fn tasks_of_the_entered_node_come_first_where_a_label_asks_for_it() {
    skep_only!("stock Docker knows no such label");
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    let place = ["--constraint", "node.role==worker", "--mode", "global"];
    let publish = ["--label", "skep.prefer=local", "--publish", "8080:80", "whoami"];
    create(first, "web", &[&place[..], &publish[..]].concat());
    first.until_running("web", 2);
    for host in &cluster.hosts()[1..] {
        host.until("it answers", || client.ask(&host.address, 8080).is_some());
        host.until("its own task does", || {
            let own = host.containers("web").remove(0)[..12].to_owned();
            replicas(&client, &host.address, 20) == [own].into()
        });
    }
    first.until("one without answers by all", || replicas(&client, &first.address, 30).len() == 2);
    cluster.audit();
}

#[test]
fn datagrams_from_one_port_go_on_with_another_task_when_theirs_is_gone() {
    skep_only!("stock Docker lets them go nowhere");
    let cluster = Cluster::swarm(1, 1);
    let (first, client) = (cluster.host(1), cluster.client());
    let publish = ["--publish", "published=5353,target=80,protocol=udp"];
    create(first, "web", &[&publish[..], &["--replicas", "2", "whoami"]].concat());
    first.until_running("web", 2);
    for address in addresses(&cluster) {
        let connected = || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
            socket.connect((&address[..], 5353)).expect("connects");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("sets");
            socket
        };
        let socket = client.within(connected);
        let answering = || {
            socket.send(b"who?").ok()?;
            let mut bytes = [0; 512];
            let length = socket.recv(&mut bytes).ok()?;
            said(&String::from_utf8_lossy(&bytes[..length]), "Hostname: ").map(str::to_owned)
        };
        first.until("it is answered", || answering().is_some());
        let before = answering().expect("just seen");
        assert_eq!(answering(), Some(before.clone()), "by the same one");
        // Whoever answered is no more.
        let hosts = cluster.hosts().iter();
        let holder =
            hosts.filter(|host| host.containers("web").iter().any(|it| before[..] == it[..12]));
        holder.for_each(|host| drop(host.ok(&["kill", &before])));
        first.until("another one answers", || answering().is_some_and(|now| now != before));
        first.until_running("web", 2);
    }
    cluster.audit();
}

#[test]
fn containers_reach_published_ports_of_every_node() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    let place = ["--constraint", "node.role==worker"];
    create(first, "web", &[&place[..], &["--publish", "8080:80", "whoami"]].concat());
    create(first, "client", &["--mode", "global", "busybox", "sleep", "100000"]);
    first.until_running("web", 1);
    first.until_running("client", 2);
    for host in cluster.hosts() {
        let container = host.containers("client").remove(0);
        for address in addresses(&cluster) {
            let url = format!("http://{address}:8080/");
            let ask = ["exec", &container, "timeout", "3", "wget", "-q", "-O", "-", &url];
            host.until("it is answered", || host.docker(&ask).code == 0);
        }
    }
    cluster.audit();
}

#[test]
fn an_entry_node_answers_while_its_daemon_is_gone_and_follows_changes_once_it_is_back() {
    skep_only!("stock Docker's own process has part in every connection");
    let mut cluster = Cluster::swarm(1, 2);
    let client = cluster.client();
    let first = cluster.host(1);
    let place = ["--constraint", "node.hostname==host3"];
    create(first, "web", &[&place[..], &["--publish", "8080:80", "whoami"]].concat());
    first.until_running("web", 1);
    let entry = cluster.host(2).address.clone();
    first.until("it answers", || client.ask(&entry, 8080).is_some());
    let before = replicas(&client, &entry, 1);
    cluster.host_mut(2).kill();
    assert_eq!(replicas(&client, &entry, 5), before);
    cluster.host(1).ok(&["service", "update", "--detach", "--force", "web"]);
    cluster.host_mut(2).start();
    cluster.host(1).until("the new task answers", || {
        client.ask(&entry, 8080).is_some_and(|answer| {
            said(&answer, "Hostname: ").is_some_and(|name| !before.contains(name))
        })
    });
    cluster.audit();
}

#[test]
fn a_port_that_one_node_cannot_give_is_answered_by_the_others() {
    skep_only!("stock Docker does not notice");
    let cluster = Cluster::swarm(1, 1);
    let (first, second, client) = (cluster.host(1), cluster.host(2), cluster.client());
    let namespace = format!("--net=/run/netns/{}", second.name);
    let mut holder = std::process::Command::new("nsenter");
    holder.args([&namespace, "--", "/bin/busybox", "nc", "-ll", "-p", "8080", "-e", "/bin/true"]);
    let mut holder = holder.stdin(Stdio::null()).spawn().expect("nsenter runs");
    second.until("the port is held", || second.exec(&["ss", "-Htln"]).stdout.contains(":8080"));
    let place = ["--constraint", "node.role==worker"];
    create(first, "web", &[&place[..], &["--publish", "8080:80", "whoami"]].concat());
    first.until_running("web", 1);
    first.until("the other answers", || client.ask(&first.address, 8080).is_some());
    let answer = client.ask(&first.address, 8080).expect("just seen");
    assert_eq!(seen(&answer).as_deref(), Some(&client.address[..]));
    holder.kill().expect("it runs");
    holder.wait().expect("it ends");
    first.until("it answers itself", || client.ask(&second.address, 8080).is_some());
}

#[test]
fn nothing_is_left_of_the_mesh_when_a_node_leaves() {
    skep_only!("stock Docker keeps its own names");
    let cluster = Cluster::swarm(1, 1);
    let (first, second, client) = (cluster.host(1), cluster.host(2), cluster.client());
    create(first, "web", &["--publish", "8080:80", "--replicas", "2", "whoami"]);
    first.until_running("web", 2);
    second.until("it answers", || client.ask(&second.address, 8080).is_some());
    second.ok(&["swarm", "leave"]);
    let state = || {
        let commands = ["ip rule", "ip route show table all", "ip -o link", "nft list tables"];
        let printed = commands.map(|command| second.exec(&["sh", "-c", command]).stdout);
        printed.concat()
    };
    second.until("nothing is left", || {
        let left = state();
        ["ing-", "ingress", "169.254.", "fwmark", "vxlan"].iter().all(|word| !left.contains(word))
    });
    assert!(client.ask(&second.address, 8080).is_none());
    let taken = second.exec(&["timeout", "1", "/bin/busybox", "nc", "-l", "-p", "8080"]);
    assert!(!taken.stderr.contains("in use"), "the port is free: {taken:?}");
}

#[test]
fn the_ingress_network_can_be_replaced_while_nobody_publishes() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let (first, client) = (cluster.host(1), cluster.client());
    create(first, "web", &["--publish", "8080:80", "whoami"]);
    let used = first.on_stdin(&["network", "rm", "ingress"], "y\n");
    assert!(used.stderr.contains("because service"), "{used:?}");
    first.ok(&["service", "rm", "web"]);
    first.until("it can be removed", || {
        first.on_stdin(&["network", "rm", "ingress"], "y\n").code == 0
    });
    let refused =
        first.refused(&[&CREATE[..], &["web", "--publish", "8080:80", "whoami"]].concat());
    let text = "service needs ingress network, but no ingress network is present";
    assert!(refused.contains(text), "{refused}");
    let network = ["network", "create", "--driver", "overlay", "--ingress"];
    first.ok(&[&network[..], &["--subnet", "10.11.0.0/16", "mesh"]].concat());
    create(first, "web", &["--publish", "8080:80", "whoami"]);
    first.until_running("web", 1);
    for address in addresses(&cluster) {
        first.until("it answers", || client.ask(&address, 8080).is_some());
    }
}

#[test]
fn ports_come_and_go_while_the_service_runs() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let (first, client) = (cluster.host(1), cluster.client());
    create(first, "web", &["--replicas", "2", "whoami"]);
    first.until_running("web", 2);
    first.ok(&["service", "update", "--detach", "--publish-add", "8080:80", "web"]);
    for address in addresses(&cluster) {
        first.until("both answer", || {
            client.ask(&address, 8080).is_some() && replicas(&client, &address, 20).len() == 2
        });
    }
    let change = ["--publish-rm", "80", "--publish-add", "8090:80"];
    first.ok(&[&["service", "update", "--detach"], &change[..], &["web"]].concat());
    for address in addresses(&cluster) {
        first.until("the other port answers", || client.ask(&address, 8090).is_some());
        first.until("the old one does not", || client.ask(&address, 8080).is_none());
    }
}

#[test]
fn a_registry_of_the_swarm_is_on_localhost_of_every_node() {
    needs_balancing!();
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    second.load_registry();
    let place = ["--constraint", "node.role==worker"];
    create(first, "registry", &[&place[..], &["--publish", "5000:5000", "registry"]].concat());
    first.until_running("registry", 1);
    for (host, name) in [(first, "127.0.0.1"), (second, "localhost")] {
        host.until("the registry answers", || host.ask(name, 5000).is_some());
        let image = format!("{name}:5000/{}/busybox:1", host.hostname());
        host.ok(&["tag", "busybox", &image]);
        host.ok(&["push", &image]);
        host.ok(&["rmi", &image]);
    }
    for (host, pushed_by) in [(first, second), (second, first)] {
        for name in ["127.0.0.1", "localhost"] {
            host.ok(&["pull", &format!("{name}:5000/{}/busybox:1", pushed_by.hostname())]);
        }
    }
}

#[test]
fn a_service_shows_its_place_in_the_ingress_network() {
    let host = Host::in_swarm();
    create(&host, "web", &["--publish", "8080:80", "whoami"]);
    host.until_running("web", 1);
    let ingress = host.ok(&["network", "inspect", "ingress", "--format", "{{.ID}}"]);
    let virtual_ips = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}} {{end}}";
    let virtual_ips = host.ok(&["service", "inspect", "web", "--format", virtual_ips]);
    let shown: Vec<_> = virtual_ips.split_whitespace().collect();
    assert_eq!((shown.len(), shown[0]), (2, &ingress[..]), "{virtual_ips}");
    if e2e::is_skep() {
        assert!(shown[1].starts_with("10.255.") && shown[1].ends_with("/16"), "{virtual_ips}");
    }
    let ports = host.ok(&["ps", "--format", "{{.Ports}}", "--filter", "name=web"]);
    assert_eq!(ports, "", "not the container's own");
}

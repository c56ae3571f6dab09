//! Sentences about the routing mesh, on hosts joined by a switch.
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use network::{DATA_PORT, Flows, Ingress, Network, PlugRequest, Protocol, PublishedPort, Underlay};

use crate::hosts::{Machine, Node, PORT, block_on, inside, ip, local, run};
use crate::sctp;

/// The port that every node answers on.
const PUBLISHED: u16 = 8080;
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Hosts 1 and 2 are nodes; a client has 9.
struct Wire {
    switch: Machine,
}

impl Wire {
    fn new() -> Self {
        let switch = Machine::new();
        switch.run(|| {
            ip("link add sw type bridge forward_delay 0");
            ip("link set sw up");
        });
        Self { switch }
    }

    /// A machine with a cable to the switch.
    fn machine(&self, number: u8) -> Machine {
        let machine = Machine::new();
        let thread = machine.thread;
        self.switch.run(move || {
            ip(&format!("link add p{number} type veth peer name eth0 netns {thread}"));
            ip(&format!("link set p{number} master sw"));
            ip(&format!("link set p{number} up"));
        });
        machine.run(move || {
            ip(&format!("addr add 10.99.0.{number}/24 dev eth0"));
            ip(&format!("addr add fd99::{number}/64 dev eth0 nodad"));
            ip("link set eth0 up");
        });
        machine
    }

    fn node(&self, number: u8) -> Node {
        Node::new(number, self.machine(number))
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number)
}

/// A node, and where it takes what goes from node to node.
fn way(number: u8) -> (IpAddr, IpAddr) {
    (address(number).into(), address(number).into())
}

fn address_of_ipv6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into()).into()
}

/// A task: its address in the ingress network, its node, and its socket on the node's bridge.
#[derive(Clone, Copy)]
struct Task {
    address: Ipv4Addr,
    node: u8,
    inside: Ipv4Addr,
}

impl Node {
    /// A container with an address on the bridge.
    fn container(&self, name: &'static str, last: u8) -> (PathBuf, Task) {
        let network = self.network();
        let endpoint = self.machine.run(move || block_on(network.connect(name)).expect("connects"));
        let address = Ipv4Addr::new(10, 255, 0, last);
        (endpoint.netns, Task { address, node: self.number, inside: endpoint.address })
    }

    /// Tells the node of its part: who serves, and who is there besides.
    fn set(&self, serving: &[Task], there: &[Task]) {
        let ingress = ingress_of(self.number, serving, there);
        let network = self.network();
        self.machine.run(move || block_on(set_ingress(&network, ingress)));
    }

    fn ask(&self, to: impl Into<IpAddr>) -> Option<String> {
        let to = to.into();
        self.machine.run(move || ask(to))
    }
}

async fn set_ingress(network: &Network, ingress: Ingress) {
    let gone = network.set_ingress(ingress).await.expect("sets");
    network.forget_flows(gone, Flows::All).await.expect("forgets");
}

fn ingress_of(own: u8, serving: &[Task], there: &[Task]) -> Ingress {
    let mut ingress = Ingress {
        underlay: Some(Underlay {
            vni: 4_096,
            subnets: vec!["10.255.0.0/16".parse().expect("a subnet")],
            local: address(own).into(),
            port: DATA_PORT,
            mtu: None,
            is_encrypted: false,
        }),
        nodes: [1, 2].into_iter().filter(|it| *it != own).map(way).collect(),
        ..Ingress::default()
    };
    for task in serving.iter().chain(there) {
        ingress.held.insert(task.address);
        if task.node == own {
            ingress.held.insert(task.inside);
        } else {
            ingress.routes.insert(task.address, IpAddr::from(address(task.node)));
        }
    }
    for task in serving {
        for protocol in PROTOCOLS {
            let front = (protocol, PUBLISHED);
            let inside = (task.inside, PORT);
            let socket = if task.node == own { inside } else { (task.address, PUBLISHED) };
            ingress.fronts.entry(front).or_default().insert(socket);
            if task.node == own {
                ingress.own.insert((task.address, front), inside);
            }
        }
    }
    ingress
}

/// Answers each line and each datagram with `word` and the caller's address, for as long as the test runs.
fn serve(netns: &Path, word: &'static str) {
    let (listener, socket) = inside(netns, || {
        let any = ("::", PORT);
        (TcpListener::bind(any).expect("binds"), UdpSocket::bind(any).expect("binds"))
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, caller)) = listener.accept() {
            std::thread::spawn(move || {
                let mut bytes = [0; 64 << 10];
                while stream.read(&mut bytes).is_ok_and(|length| length > 0) {
                    if bytes.contains(&b'\n') {
                        let _ =
                            stream.write_all(format!("{word} {}", canonical(caller)).as_bytes());
                        bytes.fill(0);
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((_, caller)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(format!("{word} {}", canonical(caller)).as_bytes(), caller);
        }
    });
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn connect(to: impl Into<IpAddr>) -> Option<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&(to.into(), PUBLISHED).into(), Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    Some(stream)
}

fn say(stream: &mut TcpStream, what: &[u8]) -> Option<String> {
    stream.write_all(what).ok()?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// The word of the task that answers, and whether it saw the caller as the caller sees itself.
fn ask(to: impl Into<IpAddr>) -> Option<String> {
    let mut stream = connect(to)?;
    let answer = say(&mut stream, b"\n")?;
    let own = stream.local_addr().ok()?;
    Some(judged(&answer, own))
}

fn ask_by_datagram(socket: &UdpSocket, to: impl Into<IpAddr>) -> Option<String> {
    socket.connect((to.into(), PUBLISHED)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    socket.send(b"\n").ok()?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).ok()?;
    let own = socket.local_addr().ok()?;
    Some(judged(&String::from_utf8_lossy(&answer[..length]), own))
}

fn judged(answer: &str, own: SocketAddr) -> String {
    match answer.split_once(' ') {
        Some((word, seen)) if seen == own.to_string() => format!("{word} saw me"),
        Some((word, seen)) => {
            let seen = seen.rsplit_once(':').map_or(seen, |(address, _)| address);
            format!("{word} saw {seen}")
        }
        None => answer.to_owned(),
    }
}

fn seen(tries: usize, ask: impl Fn() -> Option<String>) -> BTreeSet<String> {
    (0..tries).map(|_| ask().unwrap_or_else(|| "nothing".into())).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Two nodes, a task on the second, a client.
fn one_task() -> (Wire, Node, Node, Machine, Task, PathBuf) {
    let wire = Wire::new();
    let (one, two, client) = (wire.node(1), wire.node(2), wire.machine(9));
    let (netns, task) = two.container("bbbbbbbbbbbb", 7);
    serve(&netns, "b");
    one.set(&[task], &[]);
    two.set(&[task], &[]);
    (wire, one, two, client, task, netns)
}

#[test]
fn every_node_answers_and_the_task_sees_who_asks() {
    let (_wire, one, two, client, ..) = one_task();
    for node in [1, 2] {
        assert_eq!(client.run(move || ask(address(node))).as_deref(), Some("b saw me"), "{node}");
        let by_datagram = client.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
            ask_by_datagram(&socket, address(node))
        });
        assert_eq!(by_datagram.as_deref(), Some("b saw me"), "{node}");
    }
    let localhost = Ipv4Addr::LOCALHOST;
    assert_eq!(one.ask(localhost).as_deref(), Some("b saw 10.99.0.1"));
    assert_eq!(one.ask(address(1)).as_deref(), Some("b saw me"));
    assert_eq!(one.ask(address(2)).as_deref(), Some("b saw me"));
    assert!(two.ask(localhost).is_some_and(|answer| answer.starts_with("b saw 172.")));
    assert_eq!(two.ask(address(1)).as_deref(), Some("b saw 10.99.0.1"), "home by another node");
}

#[test]
fn every_node_answers_over_ipv6_and_the_task_sees_who_asks() {
    let (_wire, one, two, client, ..) = one_task();
    for node in [1, 2].map(address_of_ipv6) {
        assert_eq!(client.run(move || ask(node)).as_deref(), Some("b saw me"), "{node}");
        let by_datagram = client.run(move || {
            let socket = UdpSocket::bind("[::]:0").expect("binds");
            ask_by_datagram(&socket, node)
        });
        assert_eq!(by_datagram.as_deref(), Some("b saw me"), "{node}");
    }
    let localhost = Ipv6Addr::LOCALHOST;
    assert_eq!(one.ask(localhost).as_deref(), Some("b saw [fd73:6b65:7000:2::a63:1]"));
    assert_eq!(one.ask(address_of_ipv6(1)).as_deref(), Some("b saw me"));
    assert_eq!(one.ask(address_of_ipv6(2)).as_deref(), Some("b saw me"));
    assert!(two.ask(localhost).is_some_and(|answer| answer.starts_with("b saw [fd73:")));
    assert_eq!(two.ask(address_of_ipv6(2)).as_deref(), Some("b saw me"));
}

#[test]
fn much_passes_both_ways_over_ipv6_too() {
    let (_wire, _one, _two, client, ..) = one_task();
    let answer = client.run(|| {
        let mut stream = connect(address_of_ipv6(1))?;
        let mut much = vec![b'x'; 4 << 20];
        much.push(b'\n');
        say(&mut stream, &much)
    });
    assert!(answer.is_some_and(|answer| answer.starts_with("b [fd99::9]:")));
}

#[test]
fn containers_reach_every_nodes_ports() {
    let (_wire, one, _two, _client, _task, netns) = one_task();
    let (other, _) = one.container("aaaaaaaaaaaa", 6);
    for node in [1, 2] {
        let answer = inside(&other, || ask(address(node)));
        assert_eq!(answer.as_deref(), Some("b saw 10.99.0.1"), "from beside, to {node}");
        let answer = inside(&netns, || ask(address(node)));
        assert!(
            answer.is_some_and(|answer| answer.starts_with("b saw ")),
            "from itself, to {node}"
        );
    }
}

#[test]
fn containers_of_other_networks_of_the_host_reach_them_too() {
    let (_wire, one, two, ..) = one_task();
    // The same subnet is somebody else's on the other node.
    for node in [&one, &two] {
        let (network, local) = (node.network(), local(1));
        node.machine.run(move || block_on(network.make_local(local)).expect("makes"));
    }
    let network = one.network();
    let netns = one.machine.run(move || {
        block_on(async {
            let request = PlugRequest { network: "net1".into(), ..PlugRequest::default() };
            let plug = network.plug("cccccccccccc", request).await.expect("plugs");
            network.lead_out("cccccccccccc", Some(plug.gateway), None).await.expect("leads out");
            network.netns("cccccccccccc")
        })
    });
    for node in [1, 2] {
        let answer = inside(&netns, || ask(address(node)));
        assert_eq!(answer.as_deref(), Some("b saw 10.99.0.1"), "{node}");
    }
    let table = one.machine.run(|| run("nft", "list chain ip skep-in1-ingress leaving"));
    assert!(table.contains("10.8.1.0/24"), "{table}");
}

#[test]
fn associations_of_sctp_are_led_to_the_task_which_sees_who_asks() {
    let (_wire, one, _two, client, _task, netns) = one_task();
    sctp::serve(&netns);
    for (node, port) in [(1, 40_001), (2, 40_002)] {
        let front = (address(node), PUBLISHED);
        let answer = client.run(move || sctp::ask(front, port));
        assert_eq!(answer, Some((front, address(9))), "{node}");
    }
    drop(one);
}

#[test]
fn much_passes_both_ways_though_the_way_is_narrower_inside() {
    let (_wire, _one, _two, client, ..) = one_task();
    let answer = client.run(|| {
        let mut stream = connect(address(1))?;
        let mut much = vec![b'x'; 4 << 20];
        much.push(b'\n');
        say(&mut stream, &much)
    });
    assert!(answer.is_some_and(|answer| answer.starts_with("b 10.99.0.9:")));
}

#[test]
fn connections_are_spread_over_the_tasks_of_all_nodes() {
    let (_wire, one, two, client, task, _) = one_task();
    let (netns, other) = one.container("aaaaaaaaaaaa", 6);
    serve(&netns, "a");
    one.set(&[task, other], &[]);
    two.set(&[task, other], &[]);
    for node in [1, 2] {
        let answers = client.run(move || seen(40, || ask(address(node))));
        assert_eq!(answers, set(&["a saw me", "b saw me"]), "{node}");
    }
}

#[test]
fn a_client_has_the_same_task_by_every_node_where_that_is_asked_for() {
    let (_wire, one, two, client, task, _) = one_task();
    let (netns, other) = one.container("aaaaaaaaaaaa", 6);
    serve(&netns, "a");
    let set = |node: &Node, serving: &[Task]| {
        let mut ingress = ingress_of(node.number, serving, &[]);
        ingress.sticky = ingress.fronts.keys().copied().collect();
        let network = node.network();
        node.machine.run(move || block_on(set_ingress(&network, ingress)));
    };
    client.run(|| {
        for last in 20..40 {
            ip(&format!("addr add 10.99.0.{last}/24 dev eth0"));
        }
    });
    let ask_as = |last: u8, node: u8| {
        client.run(move || {
            let socket = UdpSocket::bind((address(last), 0)).expect("binds");
            ask_by_datagram(&socket, address(node)).expect("answered")
        })
    };
    set(&one, &[task, other]);
    set(&two, &[task, other]);
    let before: Vec<_> = (20..40).map(|last| ask_as(last, 1)).collect();
    assert_eq!(before.iter().cloned().collect::<BTreeSet<_>>(), set_of_both(), "both serve");
    for (last, before) in (20..40).zip(&before) {
        assert_eq!(&ask_as(last, 2), before, "{last} by the other node");
        assert_eq!(&ask_as(last, 1), before, "{last} once more");
    }
    assert!(client.run(|| seen(10, || ask(address_of_ipv6(1)))).len() == 1);
    assert_eq!(
        client.run(|| seen(10, || ask(address_of_ipv6(2)))),
        client.run(|| seen(1, || ask(address_of_ipv6(1))))
    );
    one.set(&[task, other], &[]);
    assert_eq!(client.run(|| seen(40, || ask(address(1)))).len(), 2, "nobody asked for it");
}

fn set_of_both() -> BTreeSet<String> {
    set(&["a saw me", "b saw me"])
}

#[test]
fn a_node_that_has_not_heard_of_a_tasks_end_loses_nothing() {
    let (_wire, one, two, client, task, _) = one_task();
    let (netns, other) = one.container("aaaaaaaaaaaa", 6);
    serve(&netns, "a");
    // The first has not heard of its own task, and not that the second's is to stop.
    let mut under_way = client.run(|| connect(address(1)).expect("connects"));
    let ingress = {
        let mut ingress = ingress_of(1, &[task], &[other]);
        ingress.own.extend(ingress_of(1, &[other], &[]).own);
        ingress
    };
    let network = one.network();
    one.machine.run(move || block_on(set_ingress(&network, ingress)));
    two.set(&[other], &[task]);
    let answers = client.run(|| seen(20, || ask(address(1))));
    assert_eq!(answers, set(&["a saw me"]), "passed on by the second");
    assert!(say(&mut under_way, b"\n").is_some_and(|answer| answer.starts_with("b 10.99.0.9:")));
}

#[test]
fn datagrams_do_not_stick_to_a_task_that_is_gone() {
    do_not_stick("0.0.0.0:0", |node| address(node).into());
    do_not_stick("[::]:0", address_of_ipv6);
}

fn do_not_stick(from: &'static str, address: impl Fn(u8) -> IpAddr) {
    let (_wire, one, two, client, task, _) = one_task();
    let (netns, other) = one.container("aaaaaaaaaaaa", 6);
    serve(&netns, "a");
    let socket = client.run(move || UdpSocket::bind(from).expect("binds"));
    for via in [1, 2] {
        assert_eq!(ask_by_datagram(&socket, address(via)).as_deref(), Some("b saw me"), "{via}");
        one.set(&[other], &[task]);
        two.set(&[other], &[task]);
        assert_eq!(ask_by_datagram(&socket, address(via)).as_deref(), Some("b saw me"), "drains");
        one.set(&[other], &[]);
        two.set(&[other], &[]);
        assert_eq!(ask_by_datagram(&socket, address(via)).as_deref(), Some("a saw me"), "{via}");
        one.set(&[task], &[other]);
        two.set(&[task], &[other]);
        one.set(&[task], &[]);
        two.set(&[task], &[]);
    }
}

#[test]
fn a_port_without_tasks_refuses_at_once() {
    let (_wire, one, _two, client, task, _) = one_task();
    let refused = |to: IpAddr| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let stream = TcpStream::connect_timeout(&(to, PUBLISHED).into(), Duration::from_secs(3));
        let socket = UdpSocket::bind(any).expect("binds");
        socket.connect((to, PUBLISHED)).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("sets");
        socket.send(b"?").expect("sends");
        let datagram = socket.recv(&mut [0; 8]);
        [stream.err(), datagram.err()].map(|error| error.map(|error| error.kind()))
    };
    let network = one.network();
    // As a published port of a swarm is.
    one.machine.run(move || {
        let kept = PROTOCOLS.map(|protocol| PublishedPort {
            protocol,
            host_ip: None,
            published: PUBLISHED,
            target: PUBLISHED,
            backends: Vec::new(),
        });
        block_on(network.keep_ports("ingress", kept.to_vec())).expect("keeps")
    });
    let mut nobody = ingress_of(1, &[], &[]);
    nobody.fronts = PROTOCOLS.map(|protocol| ((protocol, PUBLISHED), BTreeSet::new())).into();
    let set = |ingress| {
        let network = one.network();
        one.machine.run(move || block_on(set_ingress(&network, ingress)));
    };
    for _ in 0..2 {
        set(nobody.clone());
        for node in [address(1).into(), address_of_ipv6(1)] {
            let expected = [Some(std::io::ErrorKind::ConnectionRefused); 2];
            assert_eq!(client.run(move || refused(node)), expected, "{node}");
        }
        let localhost = Ipv6Addr::LOCALHOST.into();
        assert!(one.machine.run(move || refused(localhost)).iter().all(Option::is_some));
        set(ingress_of(1, &[task], &[]));
        for node in [address(1).into(), address_of_ipv6(1)] {
            assert_eq!(client.run(move || ask(node)).as_deref(), Some("b saw me"), "{node}");
        }
    }
}

#[test]
fn another_daemon_takes_over_and_cleans_what_is_stale() {
    let (_wire, mut one, two, client, task, _) = one_task();
    let mut under_way = client.run(|| connect(address(1)).expect("connects"));
    let (before, hops) = one.machine.run(|| (ip("rule"), ip("neigh show dev ing-in1")));
    one.machine.run(|| {
        ip("route add 10.255.0.99/32 via 169.254.0.1 dev ing-in1 onlink proto static");
    });
    one.stop();
    assert_eq!(client.run(|| ask(address(1))).as_deref(), Some("b saw me"), "without a daemon");
    one.restart();
    assert_eq!(client.run(|| ask(address(1))).as_deref(), Some("b saw me"), "not yet told");
    one.set(&[task], &[]);
    assert!(say(&mut under_way, b"\n").is_some_and(|answer| answer.starts_with("b 10.99.0.9:")));
    let after = one.machine.run(|| (ip("rule"), ip("neigh show dev ing-in1")));
    assert_eq!(after, (before, hops), "nothing is made twice");
    assert!(!one.machine.run(|| ip("route")).contains("10.255.0.99"), "what is stale is gone");
    drop(two);
}

#[test]
fn nothing_is_left_when_the_node_leaves() {
    let (_wire, one, ..) = one_task();
    let state = || {
        let tables = run("nft", "list tables");
        ip("rule") + &ip("route show table all") + &ip("-o link show type vxlan") + &tables
    };
    let made = one.machine.run(state);
    assert!(made.contains("ing-in1") && made.contains("skep-in1-ingress"), "{made}");
    let network = one.network();
    one.machine.run(move || block_on(network.remove_ingress()).expect("removes"));
    let left = one.machine.run(state);
    for ours in ["ing-in1", "ingress", "169.254", "fwmark"] {
        assert!(!left.contains(ours), "{ours}: {left}");
    }
}

#[test]
fn a_node_that_left_the_swarm_is_forgotten_and_its_number_is_used_again() {
    let (_wire, one, _two, client, task, _) = one_task();
    let with = |others: &[u8]| {
        let mut ingress = ingress_of(1, &[task], &[]);
        ingress.nodes.extend(others.iter().map(|other| way(*other)));
        let network = one.network();
        one.machine.run(move || block_on(set_ingress(&network, ingress)));
        one.machine.run(|| {
            let neighbours = ip("neigh show dev ing-in1");
            let rules = ip("rule").lines().filter(|line| line.contains("iif")).count();
            let places = run("bridge", "fdb show dev ing-in1").lines().count();
            (neighbours, rules, places)
        })
    };
    let (before, rules, places) = with(&[]);
    assert_eq!((rules, places), (2, 1));
    let (more, rules, places) = with(&[7, 8]);
    assert_eq!((rules, places), (6, 3));
    assert!(more.contains("169.254.0.3 lladdr 02:42:0a:63:00:08"), "{more}");
    let (_, rules, places) = with(&[8]);
    assert_eq!((rules, places), (4, 2));
    let (again, ..) = with(&[8, 6]);
    assert!(again.contains("169.254.0.2 lladdr 02:42:0a:63:00:06"), "{again}");
    assert_eq!(with(&[]).0, before);
    assert_eq!(client.run(|| ask(address(1))).as_deref(), Some("b saw me"));
}

#[test]
fn what_others_take_away_is_found_and_made_again() {
    let (_wire, one, two, client, ..) = one_task();
    let audit = |node: &Node, mends| -> Vec<String> {
        let network = node.network();
        let faults = node.machine.run(move || block_on(network.audit(mends)));
        faults.into_iter().filter(|fault| fault.contains("ing-")).collect()
    };
    let nothing: Vec<String> = Vec::new();
    assert_eq!(audit(&two, false), nothing);
    for (taken, fault) in [
        ("rule del iif ing-in2", "link ing-in2: no way back by node 10.99.0.1"),
        ("rule del iif skep0", "link ing-in2: no way back by node 10.99.0.1"),
        ("neigh flush dev ing-in2 nud permanent", "link ing-in2: no way to node 10.99.0.1"),
        ("link del ing-in2", "link ing-in2 is missing"),
    ] {
        two.machine.run(move || ip(taken));
        assert!(audit(&two, true).contains(&fault.to_owned()), "{taken}");
        assert_eq!(audit(&two, false), nothing, "{taken}");
        assert_eq!(client.run(|| ask(address(1))).as_deref(), Some("b saw me"), "{taken}");
    }
    drop(one);
}

#[test]
fn a_node_without_others_makes_no_device() {
    let wire = Wire::new();
    let (node, client) = (wire.node(1), wire.machine(9));
    let (netns, task) = node.container("aaaaaaaaaaaa", 6);
    serve(&netns, "a");
    let mut ingress = ingress_of(1, &[task], &[]);
    ingress.nodes.clear();
    let network = node.network();
    node.machine.run(move || block_on(set_ingress(&network, ingress)));
    assert_eq!(client.run(|| ask(address(1))).as_deref(), Some("a saw me"));
    assert_eq!(node.machine.run(|| ip("-o link show type vxlan")), "");
}

//! Sentences about networks of the swarm, each on hosts of its own joined by a wire.
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use network::{
    AskWithin, Asker, Backends, DATA_PORT, Flows, Join, LocalNames, NameFault, NameSockets, Namer,
    Network, Overlay, Peer, Services, Update,
};

use crate::hosts::{Machine, Node, PORT, ask, block_on, inside, ip, serve};
use crate::sctp;

/// The last part of the service's addresses.
const VIP: u8 = 100;

fn ipv4(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

fn ipv6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into()).into()
}

/// A host with a part in the network `blue`.
struct Host(Node);

impl Host {
    fn new(number: u8) -> Self {
        Self(Node::new(number, Machine::new()))
    }

    fn run<T: Send + 'static>(&self, job: impl AsyncFnOnce(Network) -> T + Send + 'static) -> T {
        let network = self.0.network();
        self.0.machine.run(move || block_on(job(network)))
    }

    fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 9, 0, self.0.number).into()
    }

    fn overlay(&self) -> Overlay {
        Overlay {
            id: "blue".into(),
            vni: 4_097,
            local: Some(self.address()),
            port: DATA_PORT,
            mtu: None,
            way: None,
            is_encrypted: false,
        }
    }

    /// Puts a container into the network.
    fn container(&self, name: &'static str, last: u8) -> std::path::PathBuf {
        let overlay = self.overlay();
        self.run(async move |network| {
            network.make_overlay(overlay).await.expect("makes");
            network.isolate(name).await.expect("isolates");
            let addresses = [format!("{}/24", ipv4(last)), format!("{}/64", ipv6(last))];
            let addresses = addresses.map(|it| it.parse().expect("an address")).to_vec();
            let join = Join { overlay: "blue".into(), addresses };
            network.join(name, join).await.expect("joins");
            network.netns(name)
        })
    }

    fn peers(&self, peers: &[(u8, &Host)]) {
        let peers: BTreeMap<_, _> =
            peers.iter().flat_map(|(last, host)| host.peer(*last)).collect();
        self.run(async move |network| {
            network.set_peers("blue", Update::Whole(peers)).await.expect("sets")
        });
    }

    /// A container of this host, as others know it.
    fn peer(&self, last: u8) -> [(IpAddr, Peer); 2] {
        let mac = network::hardware_address([ipv4(last)]).expect("there is one");
        let peer = Peer { node: self.address(), mac };
        [(ipv4(last), peer), (ipv6(last), peer)]
    }

    fn services(&self, backends: &[u8]) {
        let all = |address: fn(u8) -> IpAddr| backends.iter().map(|last| address(*last)).collect();
        let services: Services = [(ipv4(VIP), all(ipv4)), (ipv6(VIP), all(ipv6))].into();
        self.run(async move |network| {
            network.set_services("blue", Update::Whole(services)).await.expect("sets")
        });
    }
}

/// Tells who asks in datagrams what they said, or takes questions and answers none.
#[derive(Debug)]
struct Echo {
    is_silent: bool,
}

impl Namer for Echo {
    fn serve(&self, _: Asker<'_>, sockets: NameSockets) {
        if self.is_silent {
            return;
        }
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = sockets.udp.recv_from(&mut buffer) {
                let _ = sockets.udp.send_to(&buffer[..length], from);
            }
        });
    }

    fn change(&self, _: Asker<'_>) {}

    fn forget(&self, _: &str) {}

    fn tell(&self, _: LocalNames) {}

    fn forget_network(&self, _: &str) {}

    fn faults(&self, _: &[Asker<'_>], _: AskWithin<'_>) -> Vec<NameFault> {
        Vec::new()
    }
}

/// Two hosts with a wire between them.
fn two_hosts() -> (Host, Host) {
    let (one, two) = (Host::new(1), Host::new(2));
    let other = two.0.machine.thread;
    one.0.machine.run(move || {
        ip(&format!("link add wire type veth peer name wire netns {other}"));
        ip("addr add 10.9.0.1/24 dev wire");
        ip("link set wire up");
    });
    two.0.machine.run(|| {
        ip("addr add 10.9.0.2/24 dev wire");
        ip("link set wire up");
    });
    (one, two)
}

/// What the container at `netns` is answered.
fn ask_from(netns: &Path, address: IpAddr) -> Option<String> {
    inside(netns, || ask(address, PORT)).ok()
}

#[test]
fn containers_reach_each_other_across_hosts_under_their_own_addresses() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    serve(&b, "b");
    assert_eq!(ask_from(&a, ipv4(12)).as_deref(), Some("b 10.1.0.11"));
    assert_eq!(ask_from(&a, ipv6(12)).as_deref(), Some("b fd00:1::b"));
    one.peers(&[]);
    for address in [ipv4(12), ipv6(12)] {
        assert_eq!(ask_from(&a, address), None, "a peer that is gone is not reached");
    }
}

/// Packets that the network's bridge on a container's host has sent to containers.
fn bridged(container: &Path) -> u64 {
    let run_dir = container.ancestors().nth(2).expect("beneath the daemon's folder");
    let told = inside(&run_dir.join("overlays/blue"), || {
        std::fs::read_to_string("/proc/thread-self/net/dev").expect("reads")
    });
    let ports = told.lines().filter_map(|line| line.trim().split_once(':'));
    let ports = ports.filter(|(name, _)| name.starts_with("ve"));
    // After eight numbers of what came in there are those of what went out: bytes first, packets then.
    let sent = |numbers: &str| numbers.split_whitespace().nth(9)?.parse::<u64>().ok();
    ports.map(|(_, numbers)| sent(numbers).expect("a number")).sum()
}

#[test]
fn what_containers_send_as_themselves_goes_past_the_bridge() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    let c = one.container("cccccccccccccccc", 13);
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one), (13, &one)]);
    serve(&b, "b");
    serve(&c, "c");
    for (other, address) in [(&c, ipv4(13)), (&b, ipv4(12))] {
        let reaches = || assert!(ask_from(&a, address).is_some(), "{address} answers");
        // Who is where is asked for by the bridge.
        reaches();
        let before = (bridged(&a), bridged(other));
        (0..20).for_each(|_| reaches());
        let sent = (bridged(&a) - before.0, bridged(other) - before.1);
        assert!(sent.0 <= 20 && sent.1 <= 20, "{address}: {sent:?} by the bridge");
    }
}

#[test]
fn a_container_is_reached_under_the_address_of_one_that_left() {
    let (one, _two) = two_hosts();
    let (a, _) = (one.container("aaaaaaaaaaaaaaaa", 11), one.container("bbbbbbbbbbbbbbbb", 12));
    one.run(async |network| network.disconnect("bbbbbbbbbbbbbbbb").await.expect("ends"));
    let c = one.container("cccccccccccccccc", 12);
    serve(&c, "c");
    assert_eq!(ask_from(&a, ipv4(12)).as_deref(), Some("c 10.1.0.11"));
    assert_eq!(ask_from(&c, ipv4(11)), None, "nobody answers there");
}

#[test]
fn links_go_with_their_container_though_a_socket_keeps_its_namespace() {
    let (one, _two) = two_hosts();
    let a = one.container("aaaaaaaaaaaaaaaa", 11);
    let overlay = a.ancestors().nth(2).expect("beneath the daemon's folder").join("overlays/blue");
    let kept = inside(&a, || UdpSocket::bind("0.0.0.0:0").expect("binds"));
    let links = move || inside(&overlay, || ip("-o link show type veth"));
    assert!(!links().is_empty());
    one.run(async move |network| {
        network.disconnect("aaaaaaaaaaaaaaaa").await.expect("ends");
        let gone = async {
            while !links().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("they go");
    });
    drop(kept);
}

#[test]
fn a_virtual_address_leads_to_every_backend_and_to_none_that_left() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    let c = one.container("cccccccccccccccc", 13);
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one), (13, &one)]);
    serve(&b, "b");
    serve(&c, "c");
    one.services(&[12, 13]);
    let seen = |address: IpAddr| -> BTreeSet<_> {
        (0..40).filter_map(|_| ask_from(&a, address)).collect()
    };
    assert_eq!(seen(ipv4(VIP)), ["b 10.1.0.11", "c 10.1.0.11"].map(str::to_owned).into());
    assert_eq!(seen(ipv6(VIP)), ["b fd00:1::b", "c fd00:1::b"].map(str::to_owned).into());
    one.services(&[13]);
    assert_eq!(seen(ipv4(VIP)), ["c 10.1.0.11".to_owned()].into());
    assert_eq!(seen(ipv6(VIP)), ["c fd00:1::b".to_owned()].into());
    for (address, own) in [(ipv4(VIP), "c 10.1.0.13"), (ipv6(VIP), "c fd00:1::d")] {
        assert_eq!(ask_from(&c, address).as_deref(), Some(own), "one that reaches itself");
    }
}

#[test]
fn a_change_of_one_service_leaves_the_others_as_they_are() {
    let (one, _two) = two_hosts();
    let a = one.container("aaaaaaaaaaaaaaaa", 11);
    for (name, last) in [("bbbbbbbbbbbbbbbb", 12), ("cccccccccccccccc", 13)] {
        serve(&one.container(name, last), name);
    }
    one.services(&[12]);
    let other = ipv4(VIP + 1);
    let change = |address: IpAddr, backend: Option<u8>| {
        let part = [(address, backend.map(|last| Backends::from_iter([ipv4(last)])))];
        let update = Update::Part(part.into());
        one.run(async move |network| network.set_services("blue", update).await.expect("sets"));
    };
    let answers = |address: IpAddr| ask_from(&a, address).map(|answer| answer[..1].to_owned());
    change(other, Some(13));
    assert_eq!((answers(ipv4(VIP)), answers(other)), (Some("b".into()), Some("c".into())));
    change(ipv4(VIP), Some(13));
    assert_eq!((answers(ipv4(VIP)), answers(other)), (Some("c".into()), Some("c".into())));
    change(other, None);
    assert_eq!((answers(ipv4(VIP)), answers(other)), (Some("c".into()), None));
    let faults = one.run(async move |network| network.audit(false).await);
    assert_eq!(faults, Vec::<String>::new(), "the tables are as they should be");
}

#[test]
fn a_client_stays_with_its_task_where_that_is_asked_for() {
    let (one, _two) = two_hosts();
    let names = ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc", "dddddddddddddddd"];
    let clients = [11, 12, 13, 14].map(|last| one.container(names[usize::from(last - 11)], last));
    for (client, name) in clients.iter().zip(names) {
        serve(client, name);
    }
    let serving = |backends: &[u8], is_sticky| {
        let all = |address: fn(u8) -> IpAddr| {
            let tasks = backends.iter().map(|last| address(*last)).collect();
            Backends { tasks, is_sticky }
        };
        let services = [(ipv4(VIP), all(ipv4)), (ipv6(VIP), all(ipv6))].into();
        let update = Update::Whole(services);
        one.run(async move |network| network.set_services("blue", update).await.expect("sets"));
    };
    let answer =
        |client: &Path, address| ask_from(client, address).expect("answered")[..1].to_owned();
    for address in [ipv4(VIP), ipv6(VIP)] {
        serving(&[11, 12, 13, 14], true);
        let before: Vec<_> = clients.iter().map(|client| answer(client, address)).collect();
        for (client, before) in clients.iter().zip(&before) {
            let again: BTreeSet<_> = (0..10).map(|_| answer(client, address)).collect();
            assert_eq!(again, [before.clone()].into(), "{address}");
        }
        serving(&[11, 12, 13], true);
        for (client, before) in clients.iter().zip(&before).filter(|(_, before)| **before != "d") {
            assert_eq!(&answer(client, address), before, "{address}: its task is there still");
        }
        serving(&[11, 12, 13], false);
        let any: BTreeSet<_> = (0..40).map(|_| answer(&clients[0], address)).collect();
        assert_eq!(any.len(), 3, "{address}: nobody asked for it");
    }
    let faults = one.run(async move |network| network.audit(false).await);
    assert_eq!(faults, Vec::<String>::new(), "the tables are as they should be");
}

#[test]
fn a_virtual_address_without_tasks_refuses_at_once() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    serve(&b, "b");
    for backends in [&[][..], &[12], &[]] {
        one.services(backends);
        for address in [ipv4(VIP), ipv6(VIP)] {
            let answer = inside(&a, || ask(address, PORT));
            match backends.is_empty() {
                true => assert_eq!(answer.expect_err("nobody").kind(), REFUSED),
                false => assert!(answer.is_ok(), "{address}"),
            }
            let datagram = inside(&a, || datagrams(address).and_then(|socket| asked(&socket)));
            if backends.is_empty() {
                // What the kernel calls it where the sender itself is told.
                let told = [REFUSED, io::ErrorKind::PermissionDenied];
                assert!(told.contains(&datagram.expect_err("nobody").kind()), "{address}");
            }
        }
    }
}

#[test]
fn associations_of_sctp_are_led_by_virtual_addresses_too() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    one.services(&[12]);
    sctp::serve(&b);
    let (IpAddr::V4(virtual_ip), IpAddr::V4(own)) = (ipv4(VIP), ipv4(11)) else {
        panic!("of IPv4");
    };
    let answer = inside(&a, || sctp::ask((virtual_ip, PORT), 40_001));
    assert_eq!(answer, Some(((virtual_ip, PORT), own)));
}

#[test]
fn datagrams_to_a_virtual_address_do_not_stick_to_a_task_that_is_gone() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    let c = one.container("cccccccccccccccc", 13);
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one), (13, &one)]);
    answer_datagrams(&b, "b");
    answer_datagrams(&c, "c");
    let forget = |last| {
        let gone = [ipv4(last), ipv6(last)].into();
        one.run(async move |network| {
            network.forget("blue", gone, Flows::All).await.expect("forgets")
        });
    };
    for address in [ipv4(VIP), ipv6(VIP)] {
        one.services(&[12]);
        let socket = inside(&a, || datagrams(address)).expect("connects");
        let asked = || asked(&socket).expect("answered");
        assert_eq!(asked(), "b");
        one.services(&[13]);
        assert_eq!(asked(), "b", "drains");
        forget(12);
        assert_eq!(asked(), "c", "{address} goes on with another");
    }
}

const REFUSED: io::ErrorKind = io::ErrorKind::ConnectionRefused;

fn datagrams(to: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect((to, PORT))?;
    Ok(socket)
}

fn asked(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Answers each datagram with `word`, for as long as the test runs.
fn answer_datagrams(netns: &Path, word: &'static str) {
    let socket = inside(netns, || UdpSocket::bind(("::", PORT)).expect("binds"));
    std::thread::spawn(move || {
        while let Ok((_, caller)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(word.as_bytes(), caller);
        }
    });
}

#[test]
fn another_daemon_takes_over_what_is_there() {
    let (mut one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    serve(&b, "b");
    one.services(&[12]);
    let (overlay, other) = (one.overlay(), two.peer(12));
    one.0.restart();
    let again = one.run(async move |next| {
        next.make_overlay(overlay).await.expect("takes over");
        // Nothing changes, so nothing is written: what an earlier daemon wrote is known.
        next.set_peers("blue", Update::Whole(other.into())).await.expect("sets");
        next.set_namer(Arc::new(Echo { is_silent: true })).await.expect("binds in every container");
        next.joined()
    });
    assert_eq!(again.len(), 1);
    assert_eq!(
        ask_from(&a, ipv4(VIP)).as_deref(),
        Some("b 10.1.0.11"),
        "connections go on meanwhile"
    );
}

#[test]
fn questions_for_names_are_led_to_the_daemon_and_a_server_of_users_on_that_port_stays_theirs() {
    let one = Host::new(1);
    one.run(async |network| {
        network.set_namer(Arc::new(Echo { is_silent: false })).await.expect("none is there yet")
    });
    let netns = one.container("aaaaaaaaaaaaaaaa", 11);
    let theirs = inside(&netns, || UdpSocket::bind("0.0.0.0:53").expect("the port is free"));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = theirs.recv_from(&mut buffer) {
            let _ = theirs.send_to(b"theirs", from);
        }
    });
    let ask = |address: &'static str| {
        inside(&netns, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("is no zero");
            // A connected socket takes an answer from there alone.
            socket.connect(address).expect("there is a way");
            socket.send(b"names").expect("sends");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("is answered");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        })
    };
    assert_eq!(ask("127.0.0.11:53"), "names");
    assert_eq!(ask("127.0.0.1:53"), "theirs");
    assert_eq!(ask("10.1.0.11:53"), "theirs");
}

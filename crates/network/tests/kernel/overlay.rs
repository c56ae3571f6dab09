//! Sentences about networks of the swarm, each on hosts of its own joined by a wire.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use network::{
    AskWithin, Asker, DATA_PORT, Join, LocalNames, NameFault, NameSockets, Namer, Network, Overlay,
    Peer, Services, Update,
};

use crate::hosts::{Machine, Node, PORT, ask, block_on, inside, ip, serve};

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

/// Takes questions and answers none.
#[derive(Debug)]
struct Silent;

impl Namer for Silent {
    fn serve(&self, _: Asker<'_>, _: NameSockets) {}

    fn change(&self, _: Asker<'_>) {}

    fn forget(&self, _: &str) {}

    fn tell(&self, _: LocalNames) {}

    fn forget_network(&self, _: &str) {}

    fn faults(&self, _: &[Asker<'_>], _: AskWithin<'_>) -> Vec<NameFault> {
        Vec::new()
    }
}

/// Tells who asks in datagrams what they said.
#[derive(Debug)]
struct Echo;

impl Namer for Echo {
    fn serve(&self, _: Asker<'_>, sockets: NameSockets) {
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
        let part = [(address, backend.map(|last| BTreeSet::from([ipv4(last)])))];
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
        next.set_namer(Arc::new(Silent)).await.expect("binds in every container");
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
    one.run(async |network| network.set_namer(Arc::new(Echo)).await.expect("none is there yet"));
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

//! Sentences about networks of the swarm, each on hosts of its own joined by a wire.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use network::{
    Asker, DATA_PORT, Join, LocalNames, NameSockets, Namer, Network, Overlay, Peer, Services,
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
        self.run(async move |network| network.set_peers("blue", peers).await.expect("sets"));
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
        self.run(async move |network| network.set_services("blue", services).await.expect("sets"));
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
        next.set_peers("blue", other.into()).await.expect("sets");
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

//! What a container must not do to others, tried: frames with others' addresses, advertised routers, ways around networks.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Cluster, Host, Mac, Packet, Wire, send_frame, within};

use crate::{answerer, idle, reaches};

/// A container's place in a network.
struct Place {
    namespace: PathBuf,
    link: String,
    mac: Mac,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Place {
    fn of(host: &Host, container: &str, network: &str) -> Self {
        let inspect = |field: &str| {
            let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).{field}}}}}");
            host.ok(&["inspect", container, "--format", &format])
        };
        let ipv4: Ipv4Addr = inspect("IPAddress").parse().expect("an address");
        let ipv6 = inspect("GlobalIPv6Address").parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let namespace = host.namespace_of(container);
        let (link, mac) = link_with(&namespace, ipv4);
        Self { namespace, link, mac, ipv4, ipv6 }
    }

    fn send(&self, frame: &[u8]) {
        send_frame(&self.namespace, &self.link, frame);
    }
}

/// Runs iproute2's `ip` in a network namespace.
fn ip(namespace: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).args(["--", "ip", "-o"]).args(arguments);
    let output = command.output().expect("nsenter runs");
    String::from_utf8(output.stdout).expect("text")
}

/// The link that has an address, and its hardware address.
fn link_with(namespace: &Path, address: Ipv4Addr) -> (String, Mac) {
    let links = ip(namespace, &["-4", "addr"]);
    let line = links.lines().find(|line| line.contains(&format!(" {address}/")));
    let link = line.and_then(|line| line.split_whitespace().nth(1)).expect("it has a link");
    let shown = ip(namespace, &["link", "show", link]);
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let digits = mac.expect("it has one").split(':').map(|it| u8::from_str_radix(it, 16));
    let digits: Result<Vec<_>, _> = digits.collect();
    (link.to_owned(), digits.expect("digits").try_into().expect("six of them"))
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const STRANGE_MAC: Mac = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 250);
const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 0xfa);

const LIES: [&str; 12] = [
    "lie-mac",
    "lie-mac-v6",
    "lie-source",
    "lie-third-source",
    "lie-source-v6",
    "lie-third-v6",
    "lie-arp",
    "lie-arp-mac",
    "lie-claim",
    "lie-router",
    "lie-router-all",
    "lie-local-router",
];
const TRUTHS: [&str; 2] = ["truth-four", "truth-six"];

/// Frames from one container to another that are not to arrive. `third` is somebody else.
fn lies(from: &Place, to: &Place, third: &Place) -> Vec<Vec<u8>> {
    let own = |packet: Packet| packet.between(from.mac, to.mac);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    vec![
        Packet::ipv4(from.ipv4, to.ipv4, LIES[0]).between(third.mac, to.mac),
        Packet::ipv6(from.ipv6, to.ipv6, LIES[1]).between(STRANGE_MAC, to.mac),
        own(Packet::ipv4(STRANGER, to.ipv4, LIES[2])),
        own(Packet::ipv4(third.ipv4, to.ipv4, LIES[3])),
        own(Packet::ipv6(STRANGER_V6, to.ipv6, LIES[4])),
        own(Packet::ipv6(third.ipv6, to.ipv6, LIES[5])),
        own(Packet::arp_reply(from.mac, third.ipv4, (to.mac, to.ipv4), LIES[6])),
        own(Packet::arp_reply(STRANGE_MAC, from.ipv4, (to.mac, to.ipv4), LIES[7])),
        own(Packet::neighbour_advertisement(from.ipv6, to.ipv6, third.ipv6, LIES[8])),
        own(Packet::router_advertisement(from.ipv6, to.ipv6, LIES[9])),
        Packet::router_advertisement(from.ipv6, ALL_NODES, LIES[10])
            .between(from.mac, ALL_NODES_MAC),
        own(Packet::router_advertisement(link_local, to.ipv6, LIES[11])),
    ]
}

fn truths(from: &Place, to: &Place) -> [Vec<u8>; 2] {
    let four = Packet::ipv4(from.ipv4, to.ipv4, TRUTHS[0]);
    let six = Packet::ipv6(from.ipv6, to.ipv6, TRUTHS[1]);
    [four, six].map(|packet| packet.between(from.mac, to.mac))
}

/// Sends what is not to arrive, and then what is: when that is there, the rest would be.
fn assert_nothing_but_truth(host: &Host, from: &Place, to: &Place, third: &Place) {
    let wire = Wire::look(&to.namespace, &[&LIES[..], &TRUTHS].concat(), &[]);
    for frame in lies(from, to, third) {
        from.send(&frame);
    }
    host.until("what is true arrives", || {
        truths(from, to).iter().for_each(|frame| from.send(frame));
        TRUTHS.iter().all(|word| wire.readable(word) > 2)
    });
    let seen: Vec<_> = LIES.into_iter().filter(|word| wire.readable(word) > 0).collect();
    assert_eq!(seen, Vec::<&str>::new(), "these arrived");
}

#[test]
fn a_container_speaks_for_itself_only_in_networks_of_the_swarm() {
    e2e::skep_only!("Docker lets containers send what they like");
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    let subnets = ["--subnet", "10.66.0.0/24", "--ipv6", "--subnet", "fd00:66::/64"];
    let create = ["network", "create", "-d", "overlay", "--attachable"];
    first.ok(&[&create[..], &subnets, &["blue"]].concat());
    for (host, container) in [(first, "liar"), (first, "near"), (second, "far")] {
        idle(host, container, &["--network", "blue"]);
    }
    let [liar, near] = ["liar", "near"].map(|container| Place::of(first, container, "blue"));
    let far = Place::of(second, "far", "blue");
    for (container, address) in [("liar", near.ipv4), ("liar", far.ipv4)] {
        let ping = ["exec", container, "ping", "-c", "1", "-W", "1", &address.to_string()];
        first.until("all know of each other", || first.docker(&ping).code == 0);
    }
    assert_nothing_but_truth(first, &liar, &near, &far);
    assert_nothing_but_truth(first, &liar, &far, &near);
    cluster.audit();
}

#[test]
fn a_container_speaks_for_itself_only_in_networks_of_one_host() {
    e2e::skep_only!("Docker lets containers send what they like");
    let host = Host::new();
    host.load_images();
    let subnets = ["--subnet", "10.66.0.0/24", "--ipv6", "--subnet", "fd00:66::/64"];
    host.ok(&[&["network", "create"], &subnets[..], &["blue"]].concat());
    let [liar, near, third] = ["liar", "near", "third"].map(|container| {
        idle(&host, container, &["--network", "blue"]);
        Place::of(&host, container, "blue")
    });
    assert_nothing_but_truth(&host, &liar, &near, &third);
    // A container that asks for its own place again is believed again.
    host.ok(&["network", "disconnect", "blue", "liar"]);
    host.ok(&["network", "connect", "--ip", "10.66.0.77", "blue", "liar"]);
    let moved = Place::of(&host, "liar", "blue");
    assert_eq!(moved.ipv4, Ipv4Addr::new(10, 66, 0, 77));
    assert_nothing_but_truth(&host, &moved, &near, &third);
    assert_eq!(host.differences(), [""; 0]);
}

/// A datagram of the swarm's data path, with a frame in it.
fn sealed_in_vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[0x08, 0, 0, 0, a, b, c, 0][..], frame].concat()
}

fn send_datagram(namespace: &Path, to: (&str, u16), bytes: &[u8]) {
    within(namespace, || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        // What is refused at once is refused.
        let _ = socket.send_to(bytes, to);
    });
}

#[test]
fn containers_of_other_networks_are_not_reached_by_any_way() {
    e2e::skep_only!("Docker takes whatever comes to its data port");
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    for (network, subnet) in [("blue", "10.66.0.0/24"), ("red", "10.67.0.0/24")] {
        let create = ["network", "create", "-d", "overlay", "--attachable", "--subnet", subnet];
        first.ok(&[&create[..], &[network]].concat());
    }
    answerer(second, "web", &["--network", "blue"]);
    answerer(first, "near", &["--network", "blue"]);
    idle(first, "friend", &["--network", "blue"]);
    idle(first, "stranger", &["--network", "red"]);
    idle(first, "local", &[]);
    let (web, near) = (Place::of(second, "web", "blue"), Place::of(first, "near", "blue"));
    let friend = Place::of(first, "friend", "blue");
    for place in [&web, &near] {
        let url = format!("http://{}/", place.ipv4);
        first.until("a neighbour reaches it", || reaches(first, "friend", &url));
        for other in ["stranger", "local"] {
            assert!(!reaches(first, other, &url), "{other} reaches {url}");
        }
    }
    // Every container has a link to the world, too.
    for container in ["near", "stranger"] {
        let found = ip(&first.namespace_of(container), &["-4", "addr"]);
        let words = found.split_whitespace().filter_map(|word| word.split_once('/'));
        let mut outside = words.map(|(address, _)| address).filter(|it| it.starts_with("172."));
        let url = format!("http://{}/", outside.next().expect("a link to the world"));
        assert!(!reaches(first, "friend", &url), "{container} is reached by its way out");
        assert!(!reaches(first, "local", &url), "{container} is reached by its way out");
    }
    // By the data path: frames for web, from a container that is not in its network.
    let option = r#"{{index .Options "com.docker.network.driver.overlay.vxlanid_list"}}"#;
    let vni: u32 =
        first.ok(&["network", "inspect", "blue", "--format", option]).parse().expect("a number");
    let wires = [&web, &near]
        .map(|place| Wire::look(&place.namespace, &["injected-frame", "honest-frame"], &[]));
    for (place, host) in [(&web, second), (&near, first)] {
        let packet = Packet::ipv4(friend.ipv4, place.ipv4, "injected-frame");
        let bytes = sealed_in_vxlan(vni, &packet.between(friend.mac, place.mac));
        for container in ["stranger", "local", "friend"] {
            let namespace = first.namespace_of(container);
            for target in [host.address.as_str(), "172.17.0.1"] {
                send_datagram(&namespace, (target, 4_789), &bytes);
            }
        }
    }
    for (place, wire) in [&web, &near].into_iter().zip(&wires) {
        let packet = Packet::ipv4(friend.ipv4, place.ipv4, "honest-frame");
        first.until("what is honest arrives", || {
            friend.send(&packet.between(friend.mac, place.mac));
            wire.readable("honest-frame") > 2
        });
        assert_eq!(wire.readable("injected-frame"), 0, "nothing comes in by the data path");
    }
}

#[test]
fn what_listens_on_the_hosts_loopback_is_not_reached_from_containers() {
    let host = Host::new();
    host.load_images();
    idle(&host, "one", &[]);
    let one = Place::of(&host, "one", "bridge");
    let namespace = Path::new("/run/netns").join(&host.name);
    let listen = |address: &str| {
        within(&namespace, || {
            let socket = UdpSocket::bind((address, 5_999)).expect("binds");
            socket.set_nonblocking(true).expect("is told so");
            socket
        })
    };
    let bridge = host.ok(&[
        "network",
        "inspect",
        "bridge",
        "--format",
        "{{(index .IPAM.Config 0).Gateway}}",
    ]);
    let (private, open) = (listen("127.0.0.1"), listen(&bridge));
    let gateway: Ipv4Addr = bridge.parse().expect("an address");
    let (_, mac) = link_with(&namespace, gateway);
    let arrived = |socket: &UdpSocket| socket.recv(&mut [0; 512]).is_ok();
    for _ in 0..3 {
        one.send(&Packet::ipv4(one.ipv4, Ipv4Addr::LOCALHOST, "hello").between(one.mac, mac));
        one.send(
            &Packet::ipv4(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, "hello").between(one.mac, mac),
        );
    }
    host.until("what is for the bridge arrives", || {
        one.send(&Packet::ipv4(one.ipv4, gateway, "hello").between(one.mac, mac));
        arrived(&open)
    });
    assert!(!arrived(&private), "loopback is the host's own");
}

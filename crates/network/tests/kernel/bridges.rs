//! Sentences about networks of one host, each on a fresh host of its own.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::{
    AskWithin, Asker, DATA_PORT, DEFAULT_NETWORK, Join, LocalIpv6, LocalNames, LocalNetwork,
    NameFault, NameSockets, Namer, Network, Overlay, Plug, PlugRequest, Protocol, PublishedPort,
};

use crate::hosts::{Neighbour, ask, inside, ip, local, on_a_fresh_host, run, serve};

/// A container in the network of this number.
async fn container(network: &Network, name: &str, number: u8) -> Container {
    let request = PlugRequest { network: format!("net{number}"), ..PlugRequest::default() };
    let plug = network.plug(name, request).await.expect("plugs");
    network
        .lead_out(name, Some(plug.gateway), plug.ipv6.and_then(|ipv6| ipv6.gateway))
        .await
        .expect("leads out");
    Container { netns: network.netns(name), plug }
}

struct Container {
    netns: PathBuf,
    plug: Plug,
}

impl Container {
    fn serve(&self, word: &'static str) {
        serve(&self.netns, word);
    }

    fn ask(&self, address: Ipv4Addr, port: u16) -> Option<String> {
        inside(&self.netns, || ask(address, port)).ok()
    }

    /// Runs iproute2's `ip` in the container.
    fn ip(&self, arguments: &str) -> String {
        inside(&self.netns, || ip(arguments))
    }
}

#[test]
fn containers_of_one_network_reach_each_other_and_those_of_others_do_not() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        for number in [1, 2] {
            network.make_local(local(number)).await.expect("makes");
        }
        let one = container(&network, "aaaa1", 1).await;
        let same = container(&network, "aaaa2", 1).await;
        let other = container(&network, "bbbb1", 2).await;
        let default = network.connect("cccc1").await.expect("connects");
        for (container, word) in [(&one, "one"), (&same, "same"), (&other, "other")] {
            container.serve(word);
        }
        assert_eq!(one.ask(same.plug.address, 80), Some("same 10.8.1.2".into()));
        assert_eq!(one.ask(other.plug.address, 80), None, "another network's");
        assert_eq!(other.ask(one.plug.address, 80), None, "another network's");
        assert_eq!(one.ask(default.address, 80), None, "the default network's");
        let from_default = inside(&default.netns, || ask(one.plug.address, 80)).ok();
        assert_eq!(from_default, None, "from the default network");
        assert_eq!(
            ask(one.plug.address, 80).ok(),
            Some("one 10.8.1.1".into()),
            "the host reaches all"
        );
        network.close().await.expect("closes");
    });
}

#[test]
fn a_container_enters_networks_after_it_has_left_others() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        for number in [1, 2] {
            network.make_local(local(number)).await.expect("makes");
        }
        let near = container(&network, "aaaa1", 2).await;
        near.serve("near");
        let mover = container(&network, "aaaa2", 1).await;
        for _ in 0..2 {
            network.unplug("aaaa2", "net1").await.expect("unplugs");
            network.unplug("aaaa2", "net2").await.expect("unplugs");
            let moved = container(&network, "aaaa2", 2).await;
            assert!(moved.ip("addr show dev eth0").contains("10.8.2."));
            assert_eq!(mover.ask(near.plug.address, 80).map(|it| it.len()), Some(13));
            container(&network, "aaaa2", 1).await;
            assert!(moved.ip("addr show dev eth1").contains("10.8.1."));
        }
        // And the network that every node has, and one of the swarm.
        network.unplug("aaaa2", "net1").await.expect("unplugs");
        network.connect("aaaa2").await.expect("connects");
        network.unplug("aaaa2", DEFAULT_NETWORK).await.expect("unplugs");
        network.make_overlay(overlay()).await.expect("makes");
        let addresses = vec!["10.9.0.7/24".parse().expect("an address")];
        let join = Join { overlay: "blue".into(), addresses };
        network.join("aaaa2", join).await.expect("joins");
        assert!(mover.ip("addr show dev eth1").contains("10.9.0.7/24"));
        network.close().await.expect("closes");
    });
}

fn overlay() -> Overlay {
    Overlay {
        id: "blue".into(),
        vni: 4_097,
        local: None,
        port: DATA_PORT,
        mtu: None,
        way: None,
        is_encrypted: false,
    }
}

#[test]
fn the_world_is_reached_under_the_hosts_address_and_reaches_only_what_is_published() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        network.make_local(local(1)).await.expect("makes");
        let one = container(&network, "aaaa1", 1).await;
        one.serve("one");
        let outside = Neighbour::new();
        let listener = inside(&outside.netns, || TcpListener::bind("0.0.0.0:90").expect("binds"));
        std::thread::spawn(move || {
            let (mut stream, caller) = listener.accept().expect("accepts");
            write!(stream, "{}", caller.ip()).expect("answers");
        });
        let neighbour = Ipv4Addr::new(192, 0, 2, 2);
        assert_eq!(one.ask(neighbour, 90), Some("192.0.2.1".into()));
        inside(&outside.netns, || ip("route add 10.8.1.0/24 via 192.0.2.1"));
        let address = one.plug.address;
        assert_eq!(inside(&outside.netns, || ask(address, 80)).ok(), None, "past the ports");
        let port = PublishedPort {
            protocol: Protocol::Tcp,
            host_ip: None,
            published: 8080,
            target: 80,
            backends: vec![address.into()],
        };
        network.publish("web", vec![port]).await.expect("publishes");
        let this_host = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(
            inside(&outside.netns, || ask(this_host, 8080)).ok(),
            Some("one 192.0.2.2".into())
        );
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok(), "from the host itself");
        assert!(one.ask(this_host, 8080).is_some(), "from the container itself");
        network.close().await.expect("closes");
    });
}

#[test]
fn a_network_with_ipv6_reaches_the_world_and_is_kept_apart_by_it_too() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let with_ipv6 = |number: u8| {
            let subnet = format!("fd00:{number}::/64").parse().expect("a subnet");
            let gateway = format!("fd00:{number}::1").parse().expect("an address");
            LocalNetwork { ipv6: Some(LocalIpv6 { subnet, gateway }), ..local(number) }
        };
        network.make_local(with_ipv6(1)).await.expect("makes");
        network.make_local(with_ipv6(2)).await.expect("makes");
        let one = container(&network, "aaaa1", 1).await;
        let two = container(&network, "aaaa2", 1).await;
        let far = container(&network, "aaaa3", 2).await;
        let address =
            |member: &Container| IpAddr::V6(member.plug.ipv6.expect("it has one").address);
        assert_eq!(address(&one).to_string(), "fd00:1::2");
        two.serve("two");
        far.serve("far");
        let ask_from =
            |member: &Container, address, port| inside(&member.netns, || ask(address, port)).ok();
        assert_eq!(ask_from(&one, address(&two), 80), Some("two fd00:1::2".into()));
        assert_eq!(ask_from(&one, address(&far), 80), None, "another network");
        let neighbour = Neighbour::new();
        ip("addr add fd99::1/64 dev wire nodad");
        inside(&neighbour.netns, || {
            ip("addr add fd99::2/64 dev far nodad");
            ip("-6 route add fd00::/16 via fd99::1");
        });
        serve(&neighbour.netns, "world");
        let world = "fd99::2".parse::<IpAddr>().expect("an address");
        assert_eq!(ask_from(&one, world, 80), Some("world fd99::1".into()));
        assert!(inside(&neighbour.netns, || ask(address(&two), 80)).is_err(), "past the ports");
        let port = PublishedPort {
            protocol: Protocol::Tcp,
            host_ip: None,
            published: 8080,
            target: 80,
            backends: two.plug.addresses().map(|(address, _)| address).collect(),
        };
        network.publish("web", vec![port]).await.expect("publishes");
        let this_host = "fd99::1".parse::<IpAddr>().expect("an address");
        let answer = inside(&neighbour.netns, || ask(this_host, 8080));
        assert_eq!(answer.expect("answered"), "two fd99::2");
        network.close().await.expect("closes");
    });
}

#[test]
fn from_an_internal_network_neither_the_world_nor_the_host_is_reached() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let internal = LocalNetwork { is_internal: true, ..local(1) };
        network.make_local(internal).await.expect("makes");
        network.make_local(local(2)).await.expect("makes");
        let one = container(&network, "aaaa1", 1).await;
        let two = container(&network, "aaaa2", 1).await;
        two.serve("two");
        let _outside = Neighbour::new();
        let listening = TcpListener::bind("0.0.0.0:2377").expect("binds");
        assert_eq!(one.ask(two.plug.address, 80), Some("two 10.8.1.2".into()));
        for address in ["10.8.1.1", "10.8.2.1", "192.0.2.1", "192.0.2.2"] {
            let address = address.parse().expect("an address");
            assert_eq!(one.ask(address, 2377), None, "{address}");
        }
        drop(listening);
        assert!(ask(two.plug.address, 80).is_ok(), "the host may ask");
        network.close().await.expect("closes");
    });
}

#[test]
fn containers_that_are_to_be_alone_do_not_reach_each_other() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let apart = LocalNetwork { is_shared: false, mtu: Some(1_400), ..local(1) };
        network.make_local(apart).await.expect("makes");
        let one = container(&network, "aaaa1", 1).await;
        let two = container(&network, "aaaa2", 1).await;
        two.serve("two");
        assert_eq!(one.ask(two.plug.address, 80), None);
        assert!(ask(two.plug.address, 80).is_ok(), "the host reaches it");
        assert!(one.ip("link show eth0").contains("mtu 1400"));
        network.close().await.expect("closes");
    });
}

#[test]
fn a_container_is_held_to_its_own_addresses() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        network.make_local(local(1)).await.expect("makes");
        let liar = container(&network, "aaaa1", 1).await;
        let victim = container(&network, "aaaa2", 1).await;
        let hears = |port: u16| {
            let socket =
                inside(&victim.netns, || UdpSocket::bind(("0.0.0.0", port)).expect("binds"));
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("sets");
            socket
        };
        let says = |from: &'static str, port: u16| {
            let to = (victim.plug.address, port);
            inside(&liar.netns, || {
                let socket = UdpSocket::bind((from, 0)).expect("binds");
                let _ = socket.send_to(b"hello", to);
            });
        };
        let mut buffer = [0; 8];
        let socket = hears(90);
        says("10.8.1.2", 90);
        assert!(socket.recv(&mut buffer).is_ok(), "its own address");
        liar.ip("addr add 10.8.1.77/24 dev eth0");
        says("10.8.1.77", 90);
        assert!(socket.recv(&mut buffer).is_err(), "another address");
        liar.ip("addr add fd00::1/64 dev eth0");
        liar.ip("link set eth0 address 02:42:0a:08:01:63");
        says("10.8.1.2", 90);
        assert!(socket.recv(&mut buffer).is_err(), "another hardware address");
        network.close().await.expect("closes");
    });
}

#[test]
fn a_container_takes_and_leaves_networks_while_it_runs() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        for number in [1, 2] {
            network.make_local(local(number)).await.expect("makes");
        }
        let one = container(&network, "aaaa1", 1).await;
        let two = container(&network, "bbbb1", 2).await;
        two.serve("two");
        assert_eq!(one.ask(two.plug.address, 80), None);
        let asked = PlugRequest {
            network: "net2".into(),
            address: Some(Ipv4Addr::new(10, 8, 2, 200)),
            mac: Some([2, 0x42, 1, 2, 3, 4]),
            names: Vec::new(),
            ipv6: None,
        };
        let plug = network.plug("aaaa1", asked.clone()).await.expect("plugs");
        assert_eq!((plug.interface.as_str(), plug.mac.as_str()), ("eth1", "02:42:01:02:03:04"));
        assert_eq!(network.plug("aaaa1", asked.clone()).await.expect("is plugged"), plug);
        assert_eq!(one.ask(two.plug.address, 80), Some("two 10.8.2.200".into()));
        let taken = network.plug("bbbb2", asked).await.expect_err("is taken");
        assert_eq!(taken.to_string(), "Address already in use");
        assert!(!network.netns("bbbb2").exists(), "nothing is left of it");
        network.connect("aaaa1").await.expect("connects to the default network too");
        assert!(one.ip("-br addr").contains("eth2"));
        network.unplug("aaaa1", "net1").await.expect("unplugs");
        network.unplug("aaaa1", network::DEFAULT_NETWORK).await.expect("unplugs");
        assert_eq!(network.plugs("aaaa1"), [plug]);
        let links = one.ip("-br link");
        assert!(links.contains("eth1") && !links.contains("eth0") && !links.contains("eth2"));
        network.unplug("aaaa1", "net2").await.expect("unplugs");
        assert_eq!(one.ask(two.plug.address, 80), None);
        network.disconnect("aaaa1").await.expect("disconnects");
        network.close().await.expect("closes");
    });
}

#[test]
fn addresses_run_out_and_come_back_and_strange_ones_are_refused() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let small = LocalNetwork {
            subnet: "10.8.1.0/29".parse().expect("a subnet"),
            reserved: BTreeSet::from([Ipv4Addr::new(10, 8, 1, 3)]),
            ..local(1)
        };
        network.make_local(small).await.expect("makes");
        let mut given = Vec::new();
        for number in 0..4 {
            given.push(
                container(&network, &format!("aaaa{number}"), 1).await.plug.address.octets()[3],
            );
        }
        assert_eq!(given, [2, 4, 5, 6], "the gateway's and the reserved one are not given");
        let ask = |address: Option<[u8; 4]>| PlugRequest {
            network: "net1".into(),
            address: address.map(Ipv4Addr::from),
            ..PlugRequest::default()
        };
        for (address, text) in [
            (None, "no available IPv4 addresses on this network's address pools: name1 (net1)"),
            (Some([10, 8, 1, 3]), "Address already in use"),
            (
                Some([10, 9, 0, 1]),
                "Invalid address 10.9.0.1: It does not belong to any of this network's subnets",
            ),
        ] {
            let refused = network.plug("bbbb1", ask(address)).await.expect_err("refuses");
            assert_eq!(refused.to_string(), text);
        }
        network.disconnect("aaaa2").await.expect("disconnects");
        let plug = network.plug("bbbb1", ask(None)).await.expect("there is one again");
        assert_eq!(plug.address, Ipv4Addr::new(10, 8, 1, 5));
        network.close().await.expect("closes");
    });
}

/// Takes note of what it is told.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("whole"))
    }

    fn note(&self, text: String) {
        self.0.lock().expect("whole").push(text);
    }
}

impl Namer for Notes {
    fn serve(&self, asker: Asker<'_>, _: NameSockets) {
        self.note(format!("serve {} {:?} {:?}", asker.container, asker.networks, asker.servers));
    }

    fn change(&self, asker: Asker<'_>) {
        self.note(format!("change {} {:?}", asker.container, asker.networks));
    }

    fn forget(&self, container: &str) {
        self.note(format!("forget {container}"));
    }

    fn tell(&self, names: LocalNames) {
        let hosts = names.hosts.iter().map(|(names, address)| format!("{names:?}={address}"));
        self.note(format!("{}: {}", names.name, hosts.collect::<Vec<_>>().join(" ")));
    }

    fn forget_network(&self, network: &str) {
        self.note(format!("forget network {network}"));
    }

    fn faults(&self, _: &[Asker<'_>], _: AskWithin<'_>) -> Vec<NameFault> {
        Vec::new()
    }
}

#[test]
fn who_answers_for_names_hears_of_every_change() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let notes = Arc::new(Notes::default());
        network.make_local(local(1)).await.expect("makes");
        network.set_namer(notes.clone()).await.expect("sets");
        assert_eq!(notes.take(), ["name1: "]);
        network.connect("aaaa1").await.expect("connects");
        assert_eq!(notes.take(), [""; 0], "in the default network there are no names");
        let servers = vec![Ipv4Addr::new(9, 9, 9, 9).into()];
        network.set_name_servers("aaaa1", servers).await.expect("sets");
        let request = PlugRequest {
            network: "net1".into(),
            names: vec!["web".into(), "alias".into()],
            ..PlugRequest::default()
        };
        network.plug("aaaa1", request).await.expect("plugs");
        assert_eq!(
            notes.take(),
            [
                "serve aaaa1 [\"bridge\", \"net1\"] [9.9.9.9]",
                "name1: [\"web\", \"alias\"]=10.8.1.2"
            ]
        );
        network.unplug("aaaa1", "bridge").await.expect("unplugs");
        assert_eq!(notes.take(), ["change aaaa1 [\"net1\"]"]);
        drop(network);
        let network = host.network().await;
        network.make_local(local(1)).await.expect("takes over");
        network.set_namer(notes.clone()).await.expect("sets");
        let after = notes.take();
        assert_eq!(after[..1], ["name1: [\"web\", \"alias\"]=10.8.1.2"]);
        assert!(after[1].starts_with("serve aaaa1 [\"net1\"]"), "{after:?}");
        network.disconnect("aaaa1").await.expect("disconnects");
        assert_eq!(notes.take(), ["forget aaaa1", "name1: "]);
        network.remove_local("net1").await.expect("removes");
        assert_eq!(notes.take(), ["forget network net1"]);
        network.close().await.expect("closes");
    });
}

#[test]
fn a_new_daemon_takes_over_networks_and_removes_those_that_are_no_more() {
    on_a_fresh_host(async |host| {
        let first = host.network().await;
        for number in [1, 2] {
            first.make_local(local(number)).await.expect("makes");
        }
        let one = container(&first, "aaaa1", 1).await;
        one.serve("one");
        drop(first);
        let second = host.network().await;
        second.make_local(local(1)).await.expect("takes over");
        second.remove_other_locals().await.expect("removes");
        let links = ip("-br link");
        assert!(links.contains("br-1") && !links.contains("br-2"), "{links}");
        assert_eq!(second.plugs("aaaa1"), [one.plug]);
        let two = container(&second, "aaaa2", 1).await;
        assert_eq!(two.plug.address, Ipv4Addr::new(10, 8, 1, 3), "the first one's is taken");
        assert!(two.ask(Ipv4Addr::new(10, 8, 1, 2), 80).is_some());
        second.close().await.expect("closes");
        assert!(!ip("-br link").contains("br-"), "no bridge is left");
        assert_eq!(run("nft", "list tables"), "", "no table is left");
    });
}

#[test]
fn operators_can_read_the_tables() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        network.make_local(local(1)).await.expect("makes");
        let internal = LocalNetwork { is_internal: true, ..local(2) };
        network.make_local(internal).await.expect("makes");
        container(&network, "aaaa1", 1).await;
        let text = run("nft", "list ruleset");
        for line in [
            "table ip skep-test-nets",
            "iifname . oifname @same accept",
            "iifname @internal drop",
            "ct status dnat accept",
            "ip saddr 10.8.1.0/24 oifname != \"br-1\" masquerade",
            "table bridge skep-test",
            "iifname . ether saddr != @macs drop",
            "iifname . arp saddr ip != @ipv4 drop",
            "icmpv6 type nd-router-advert drop",
            "elements = { \"br-2\" }",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        network.close().await.expect("closes");
    });
}

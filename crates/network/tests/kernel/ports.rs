//! Sentences about containers in the default network and the ports they publish.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use network::{Endpoint, Protocol, PublishedPort};

use crate::hosts::{
    Neighbour, ask, echo_at, inside, ip, on_a_fresh_host, run, say, serve, serve_at,
};

fn tcp(published: u16, backends: &[&Endpoint]) -> PublishedPort {
    PublishedPort {
        protocol: Protocol::Tcp,
        host_ip: None,
        published,
        target: 80,
        backends: backends.iter().map(|endpoint| endpoint.address.into()).collect(),
    }
}

#[test]
fn containers_reach_each_other_and_their_gateway() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let (one, two) =
            (network.connect("aaaa1").await.unwrap(), network.connect("aaaa2").await.unwrap());
        assert_eq!(
            network.connect("aaaa1").await.unwrap(),
            one,
            "connecting again changes nothing"
        );
        serve(&two.netns, "two");
        let (address, from) = (two.address, one.address);
        assert_eq!(inside(&one.netns, || ask(address, 80)).unwrap(), format!("two {from}"));
        let gateway = one.gateway;
        let host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap();
        inside(&one.netns, || TcpStream::connect((gateway, 9000))).expect("the host answers");
        drop(host);
        network.close().await.unwrap();
    });
}

#[test]
fn a_published_port_is_balanced_and_the_container_sees_the_client() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let (one, two) =
            (network.connect("aaaa1").await.unwrap(), network.connect("aaaa2").await.unwrap());
        serve(&one.netns, "one");
        serve(&two.netns, "two");
        network.publish("web", vec![tcp(8080, &[&one, &two])]).await.unwrap();
        let client = Neighbour::new();
        let answers: BTreeSet<_> = (0..60)
            .map(|_| inside(&client.netns, || ask(Ipv4Addr::new(192, 0, 2, 1), 8080)).unwrap())
            .collect();
        let expected = ["one 192.0.2.2", "two 192.0.2.2"].map(String::from);
        assert_eq!(answers, BTreeSet::from(expected));
        network.publish("web", vec![tcp(8080, &[&two])]).await.unwrap();
        for _ in 0..20 {
            let answer = inside(&client.netns, || ask(Ipv4Addr::new(192, 0, 2, 1), 8080)).unwrap();
            assert_eq!(answer, "two 192.0.2.2", "what left the map gets nothing new");
        }
        network.close().await.unwrap();
    });
}

#[test]
fn a_published_port_answers_on_loopback_and_to_containers_themselves() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).unwrap().starts_with("one "));
        assert!(ask(one.gateway, 8080).unwrap().starts_with("one "));
        let gateway = one.gateway;
        let own = inside(&one.netns, || ask(gateway, 8080)).unwrap();
        assert!(own.starts_with("one "), "a container reaches itself by its published port");
        network.publish("web", vec![]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_err(), "withdrawn");
        network.close().await.unwrap();
    });
}

#[test]
fn a_published_port_answers_over_ipv6_and_the_container_sees_the_client() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        let client = Neighbour::new();
        ip("addr add fd99::1/64 dev wire nodad");
        inside(&client.netns, || ip("addr add fd99::2/64 dev far nodad"));
        let this_host: Ipv6Addr = "fd99::1".parse().unwrap();
        assert_eq!(inside(&client.netns, || ask(this_host, 8080)).unwrap(), "one fd99::2");
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).unwrap().starts_with("one fd73:"));
        assert_eq!(ask(this_host, 8080).unwrap(), "one fd99::1");
        let own = inside(&one.netns, || ask(this_host, 8080)).unwrap();
        assert!(own.starts_with("one fd73:"), "a container reaches itself by its published port");
        // Past the port, and out to the world, there is no way.
        let address = inside(&one.netns, || ip("-6 -o addr show scope global"));
        let address = address.split_whitespace().find_map(|it| it.strip_suffix("/112")).unwrap();
        let address: Ipv6Addr = address.parse().unwrap();
        inside(&client.netns, || ip("-6 route add fd73::/16 via fd99::1"));
        assert!(inside(&client.netns, || ask(address, 80)).is_err());
        let out = inside(&one.netns, || ask("fd99::2".parse::<Ipv6Addr>().unwrap(), 80));
        assert_eq!(out.expect_err("refused").kind(), std::io::ErrorKind::NetworkUnreachable);
        network.publish("web", vec![]).await.unwrap();
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_err(), "withdrawn");
        network.close().await.unwrap();
    });
}

#[test]
fn a_port_on_the_addresses_of_one_version_of_ip_is_not_on_the_others() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        let (of_ipv4, of_ipv6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        for (host_ip, expected) in [
            (None, [true, true]),
            (Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), [true, false]),
            (Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), [false, true]),
            (Some(of_ipv6.into()), [false, true]),
        ] {
            let port = PublishedPort { host_ip, ..tcp(8080, &[&one]) };
            network.publish("web", vec![]).await.unwrap();
            network.publish("web", vec![port]).await.unwrap();
            let answered = [ask(of_ipv4, 8080).is_ok(), ask(of_ipv6, 8080).is_ok()];
            assert_eq!(answered, expected, "{host_ip:?}");
        }
        let process = TcpListener::bind((of_ipv6, 9090)).unwrap();
        let error = network.publish("other", vec![tcp(9090, &[&one])]).await.expect_err("held");
        assert_eq!(error.to_string(), "listen tcp6 [::]:9090: bind: address already in use");
        drop(process);
        network.close().await.unwrap();
    });
}

#[test]
fn a_port_on_one_address_answers_on_that_one_only() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        let host_ip = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = PublishedPort { host_ip, ..tcp(8080, &[&one]) };
        network.publish("web", vec![port]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        assert!(ask(one.gateway, 8080).is_err());
        network.close().await.unwrap();
    });
}

#[test]
fn udp_is_published_too() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        let server = inside(&one.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        let port = PublishedPort { protocol: Protocol::Udp, target: 53, ..tcp(5353, &[&one]) };
        network.publish("dns", vec![port]).await.unwrap();
        let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        asker.send_to(b"who?", (Ipv4Addr::LOCALHOST, 5353)).unwrap();
        let mut buffer = [0; 16];
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (length, _) = server.recv_from(&mut buffer).expect("arrives");
        assert_eq!(&buffer[..length], b"who?");
        network.close().await.unwrap();
    });
}

#[test]
fn a_taken_port_is_refused_and_nothing_changes() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        let process = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).unwrap();
        for (port, text) in [
            (8080, "Bind for 0.0.0.0:8080 failed: port is already allocated"),
            (9090, "listen tcp4 0.0.0.0:9090: bind: address already in use"),
        ] {
            let error =
                network.publish("other", vec![tcp(7070, &[&one]), tcp(port, &[&one])]).await;
            assert_eq!(error.expect_err("taken").to_string(), text);
            let error = network.check_free("other", tcp(port, &[])).await;
            assert_eq!(error.expect_err("taken").to_string(), text);
            assert!(ask(Ipv4Addr::LOCALHOST, 7070).is_err(), "nothing of the refused set is there");
        }
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.check_free("web", tcp(8080, &[])).await.expect("it is its own");
        drop(process);
        // A process that another test is about to start has a copy of the socket until it runs its own program.
        let free = async {
            while network.check_free("other", tcp(9090, &[])).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), free).await.expect("free");
        network.close().await.unwrap();
    });
}

#[test]
fn a_new_daemon_takes_over_containers_and_ports() {
    on_a_fresh_host(async |host| {
        let first = host.network().await;
        let one = first.connect("aaaa1").await.unwrap();
        first.isolate("bbbb1").await.unwrap();
        serve(&one.netns, "one");
        first.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        first.publish("gone", vec![tcp(8081, &[&one])]).await.unwrap();
        drop(first);
        let second = host.network().await;
        assert_eq!(second.endpoint("aaaa1"), Some(one.clone()));
        assert_eq!(second.containers(), ["aaaa1", "bbbb1"]);
        assert!(
            ask(Ipv4Addr::LOCALHOST, 8080).is_ok(),
            "ports answer before anybody published again"
        );
        second.publish("gone", Vec::new()).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8081).is_err());
        let two = second.connect("aaaa2").await.unwrap();
        assert_ne!(two.address, one.address);
        second.close().await.unwrap();
    });
}

#[test]
fn ports_are_kept_as_far_as_they_are_free_and_lead_nowhere() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let any = Ipv4Addr::UNSPECIFIED;
        let process = TcpListener::bind((any, 9090)).unwrap();
        let wanted = || vec![tcp(8080, &[]), tcp(9090, &[])];
        let refused = network.keep_ports("ingress", wanted()).await.unwrap();
        let refused: Vec<_> = refused.iter().map(|(port, _)| port.published).collect();
        assert_eq!(refused, [9090]);
        assert!(TcpListener::bind((any, 8080)).is_err(), "a process cannot have it");
        let asked = ask(Ipv4Addr::LOCALHOST, 8080).expect_err("nobody serves");
        assert_eq!(asked.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(process);
        assert_eq!(network.keep_ports("ingress", wanted()).await.unwrap().len(), 0);
        drop(network);
        let next = host.network().await;
        assert!(TcpListener::bind((any, 9090)).is_err(), "nor from the next daemon");
        next.keep_ports("ingress", vec![]).await.unwrap();
        TcpListener::bind((any, 9090)).expect("it is free");
        next.close().await.unwrap();
    });
}

#[test]
fn hundreds_of_backends_are_one_port() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        let many: Vec<_> = std::iter::repeat_n(&one, 700).collect();
        network.publish("web", vec![tcp(8080, &many)]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.publish("web", vec![tcp(8080, &many[..650])]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.close().await.unwrap();
    });
}

#[test]
fn taken_down_nothing_is_left() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        network.isolate("bbbb1").await.unwrap();
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        network.close().await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let directory = host.directory.path().to_str().unwrap();
        assert!(!mounts.contains(directory), "no mount is left");
        assert!(!ip("link show").contains("skep0"), "no bridge is left");
        assert_eq!(run("nft", "list tables"), "", "no table is left");
    });
}

#[test]
fn operators_can_read_the_table() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        network.publish("web", vec![tcp(8080, &[&one, &one])]).await.unwrap();
        let text = run("nft", "list table ip skep-test");
        assert!(text.contains("tcp . 8080 : goto b2"), "{text}");
        network.close().await.unwrap();
    });
}

#[test]
fn a_container_that_starts_again_at_once_takes_the_place_of_its_old_link() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        // As if the kernel had not yet taken down what belonged to the namespace of before.
        ip("link add vecccccccccccc type veth peer name other");
        let endpoint = network.connect("cccccccccccccccccccc").await.expect("connects");
        inside(&endpoint.netns, || assert!(ip("addr show dev eth0").contains("172.17.")));
        network.close().await.expect("closes");
    });
}

#[test]
fn a_process_that_listens_on_ipv4_alone_is_reached_over_ipv6_until_it_listens_there_itself() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve_at(&one.netns, (Ipv4Addr::UNSPECIFIED, 80), "four");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        let client = Neighbour::new();
        ip("addr add fd99::1/64 dev wire nodad");
        inside(&client.netns, || ip("addr add fd99::2/64 dev far nodad"));
        let this_host: Ipv6Addr = "fd99::1".parse().unwrap();
        let gateway = one.gateway;
        let by_all = |expected: [&str; 3]| {
            let from_far = inside(&client.netns, || ask(this_host, 8080)).unwrap();
            let answers = [from_far, ask(Ipv6Addr::LOCALHOST, 8080).unwrap()];
            assert_eq!(answers, expected[..2]);
            let own = inside(&one.netns, || ask(this_host, 8080)).unwrap();
            assert!(own.starts_with(expected[2]), "{own}");
        };
        let relayed = format!("four {gateway}");
        by_all([&relayed, &relayed, "four "]);
        // What is said goes both ways, to its end.
        let long = vec![b'x'; 3 << 20];
        let length = long.len();
        echo_at(&one.netns, (Ipv4Addr::UNSPECIFIED, 81));
        let port = PublishedPort { target: 81, ..tcp(8081, &[&one]) };
        network.publish("echo", vec![port]).await.unwrap();
        let echoed = inside(&client.netns, || say(this_host, 8081, long));
        assert_eq!(echoed.len(), length);
        // A process that begins to listen on IPv6 has it from then on, and sees the client.
        let address: Ipv6Addr = "fd73:6b65:7000::ac11:2".parse().unwrap();
        serve_at(&one.netns, (address, 80), "six");
        by_all(["six fd99::2", "six fd73:6b65:7000::ac11:1", "six fd73:"]);
        assert_eq!(network.audit(false).await, [""; 0]);
        network.close().await.unwrap();
    });
}

#[test]
fn datagrams_over_ipv6_reach_a_process_that_listens_on_ipv4_alone() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        let server = inside(&one.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        let port = PublishedPort { protocol: Protocol::Udp, target: 53, ..tcp(5353, &[&one]) };
        network.publish("dns", vec![port]).await.unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((length, client)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], client);
            }
        });
        let client = Neighbour::new();
        ip("addr add fd99::1/64 dev wire nodad");
        inside(&client.netns, || ip("addr add fd99::2/64 dev far nodad"));
        inside(&client.netns, || {
            for word in [&b"one"[..], b"two"] {
                let asker = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
                asker.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                asker.connect(("fd99::1", 5353)).unwrap();
                let mut buffer = [0; 16];
                for _ in 0..2 {
                    asker.send(word).unwrap();
                    let length = asker.recv(&mut buffer).expect("an answer");
                    assert_eq!(&buffer[..length], word);
                }
            }
        });
        network.close().await.unwrap();
    });
}

#[test]
fn relays_end_with_their_container_and_begin_again_with_the_next_daemon() {
    on_a_fresh_host(async |host| {
        let first = host.network().await;
        let one = first.connect("aaaa1").await.unwrap();
        serve_at(&one.netns, (Ipv4Addr::UNSPECIFIED, 80), "four");
        first.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_ok());
        drop(first);
        let second = host.network().await;
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_ok(), "before anybody published again");
        inside(&one.netns, || run("nft", "flush ruleset"));
        assert!(!second.audit(true).await.is_empty());
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_ok(), "put back");
        second.disconnect("aaaa1").await.unwrap();
        assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_err());
        second.close().await.unwrap();
    });
}

#[test]
fn who_comes_from_outside_is_counted_and_what_a_container_opens_to_itself_is_not() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one.netns, "one");
        let silent = inside(&one.netns, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
        let mut arrivals = network.arrivals("aaaa1").await.unwrap();
        let own: IpAddr = one.address.into();
        for address in [own, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            inside(&one.netns, || ask(address, 80)).expect("it asks itself");
        }
        assert_eq!(arrivals.count().unwrap(), 0);
        let of_ipv6: Ipv6Addr = "fd73:6b65:7000::ac11:2".parse().unwrap();
        for address in [own, of_ipv6.into()] {
            assert!(ask(address, 80).is_ok());
        }
        assert_eq!(arrivals.count().unwrap(), 2, "connections");
        for address in [own, of_ipv6.into()] {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let asker = UdpSocket::bind(any).unwrap();
            for _ in 0..3 {
                asker.send_to(b"who?", (address, 53)).unwrap();
            }
        }
        assert_eq!(arrivals.count().unwrap(), 4, "flows, though nobody answers");
        drop(silent);
        network.close().await.unwrap();
    });
}

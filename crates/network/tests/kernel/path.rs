//! Sentences about how long packets to other nodes may be, across a router whose far link takes less.

use std::net::IpAddr;

use network::{NodePath, find_path};

use crate::hosts::{Machine, ip, run};

/// The far link's.
const NARROW: u32 = 1_400;

/// A node, a router and a node behind a narrow link: [10.9.1.1 - 10.9.1.2, 10.9.2.2 - 10.9.2.1], and fd09 likewise.
struct Route {
    near: Machine,
    router: Machine,
    _far: Machine,
}

impl Route {
    fn new() -> Self {
        let (near, router, far) = (Machine::new(), Machine::new(), Machine::new());
        let (of_near, of_far) = (near.thread, far.thread);
        for machine in [&near, &router, &far] {
            // Links are there at once; nobody else has their addresses.
            machine.run(|| set("ipv6/conf/default/accept_dad", "0"));
        }
        router.run(move || {
            for (name, thread, mtu) in [("near", of_near, 1_500), ("far", of_far, NARROW)] {
                ip(&format!(
                    "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {thread}"
                ));
                ip(&format!("link set {name} up"));
            }
            set("ipv4/ip_forward", "1");
            set("ipv6/conf/all/forwarding", "1");
        });
        let place = |number: u8, link: &str, last: u8| {
            ip(&format!("addr add 10.9.{number}.{last}/24 dev {link}"));
            ip(&format!("addr add fd09:{number}::{last}/64 dev {link} nodad"));
        };
        router.run(move || [(1, "near"), (2, "far")].map(|(number, link)| place(number, link, 2)));
        for (machine, number) in [(&near, 1), (&far, 2)] {
            machine.run(move || {
                ip("link set eth0 up");
                place(number, "eth0", 1);
                ip(&format!("route add default via 10.9.{number}.2"));
                ip(&format!("-6 route add default via fd09:{number}::2"));
            });
        }
        Self { near, router, _far: far }
    }

    fn found(&self, local: &str, node: &str) -> Option<NodePath> {
        let [local, node] = [local, node].map(|it| it.parse::<IpAddr>().expect("an address"));
        self.near.run(move || find_path(Some(local), node).expect("it is sent"))
    }
}

fn set(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).expect("the kernel has it");
}

const WAYS: [(&str, &str); 2] = [("10.9.1.1", "10.9.2.1"), ("fd09:1::1", "fd09:2::1")];

#[test]
fn a_router_says_what_a_narrow_way_takes_over_both_versions_of_ip() {
    let route = Route::new();
    for (local, node) in WAYS {
        let found = route.found(local, node);
        assert_eq!(found, Some(NodePath { bytes: NARROW, is_narrow: true }), "{node}");
    }
    let gateway = route.found("fd09:1::1", "fd09:1::2");
    assert_eq!(gateway, Some(NodePath { bytes: 1_500, is_narrow: false }));
}

#[test]
fn a_narrow_way_is_found_where_routers_say_nothing_over_both_versions_of_ip() {
    let route = Route::new();
    route.router.run(|| {
        run("nft", "add table inet hush");
        run("nft", "add chain inet hush out { type filter hook output priority 0; }");
        run("nft", "add rule inet hush out icmp type destination-unreachable drop");
        run("nft", "add rule inet hush out icmpv6 type packet-too-big drop")
    });
    for (local, node) in WAYS {
        let found = route.found(local, node).expect("it is found out");
        assert!(found.is_narrow, "{node}");
        // It is looked for until little is left to gain.
        assert!((NARROW - 8..=NARROW).contains(&found.bytes), "{node}: {}", found.bytes);
    }
}

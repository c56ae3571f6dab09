//! Says what is wrong with a host. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::facts::{Facts, Link, Membership, Wall};

/// What overlays need of the way between nodes, in bytes: IPv6's least, and what vxlan takes.
const LEAST_MTU: u32 = 1_350;

/// What Docker's limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Something in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// Where: `kernel`, `firewall`, `settings`, `network`, `swarm`.
    pub about: &'static str,
    pub problem: String,
    /// What to do.
    pub fix: String,
}

/// Everything that is wrong, the most basic first.
pub fn judge(facts: &Facts) -> Vec<Complaint> {
    let mut complaints = kernel(facts);
    complaints.extend(judge_firewall(facts));
    complaints.extend(settings(facts));
    complaints.extend(network(facts));
    complaints
}

/// What of others keeps packets from containers.
pub fn judge_firewall(facts: &Facts) -> Vec<Complaint> {
    let mut complaints: Vec<_> = facts.walls.iter().map(wall).collect();
    for family in ["iptables", "ip6tables"] {
        let key = format!("net/bridge/bridge-nf-call-{family}");
        // Harmless as long as nobody drops what is passed on.
        if !facts.walls.is_empty() && facts.sysctls.get(&key).is_some_and(|value| value == "1") {
            complaints.push(Complaint {
                about: "firewall",
                problem: format!(
                    "bridge-nf-call-{family} is on: that chain drops even what containers of one bridge say to each other"
                ),
                fix: format!("sysctl -w net.bridge.bridge-nf-call-{family}=0"),
            });
        }
    }
    complaints.extend(facts.unread_firewall.as_ref().map(|reason| Complaint {
        about: "firewall",
        problem: format!("the firewall's rules cannot be read: {reason}"),
        fix: "run this as root".to_owned(),
    }));
    complaints
}

fn wall(wall: &Wall) -> Complaint {
    let Wall { family, table, chain } = wall;
    // What iptables made is changed by iptables, or it does not list it any more.
    let is_iptables = family == "ip" && table == "filter" && chain == "FORWARD";
    let fix = match is_iptables {
        true => "iptables -P FORWARD ACCEPT, or a rule there that lets containers' bridges pass; under ufw: DEFAULT_FORWARD_POLICY=\"ACCEPT\" in /etc/default/ufw, then ufw reload".to_owned(),
        false => format!("nft add chain {family} {table} {chain} '{{ policy accept; }}', or a rule there that lets containers' bridges pass"),
    };
    let problem = format!(
        "chain {chain} of table {family} {table} drops what this host passes on: containers are cut off from other hosts, and published ports do not answer"
    );
    Complaint { about: "firewall", problem, fix }
}

fn kernel(facts: &Facts) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (what, reason) in &facts.missing {
        complaints.push(Complaint {
            about: "kernel",
            problem: format!("the kernel does not make {what}: {reason}"),
            fix: fix_for(what),
        });
    }
    if !facts.has_overlayfs {
        complaints.push(Complaint {
            about: "kernel",
            problem: "the kernel has no overlayfs: containers cannot share their images' layers"
                .to_owned(),
            fix: "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS".to_owned(),
        });
    }
    let missing: Vec<_> =
        CONTROLLERS.iter().filter(|it| !facts.controllers.iter().any(|has| has == *it)).collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
        complaints.push(Complaint {
            about: "kernel",
            problem: format!(
                "control groups lack {}: containers with such limits are refused",
                names.join(", ")
            ),
            fix: "boot with cgroup_enable=memory, or mount the controllers beneath /sys/fs/cgroup"
                .to_owned(),
        });
    }
    complaints
}

fn fix_for(what: &str) -> String {
    match what {
        "vxlan devices" => "modprobe vxlan, or a kernel with CONFIG_VXLAN: networks of the swarm need it",
        "bridges" => "modprobe bridge, or a kernel with CONFIG_BRIDGE",
        "veth devices" => "modprobe veth, or a kernel with CONFIG_VETH",
        "tunnels" => "modprobe wireguard or modprobe tun, or a kernel with CONFIG_WIREGUARD or CONFIG_TUN: encrypted networks need one of them",
        "nftables" => "modprobe nft_nat nft_numgen nft_fib_ipv4 nft_masq, or a kernel with those: published ports and services need them",
        "sockets known to nftables" => "modprobe nft_socket, or a kernel with CONFIG_NFT_SOCKET: without it, a process that listens on 0.0.0.0 alone is not reached over IPv6",
        "network namespaces" => "run this as root",
        _ => "look at dmesg",
    }
    .to_owned()
}

fn settings(facts: &Facts) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let is = |key: &str, wanted: &str| facts.sysctls.get(key).is_some_and(|value| value == wanted);
    if is("net/ipv4/ip_forward", "0") {
        complaints.push(Complaint {
            about: "settings",
            problem: "ip_forward is off: the host passes nothing on to containers".to_owned(),
            fix: "sysctl -w net.ipv4.ip_forward=1, and nothing in /etc/sysctl.d that turns it off again".to_owned(),
        });
    }
    if is("net/ipv4/conf/all/rp_filter", "1") {
        complaints.push(Complaint {
            about: "settings",
            problem: "rp_filter is strict: answers that come by another link than they would leave by are dropped".to_owned(),
            fix: "sysctl -w net.ipv4.conf.all.rp_filter=2".to_owned(),
        });
    }
    complaints
}

fn network(facts: &Facts) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for port in &facts.held_ports {
        complaints.push(Complaint {
            about: "network",
            problem: format!("port {port} is held by another process"),
            fix: format!("stop it, or choose another port; {}", who_listens(port)),
        });
    }
    let Some(membership) = &facts.membership else { return complaints };
    let own = facts.links.iter().find(|link| link.address.to_string() == membership.address);
    if let Some(link) = own.filter(|link| link.mtu < LEAST_MTU) {
        complaints.push(Complaint {
            about: "network",
            problem: format!(
                "link {} takes packets of {} bytes: too short for networks of the swarm, which need {LEAST_MTU}",
                link.name, link.mtu
            ),
            fix: format!("ip link set {} mtu 1500, if what is behind it bears that", link.name),
        });
    }
    complaints.extend(narrow_ways(membership, own));
    for (manager, reason) in &membership.unreachable {
        complaints.push(Complaint {
            about: "swarm",
            problem: format!("manager {manager} is not reached: {reason}"),
            fix: "open 2377/tcp between nodes, or bring the manager back".to_owned(),
        });
    }
    complaints
}

/// Nodes with equally narrow ways are named together: mostly it is one link on the way to all of them.
fn narrow_ways(membership: &Membership, own: Option<&Link>) -> Vec<Complaint> {
    let mut ways: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (node, bytes) in &membership.narrow {
        ways.entry(*bytes).or_default().push(node);
    }
    let complaint = |(bytes, nodes): (u32, Vec<&str>)| {
        let consequence = match bytes < LEAST_MTU {
            true => format!("too short for networks of the swarm, which need {LEAST_MTU}"),
            false => "networks of the swarm go by it, all else may hang on long packets".to_owned(),
        };
        let link = own.map_or("LINK", |link| &link.name);
        Complaint {
            about: "network",
            problem: format!(
                "the way to {} takes packets of {bytes} bytes, this node's own link longer ones: {consequence}",
                nodes.join(", ")
            ),
            fix: format!(
                "let the links on the way take as much, or say so on this host: ip link set {link} mtu {bytes}"
            ),
        }
    };
    ways.into_iter().map(complaint).collect()
}

fn who_listens(port: &str) -> String {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let flags = if protocol == "udp" { "-lunp" } else { "-ltnp" };
    format!("ss {flags} 'sport = :{number}' names it")
}

#[cfg(test)]
mod tests {
    use super::*;
    fn healthy() -> Facts {
        Facts {
            has_overlayfs: true,
            controllers: CONTROLLERS.map(str::to_owned).to_vec(),
            sysctls: [("net/ipv4/ip_forward".to_owned(), "1".to_owned())].into(),
            ..Facts::default()
        }
    }

    #[test]
    fn a_healthy_host_has_nothing_wrong() {
        assert_eq!(judge(&healthy()), []);
    }

    #[test]
    fn each_fault_is_named_with_what_helps() {
        let sysctl = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let wall = |family: &str, table: &str, chain: &str| Wall {
            family: family.to_owned(),
            table: table.to_owned(),
            chain: chain.to_owned(),
        };
        let membership = |unreachable| Membership {
            address: "10.0.0.1".to_owned(),
            unreachable,
            narrow: Vec::new(),
        };
        let link = Link { name: "eth0".to_owned(), address: [10, 0, 0, 1].into(), mtu: 1_300 };
        let cases: [(Facts, &str, &str); 9] = [
            (Facts { has_overlayfs: false, ..healthy() }, "no overlayfs", "modprobe overlay"),
            (
                Facts { controllers: vec!["cpu".into()], ..healthy() },
                "lack memory, pids",
                "boot with",
            ),
            (
                Facts { missing: [sysctl("vxlan devices", "not supported")].into(), ..healthy() },
                "does not make vxlan devices: not supported",
                "modprobe vxlan",
            ),
            (
                Facts { walls: vec![wall("ip", "filter", "FORWARD")], ..healthy() },
                "chain FORWARD of table ip filter drops",
                "iptables -P FORWARD ACCEPT",
            ),
            (
                Facts { walls: vec![wall("inet", "fw", "forward")], ..healthy() },
                "chain forward of table inet fw drops",
                "nft add chain inet fw forward '{ policy accept; }'",
            ),
            (
                Facts { sysctls: [sysctl("net/ipv4/ip_forward", "0")].into(), ..healthy() },
                "ip_forward is off",
                "sysctl -w net.ipv4.ip_forward=1",
            ),
            (
                Facts { held_ports: vec!["4789/udp".into()], ..healthy() },
                "port 4789/udp is held",
                "ss -lunp",
            ),
            (
                Facts { links: vec![link], membership: Some(membership(vec![])), ..healthy() },
                "link eth0 takes packets of 1300 bytes",
                "ip link set eth0 mtu 1500",
            ),
            (
                Facts {
                    membership: Some(membership(vec![sysctl("10.0.0.2:2377", "timed out")])),
                    ..healthy()
                },
                "manager 10.0.0.2:2377 is not reached: timed out",
                "open 2377/tcp",
            ),
        ];
        for (facts, problem, fix) in cases {
            let complaints = judge(&facts);
            assert_eq!(complaints.len(), 1, "{problem}: {complaints:?}");
            assert!(complaints[0].problem.contains(problem), "{complaints:?}");
            assert!(complaints[0].fix.contains(fix), "{complaints:?}");
        }
    }

    #[test]
    fn ways_to_nodes_that_take_less_than_the_link_are_named_together() {
        let ways = [("10.0.0.2", 1_400), ("10.0.0.3", 1_400), ("10.0.0.4", 1_300)];
        let narrow = ways.map(|(node, bytes)| (node.to_owned(), bytes)).to_vec();
        let address = "10.0.0.1".to_owned();
        let link = Link { name: "eth0".to_owned(), address: [10, 0, 0, 1].into(), mtu: 1_500 };
        let membership = Some(Membership { address, narrow, ..Membership::default() });
        let complaints = judge(&Facts { membership, links: vec![link], ..healthy() });
        let told = [
            ("10.0.0.4 takes packets of 1300 bytes", "too short for networks", "mtu 1300"),
            ("10.0.0.2, 10.0.0.3 takes packets of 1400 bytes", "may hang", "set eth0 mtu 1400"),
        ];
        assert_eq!(complaints.len(), told.len(), "{complaints:?}");
        for (complaint, (way, consequence, fix)) in complaints.iter().zip(told) {
            let problem = &complaint.problem;
            assert!(problem.contains(way) && problem.contains(consequence), "{problem}");
            assert!(complaint.fix.contains(fix), "{}", complaint.fix);
        }
    }

    #[test]
    fn bridged_frames_in_the_firewall_matter_where_somebody_drops_them() {
        let key = "net/bridge/bridge-nf-call-iptables".to_owned();
        let mut facts = Facts { sysctls: [(key, "1".to_owned())].into(), ..healthy() };
        assert_eq!(judge(&facts), []);
        let [family, table, chain] = ["ip", "filter", "FORWARD"].map(str::to_owned);
        facts.walls.push(Wall { family, table, chain });
        let fixes: Vec<_> = judge(&facts).into_iter().map(|it| it.fix).collect();
        assert!(fixes[1].contains("sysctl -w net.bridge.bridge-nf-call-iptables=0"), "{fixes:?}");
    }
}

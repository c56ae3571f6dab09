//! Looks at the host this runs on. Nothing of it is changed: what has to be tried is tried in a network namespace that ends
//! with the trial.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use crate::facts::{Facts, Link, Wall};

/// Settings that matter, beneath `/proc/sys`.
const SYSCTLS: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
];

/// Looks at everything but the swarm. `own_ports` are those that the node's daemon holds itself.
pub fn probe(own_ports: &[String]) -> Facts {
    let mut facts = probe_firewall();
    facts.missing = network::missing_features();
    facts.has_overlayfs = has_overlayfs();
    facts.controllers = controllers(Path::new("/sys/fs/cgroup"));
    facts.held_ports = held_ports(own_ports);
    facts.links = links();
    facts
}

/// Looks at what of others keeps packets from containers, and at settings.
pub fn probe_firewall() -> Facts {
    let mut facts = Facts { sysctls: sysctls(), ..Facts::default() };
    match network::walls("skep-") {
        Ok(walls) => facts.walls = walls.into_iter().map(wall).collect(),
        Err(error) => facts.unread_firewall = Some(text_of(&error)),
    }
    facts
}

fn wall(chain: network::BaseChain) -> Wall {
    Wall { family: chain.family.to_owned(), table: chain.table, chain: chain.name }
}

fn sysctls() -> BTreeMap<String, String> {
    let read = |key: &str| std::fs::read_to_string(Path::new("/proc/sys").join(key)).ok();
    let values = SYSCTLS.iter().filter_map(|key| Some(((*key).to_owned(), read(key)?)));
    values.map(|(key, value)| (key, value.trim().to_owned())).collect()
}

fn has_overlayfs() -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some("overlay"))
        || Path::new("/sys/module/overlay").exists()
}

/// Of the one hierarchy of version 2, or of those of version 1.
fn controllers(root: &Path) -> Vec<String> {
    let unified = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !unified.trim().is_empty() {
        return unified.split_whitespace().map(str::to_owned).collect();
    }
    let listed = std::fs::read_dir(root).into_iter().flatten().flatten();
    let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
    names.flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn held_ports(own: &[String]) -> Vec<String> {
    let any = Ipv4Addr::UNSPECIFIED;
    let is_held = |port: &str| match port.split_once('/') {
        Some((number, protocol)) => {
            let address = (any, number.parse().unwrap_or(0));
            let bound = match protocol {
                "udp" => UdpSocket::bind(address).map(drop),
                _ => TcpListener::bind(address).map(drop),
            };
            bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        }
        None => false,
    };
    let mut ports = vec!["2377/tcp".to_owned(), format!("{}/udp", network::DATA_PORT)];
    ports.extend(network::TUNNEL_PORTS.map(|port| format!("{port}/udp")));
    ports.into_iter().filter(|port| !own.contains(port) && is_held(port)).collect()
}

fn links() -> Vec<Link> {
    let mtus = network::link_mtus().unwrap_or_default();
    let addresses = network::host_addresses().unwrap_or_default();
    let links = addresses.into_iter().filter_map(|(name, address)| {
        let mtu = *mtus.get(&name)?;
        Some(Link { name, address, mtu })
    });
    links.collect()
}

fn text_of(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_both_versions_are_found() {
        let directory = std::env::temp_dir().join(format!("doctor-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("cpu,cpuacct")).unwrap();
        assert_eq!(controllers(&directory), ["cpu", "cpuacct"]);
        std::fs::write(directory.join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(controllers(&directory), ["cpu", "memory"]);
        std::fs::remove_dir_all(directory).unwrap();
    }
}

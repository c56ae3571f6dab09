//! Ports of the host that a container answers on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use docker_types::container::{Port, PortBinding, PortMap};
use network::{Protocol, PublishedPort};
use rand::RngExt;

use super::container::Container;
use super::record::Record;
use super::{Shared, validate};
use crate::error::Error;

/// Where ports are taken from when none is asked for: the kernel's own range of ephemeral ports.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;
/// Ports tried before giving up: with half of the range taken, one in a million fails.
const ATTEMPTS_MAX: usize = 20;

/// A port that was asked for.
#[derive(Clone, Debug)]
struct Wish {
    protocol: Protocol,
    target: u16,
    host_ip: Option<IpAddr>,
    /// `None` is any.
    host: Option<RangeInclusive<u16>>,
}

impl Shared {
    /// Publishes all ports of a container that starts; those that name no address of the host at `binding`.
    pub(super) async fn publish_ports(
        &self,
        container: &Container,
        record: &Record,
        address: Ipv4Addr,
        binding: Option<IpAddr>,
    ) -> Result<(), Error> {
        let mut wishes = wishes(record)?;
        for wish in &mut wishes {
            wish.host_ip = wish.host_ip.or(binding.filter(|ip| !ip.is_unspecified()));
        }
        if wishes.is_empty() {
            return Ok(());
        }
        let mut attempt = 0;
        loop {
            let ports: Vec<PublishedPort> =
                wishes.iter().map(|wish| wish.choose(address, attempt)).collect();
            match self.network.publish(&container.id, ports.clone()).await {
                Ok(()) => {
                    container.set_ports(ports);
                    return Ok(());
                }
                Err(network::Error::PortTaken { .. } | network::Error::PortHeld { .. })
                    if attempt < ATTEMPTS_MAX && wishes.iter().any(Wish::has_choice) =>
                {
                    attempt += 1;
                }
                Err(source) => {
                    let (name, id) = (record.name.clone(), container.id.clone());
                    return Err(Error::PublishPorts { name, id, source });
                }
            }
        }
    }
}

impl Wish {
    fn has_choice(&self) -> bool {
        self.host.as_ref().is_none_or(|range| range.start() < range.end())
    }

    fn choose(&self, address: Ipv4Addr, attempt: usize) -> PublishedPort {
        let published = match &self.host {
            Some(range) if attempt == 0 => *range.start(),
            Some(range) => rand::rng().random_range(range.clone()),
            None => rand::rng().random_range(EPHEMERAL),
        };
        PublishedPort {
            protocol: self.protocol,
            host_ip: self.host_ip,
            published,
            target: self.target,
            backends: vec![address.into()],
        }
    }
}

/// What a record asks for: the bindings, and with `-P` every exposed port that has none.
fn wishes(record: &Record) -> Result<Vec<Wish>, Error> {
    let mut wishes = Vec::new();
    for (port, bindings) in record.host.port_bindings.iter().flatten() {
        let (target, protocol) = validate::parse_port(port)?;
        for binding in bindings.iter().flatten() {
            let host_ip = binding.host_ip.parse::<IpAddr>().ok();
            let host = validate::parse_host_port(&binding.host_port)?;
            wishes.push(Wish { protocol, target, host_ip, host });
        }
    }
    if record.host.publish_all_ports {
        for port in record.config.exposed_ports.keys() {
            let (target, protocol) = validate::parse_port(port)?;
            if !wishes.iter().any(|wish| wish.target == target && wish.protocol == protocol) {
                wishes.push(Wish { protocol, target, host_ip: None, host: None });
            }
        }
    }
    Ok(wishes)
}

/// As `inspect` shows ports: every exposed one, with its places on the host.
pub(super) fn port_map(record: &Record, published: &[PublishedPort]) -> PortMap {
    let mut map: PortMap =
        record.config.exposed_ports.keys().map(|port| (port.clone(), None)).collect();
    for port in published {
        let key = format!("{}/{}", port.target, protocol_name(port.protocol));
        let bindings = map.entry(key).or_default().get_or_insert_default();
        for host_ip in host_addresses(port) {
            bindings.push(PortBinding { host_ip, host_port: port.published.to_string() });
        }
    }
    map
}

/// As `ps` shows ports.
pub(super) fn port_list(record: &Record, published: &[PublishedPort]) -> Vec<Port> {
    let mut ports = Vec::new();
    for (key, bindings) in port_map(record, published) {
        let Ok((private_port, protocol)) = validate::parse_port(&key) else { continue };
        let r#type = protocol_name(protocol).to_owned();
        match bindings {
            None => ports.push(Port { private_port, r#type, ..Port::default() }),
            Some(bindings) => ports.extend(bindings.into_iter().map(|binding| Port {
                ip: binding.host_ip,
                private_port,
                public_port: binding.host_port.parse().unwrap_or(0),
                r#type: r#type.clone(),
            })),
        }
    }
    ports
}

/// Docker's word for a protocol.
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// A port on all addresses is shown once for each version of IP, as in Docker.
fn host_addresses(port: &PublishedPort) -> Vec<String> {
    match port.host_ip {
        Some(ip) => vec![ip.to_string()],
        None => vec![Ipv4Addr::UNSPECIFIED.to_string(), Ipv6Addr::UNSPECIFIED.to_string()],
    }
}

/// Ports by target, for filters.
pub(super) fn published_targets(
    published: &[PublishedPort],
) -> BTreeMap<(u16, &'static str), Vec<u16>> {
    let mut targets: BTreeMap<_, Vec<u16>> = BTreeMap::new();
    for port in published {
        targets
            .entry((port.target, protocol_name(port.protocol)))
            .or_default()
            .push(port.published);
    }
    targets
}

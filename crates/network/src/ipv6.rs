//! IPv6 for published ports where networks have none: addresses that follow from those of IPv4, and what the host is told.
//!
//! Nothing is allocated, nothing is remembered: where an address of IPv4 is somebody's, so is the one that follows from it.
//! They are of a prefix of our own (RFC 4193) and no name leads to them; containers are reached by them and reach nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::Error;

/// `fd` and "skep": beneath it, a number that says whose the address is, and the address of IPv4 at the end.
const PREFIX: [u16; 3] = [0xfd73, 0x6b65, 0x7000];
const CONTAINERS: u16 = 0;
const TASKS: u16 = 1;
const NODES: u16 = 2;

/// Bits before the address of IPv4.
const PREFIX_BITS: u8 = 96;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// A container's, or a bridge's, on the bridge.
pub(crate) fn of_container(address: Ipv4Addr) -> Ipv6Addr {
    following(CONTAINERS, address)
}

/// A bridge's subnet.
pub(crate) fn of_subnet(subnet: Ipv4Net) -> Ipv6Net {
    Ipv6Net::new_assert(of_container(subnet.network()), PREFIX_BITS + subnet.prefix_len())
}

/// The address of the bridge that every node has.
pub(crate) fn first_of(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.network().to_bits() + 1)
}

/// The ingress network's subnet.
pub(crate) fn of_mesh(subnet: Ipv4Net) -> Ipv6Net {
    Ipv6Net::new_assert(of_task(subnet.network()), PREFIX_BITS + subnet.prefix_len())
}

/// A task's in the ingress network.
pub(crate) fn of_task(address: Ipv4Addr) -> Ipv6Addr {
    following(TASKS, address)
}

/// A node's, when it asks for what another one serves in the name of those whom only it knows.
pub(crate) fn of_node(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => following(NODES, address),
        IpAddr::V6(address) => address,
    }
}

fn following(whose: u16, address: Ipv4Addr) -> Ipv6Addr {
    let ([a, b, c], [high, low]) = (PREFIX, halves(address));
    Ipv6Addr::new(a, b, c, whose, 0, 0, high, low)
}

fn halves(address: Ipv4Addr) -> [u16; 2] {
    let [a, b, c, d] = address.octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// Whether the host of this thread speaks IPv6.
pub(crate) fn is_spoken() -> bool {
    let disabled = std::fs::read_to_string(Path::new(SETTINGS).join("all/disable_ipv6"));
    disabled.is_ok_and(|disabled| disabled.trim() == "0")
}

/// Switches IPv6 on or off on a link. A host without IPv6 has nothing to switch.
pub(crate) fn switch(link: &str, is_on: bool) {
    let value = if is_on { "0" } else { "1" };
    let _ = std::fs::write(Path::new(SETTINGS).join(link).join("disable_ipv6"), value);
}

/// Lets the host pass packets on. A host that passes packets on hears no router, unless it is told to for each link: those
/// that heard routers before go on doing so.
pub(crate) fn forward() -> Result<(), Error> {
    let everywhere = Path::new(SETTINGS).join("all/forwarding");
    let known = std::fs::read_to_string(&everywhere).map_err(Error::file("read", &everywhere))?;
    if known.trim() == "1" {
        return Ok(());
    }
    let links = std::fs::read_dir(SETTINGS).map_err(Error::file("list", Path::new(SETTINGS)))?;
    for link in links.flatten() {
        let routers = link.path().join("accept_ra");
        if std::fs::read_to_string(&routers).is_ok_and(|hears| hears.trim() == "1") {
            // A link that goes away meanwhile has no routers.
            let _ = std::fs::write(&routers, "2");
        }
    }
    std::fs::write(&everywhere, "1").map_err(Error::file("write", &everywhere))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_and_are_told_apart() {
        let address = Ipv4Addr::new(10, 255, 1, 7);
        assert_eq!(of_container(address).to_string(), "fd73:6b65:7000::aff:107");
        assert_eq!(of_task(address).to_string(), "fd73:6b65:7000:1::aff:107");
        assert_eq!(of_node(address.into()).to_string(), "fd73:6b65:7000:2::aff:107");
        let subnet = "10.255.0.0/16".parse().expect("a subnet");
        assert_eq!(of_mesh(subnet).to_string(), "fd73:6b65:7000:1::aff:0/112");
        assert!(of_mesh(subnet).contains(&of_task(address)));
        assert!(!of_subnet(subnet).contains(&of_task(address)));
    }
}

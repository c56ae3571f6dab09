//! What a network of this host has of IPv6. Decides only.

use std::net::Ipv6Addr;

use docker_types::network::IpamConfig;
use ipnet::Ipv6Net;
use network::LocalIpv6;

use super::Refusal;
use super::plan::Surroundings;
use crate::containers::derived_id;

/// Length of the prefix of a subnet that nobody named.
const PREFIX_BITS: u8 = 64;
/// Longest prefix that leaves room for a gateway and a container.
const PREFIX_BITS_MAX: u8 = 126;

/// The subnet that was asked for, or one that follows from the network's identifier where only IPv6 was.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn addresses(
    asked: &[IpamConfig],
    is_wanted: bool,
    around: &Surroundings<'_>,
) -> Result<Option<LocalIpv6>, Refusal> {
    let asked = match asked {
        [] if !is_wanted => return Ok(None),
        [] => {
            let subnet = unnamed(&around.id);
            return Ok(Some(LocalIpv6 { subnet, gateway: first_of(subnet) }));
        }
        [asked] => asked,
        _ => return Err(Refusal::ManySubnets),
    };
    let Ok(subnet) = asked.subnet.parse::<Ipv6Net>() else {
        return Err(Refusal::Subnet { text: asked.subnet.clone() });
    };
    let subnet = subnet.trunc();
    let others = around.known.values().filter_map(|known| known.local.as_ref()?.ipv6);
    let overlaps = |other: Ipv6Net| subnet.contains(&other) || other.contains(&subnet);
    if others.map(|other| other.subnet).any(overlaps) {
        return Err(Refusal::Overlap);
    }
    let text = asked.gateway.as_str();
    let refused = |reason| Refusal::Gateway { text: text.to_owned(), reason };
    if subnet.prefix_len() > PREFIX_BITS_MAX {
        return Err(refused("No available addresses on this pool"));
    }
    let gateway = match text {
        "" => first_of(subnet),
        text => text.parse().map_err(|_| refused("invalid address"))?,
    };
    if !subnet.contains(&gateway) || gateway == subnet.network() {
        return Err(refused("Requested address is out of range"));
    }
    Ok(Some(LocalIpv6 { subnet, gateway }))
}

/// As `inspect` shows it.
pub(super) fn shown(asked: Option<&IpamConfig>, ipv6: LocalIpv6) -> IpamConfig {
    IpamConfig {
        subnet: ipv6.subnet.to_string(),
        gateway: ipv6.gateway.to_string(),
        ..asked.cloned().unwrap_or_default()
    }
}

fn first_of(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.network().to_bits() + 1)
}

/// A subnet of fd00::/8 that nobody else is likely to have (RFC 4193): an identifier is random.
fn unnamed(id: &str) -> Ipv6Net {
    // Those of the swarm are no hexadecimal digits.
    let is_hex = id.bytes().all(|digit| digit.is_ascii_hexdigit());
    let derived = (!is_hex).then(|| derived_id(&["network", id]));
    let id = derived.as_deref().unwrap_or(id);
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    let digits = id
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    for (octet, digit) in octets[1..8].iter_mut().zip(digits) {
        *octet = digit;
    }
    Ipv6Net::new_assert(octets.into(), PREFIX_BITS)
}

//! How long packets may be on the way between nodes.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::netlink::Netlink;

/// Of Ethernet, where nothing else is known.
const ETHERNET: u32 = 1_500;

/// The least that IPv6 works over.
pub(crate) const LEAST: u32 = 1_280;

/// Bytes that the link of this node's address takes.
pub(crate) fn of_link(local: Option<IpAddr>) -> u32 {
    local.and_then(found).unwrap_or(ETHERNET).max(LEAST)
}

/// Bytes that networks between nodes count on: no more than Ethernet's even where this node's link takes more, since others'
/// may not.
pub(crate) fn between_nodes(local: Option<IpAddr>) -> u32 {
    of_link(local).min(ETHERNET)
}

fn found(local: IpAddr) -> Option<u32> {
    let netlink = Netlink::open().ok()?;
    let addresses =
        netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).ok()?;
    let index = addresses.into_iter().find_map(|message| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        let is_local = message.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Local(it) | AddressAttribute::Address(it) if *it == local)
        });
        is_local.then_some(message.header.index)
    })?;
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).ok()?;
    links.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if link.header.index == index => {
            link.attributes.iter().find_map(|attribute| match attribute {
                // Loopback takes more than any way between hosts.
                LinkAttribute::Mtu(bytes) => Some((*bytes).min(u32::from(u16::MAX))),
                _ => None,
            })
        }
        _ => None,
    })
}

//! How long the packets are that containers send into a network, where a way between its nodes takes less than this node's
//! own link.
//!
//! It stands on the container's route and not on its link: links go on taking what others send who have heard later, or
//! whose ways take more.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link::inside;
use crate::{Error, mtu};

/// `IP6_RT_PRIO_ADDRCONF`: what the kernel writes on routes that come with an address.
const PRIORITY_V6: u32 = 256;

/// Has the container send packets of that many bytes at most to its neighbours by the link; without a number, of what the
/// link takes.
pub(super) fn limit(
    netns: &Path,
    link: u32,
    addresses: &[IpNet],
    bytes: Option<u32>,
) -> Result<(), Error> {
    let within = inside(netns)?;
    for address in addresses {
        let set = within.replace(RouteNetlinkMessage::NewRoute(route(link, *address, bytes)));
        set.map_err(Error::kernel(format!("say how long packets from {address} may be")))?;
    }
    Ok(())
}

/// What the container's routes by the link say, one number for each of its addresses.
pub(super) fn limits(
    netns: &Path,
    link: u32,
    addresses: &[IpNet],
) -> Result<Vec<Option<u32>>, Error> {
    let within = inside(netns)?;
    let mut found = Vec::new();
    for address in addresses {
        let wanted = route(link, *address, None);
        let mut asked = RouteMessage::default();
        asked.header.address_family = wanted.header.address_family;
        let routes = within.dump(RouteNetlinkMessage::GetRoute(asked));
        let routes = routes.map_err(Error::kernel("list a container's routes"))?;
        let ours = routes.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if leads_alike(&route, &wanted) => Some(route),
            _ => None,
        });
        found.push(ours.and_then(|route| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Metrics(metrics) => metrics.iter().find_map(bytes_in),
                _ => None,
            })
        }));
    }
    Ok(found)
}

/// What the route of an address says where packets of `bytes` reach every node.
pub(super) fn limit_of(address: &IpNet, bytes: Option<u32>) -> Option<u32> {
    let is_v6 = address.addr().is_ipv6();
    bytes.map(|bytes| if is_v6 { bytes.max(mtu::LEAST) } else { bytes })
}

fn bytes_in(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(bytes) => Some(*bytes),
        _ => None,
    }
}

fn leads_alike(one: &RouteMessage, other: &RouteMessage) -> bool {
    let key = |route: &RouteMessage| {
        let parts = route.attributes.iter().filter(|attribute| {
            matches!(attribute, RouteAttribute::Destination(_) | RouteAttribute::Oif(_))
        });
        let mut parts: Vec<_> = parts.cloned().collect();
        parts.sort_by_key(|attribute| matches!(attribute, RouteAttribute::Oif(_)));
        (route.header.destination_prefix_length, parts)
    };
    one.header.table == RouteHeader::RT_TABLE_MAIN && key(one) == key(other)
}

/// The route that came with the address.
fn route(link: u32, address: IpNet, bytes: Option<u32>) -> RouteMessage {
    let as_address = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let mut message = RouteMessage::default();
    message.header.destination_prefix_length = address.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Kernel;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(as_address(address.network())), RouteAttribute::Oif(link)];
    match address {
        IpNet::V4(_) => {
            message.header.address_family = AddressFamily::Inet;
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::PrefSource(as_address(address.addr())));
        }
        IpNet::V6(_) => {
            message.header.address_family = AddressFamily::Inet6;
            message.attributes.push(RouteAttribute::Priority(PRIORITY_V6));
        }
    }
    let metrics = limit_of(&address, bytes).map(|bytes| vec![RouteMetric::Mtu(bytes)]);
    message.attributes.extend(metrics.map(RouteAttribute::Metrics));
    message
}

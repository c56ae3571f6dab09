//! What a vxlan device is told of who is where: its forwarding table (hardware address to node) and its neighbours
//! (address to hardware address). All entries of ours are permanent.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Error;
use crate::netlink::Netlink;

/// On the device with the index `link`: frames for `mac` go to `node`.
pub(crate) fn forwarding(link: u32, mac: [u8; 6], node: IpAddr) -> NeighbourMessage {
    let mut message = permanent(link, AddressFamily::Bridge);
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        NeighbourAttribute::Destination(destination(node)),
    ];
    message
}

/// On the device with the index `link`: packets for `address` go into frames for `mac`.
pub(crate) fn neighbour(link: u32, address: IpAddr, mac: [u8; 6]) -> NeighbourMessage {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut message = permanent(link, family);
    message.attributes = vec![
        NeighbourAttribute::Destination(destination(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}

/// The device's permanent entries of a family: where each leads, and the hardware address it is for. The forwarding table
/// is the bridge family's.
pub(crate) fn list(
    netlink: &Netlink,
    link: u32,
    family: AddressFamily,
) -> Result<Vec<(IpAddr, [u8; 6])>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    let listed = netlink.dump(RouteNetlinkMessage::GetNeighbour(message));
    let listed = listed.map_err(Error::kernel("list neighbours"))?.into_iter();
    Ok(listed
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(entry) => Some(entry),
            _ => None,
        })
        .filter(|entry| {
            entry.header.ifindex == link && entry.header.state == NeighbourState::Permanent
        })
        .filter_map(|entry| ends_of(&entry))
        .collect())
}

fn permanent(link: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message
}

fn destination(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn ends_of(entry: &NeighbourMessage) -> Option<(IpAddr, [u8; 6])> {
    let mut to = None;
    let mut mac = None;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                to = Some(IpAddr::V4(*address));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                to = Some(IpAddr::V6(*address));
            }
            // The forwarding table's entries come without a family to read them by.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let four: Option<[u8; 4]> = bytes[..].try_into().ok();
                let sixteen: Option<[u8; 16]> = bytes[..].try_into().ok();
                to = four.map(IpAddr::from).or(sixteen.map(IpAddr::from)).or(to);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes[..].try_into().ok(),
            _ => {}
        }
    }
    to.zip(mac)
}

//! The bridge that joins a node's containers, and the links that plug into it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::endpoint::Endpoint;
use crate::netlink::Netlink;
use crate::{Config, Error, address, namespace, state_file};

/// Loopback's and a container's own link's indexes: the first two of every namespace.
const LOOPBACK_INDEX: u32 = 1;
const CONTAINER_INDEX: u32 = 2;

/// Where a subnet is looked for, as Docker does: /16s of 172.17.0.0/12.
const SUBNETS: std::ops::RangeInclusive<u8> = 17..=31;

/// A bridge of the host.
#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    index: u32,
    pub(crate) subnet: Ipv4Net,
}

/// Makes the bridge, or takes over the one that is there.
pub(crate) fn open(config: &Config) -> Result<Bridge, Error> {
    let name = config.bridge.as_str();
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let subnet = subnet(config, &netlink)?;
    match netlink.create(new_bridge(name)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::kernel(format!("make bridge {name}"))(error));
        }
        _ => {}
    }
    let index = link_index(&netlink, name)?;
    let bridge = Bridge { name: name.to_owned(), index, subnet };
    let address = add_address(index, bridge.gateway(), subnet.prefix_len());
    match netlink.create(address) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::kernel(format!("give bridge {name} its address"))(error));
        }
        _ => {}
    }
    netlink.change(set_up(index)).map_err(Error::kernel(format!("raise bridge {name}")))?;
    sysctl("ip_forward", "1")?;
    // Lets connections to 127.0.0.1 go on to containers; the table guards against strangers using it.
    sysctl(&format!("conf/{name}/route_localnet"), "1")?;
    state_file::write(&subnet_file(&config.state_dir), &subnet)?;
    Ok(bridge)
}

impl Bridge {
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() + 1)
    }

    /// Links the endpoint's namespace to the bridge.
    pub(crate) fn plug(&self, container: &str, endpoint: &Endpoint) -> Result<(), Error> {
        let host_link = host_link(container);
        let netns =
            std::fs::File::open(&endpoint.netns).map_err(Error::file("open", &endpoint.netns))?;
        // The socket goes on belonging to the container's namespace, wherever it is used.
        let inside = namespace::within(&endpoint.netns, || {
            Netlink::open().map_err(Error::kernel("open a netlink socket"))
        })?;
        let outside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let veth = self.veth(&host_link, endpoint, netns.as_raw_fd());
        outside
            .create_link(&host_link, &veth)
            .map_err(Error::kernel(format!("make link {host_link}")))?;
        outside
            .change(allow_hairpin(&host_link))
            .map_err(Error::kernel(format!("let link {host_link} turn frames back")))?;
        for index in [LOOPBACK_INDEX, CONTAINER_INDEX] {
            inside.change(set_up(index)).map_err(Error::kernel("raise the container's links"))?;
        }
        let (address, length) = (endpoint.address, endpoint.prefix_len);
        inside
            .create(add_address(CONTAINER_INDEX, address, length))
            .map_err(Error::kernel(format!("give the container {address}/{length}")))?;
        inside
            .create(default_route(endpoint.gateway, CONTAINER_INDEX))
            .map_err(Error::kernel("set the container's default route"))
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        let removed = netlink.change(RouteNetlinkMessage::DelLink(message));
        removed.map_err(Error::kernel(format!("remove bridge {}", self.name)))
    }

    /// Both ends in one request: ours up and in the bridge, theirs in their namespace as `eth0`. A peer cannot be raised
    /// before it knows its other end, which is when this request is done.
    fn veth(&self, host_link: &str, endpoint: &Endpoint, netns: i32) -> RouteNetlinkMessage {
        let mut peer = LinkMessage::default();
        peer.header.index = CONTAINER_INDEX;
        peer.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Address(address::mac(endpoint.address).to_vec()),
            LinkAttribute::NetNsFd(netns),
        ];
        let mut message = up(LinkMessage::default());
        message.attributes = vec![
            LinkAttribute::IfName(host_link.to_owned()),
            LinkAttribute::Controller(self.index),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        RouteNetlinkMessage::NewLink(message)
    }
}

/// IPv4 addresses of the host, by link.
pub(crate) fn host_addresses() -> Result<Vec<(String, Ipv4Addr)>, Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let listed = netlink.dump(RouteNetlinkMessage::GetAddress(message));
    let listed = listed.map_err(Error::kernel("list addresses"))?;
    let mut addresses = Vec::new();
    for message in listed {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let link = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Label(label) => Some(label.clone()),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        addresses.extend(link.zip(address));
    }
    Ok(addresses)
}

/// Raises loopback in the namespace of the calling thread.
pub(crate) fn raise_loopback() -> Result<(), Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    netlink.change(set_up(LOOPBACK_INDEX)).map_err(Error::kernel("raise loopback"))
}

/// The host's end of a container's link. Container identifiers are hexadecimal, and twelve digits tell them apart.
fn host_link(container: &str) -> String {
    let digits: String = container.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("ve{digits}")
}

pub(crate) fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Where bridged frames pass the firewall (br_netfilter), a container that asks for its own published port gets its frame
/// led back to the link it came from, which bridges drop unless told otherwise.
fn allow_hairpin(link: &str) -> RouteNetlinkMessage {
    let hairpin = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(link.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(hairpin),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

pub(crate) fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = up(LinkMessage::default());
    message.header.index = index;
    RouteNetlinkMessage::SetLink(message)
}

fn new_bridge(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

pub(crate) fn add_address(
    index: u32,
    address: impl Into<IpAddr>,
    prefix_len: u8,
) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    let address = address.into();
    message.header.family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    if address.is_ipv6() {
        // Addresses are given only once, and a container is to use its own from the first moment on.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(gateway: Ipv4Addr, index: u32) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

pub(crate) fn link_index(netlink: &Netlink, name: &str) -> Result<u32, Error> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let links = links.map_err(Error::kernel("list links"))?;
    let index = links.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => {
            let named = LinkAttribute::IfName(name.to_owned());
            link.attributes.contains(&named).then_some(link.header.index)
        }
        _ => None,
    });
    index
        .ok_or_else(|| Error::kernel(format!("find bridge {name}"))(io::ErrorKind::NotFound.into()))
}

/// The configured subnet, else the one used before, else the first that nothing on this host overlaps.
fn subnet(config: &Config, netlink: &Netlink) -> Result<Ipv4Net, Error> {
    let known = state_file::read(&subnet_file(&config.state_dir));
    if let Some(subnet) = config.subnet.or(known) {
        return Ok(subnet.trunc());
    }
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(message));
    let routes = routes.map_err(Error::kernel("list routes"))?;
    let used: Vec<_> = routes.iter().filter_map(destination).collect();
    let candidates =
        SUBNETS.map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let free = |subnet: &Ipv4Net| {
        !used.iter().any(|other| other.contains(subnet) || subnet.contains(other))
    };
    let found = { candidates }.find(free);
    found.ok_or_else(|| Error::NoSubnet { bridge: config.bridge.clone() })
}

fn destination(message: &RouteNetlinkMessage) -> Option<Ipv4Net> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let length = route.header.destination_prefix_length;
    route.attributes.iter().find_map(|attribute| match attribute {
        // The default route overlaps everything and says nothing.
        RouteAttribute::Destination(RouteAddress::Inet(address)) if length > 0 => {
            Ipv4Net::new(*address, length).ok()
        }
        _ => None,
    })
}

fn subnet_file(state_dir: &Path) -> PathBuf {
    state_dir.join("subnet.json")
}

fn sysctl(key: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net/ipv4").join(key);
    let current = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(Error::file("write", &path))
}

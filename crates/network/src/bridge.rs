//! The bridge that joins a node's containers, and the links that plug into it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
use rustix::io::Errno;

use crate::netlink::Netlink;
use crate::{Config, Error, address, ipv6, namespace, state_file};

/// Loopback's and a container's own link's indexes: the first two of every namespace.
const LOOPBACK_INDEX: u32 = 1;
const CONTAINER_INDEX: u32 = 2;

const MAIN_TABLE: u8 = 254;

/// Where a subnet is looked for first, as Docker does: /16s of 172.17.0.0/12, then /20s of 192.168.0.0/16.
const SUBNETS: std::ops::RangeInclusive<u8> = 17..=31;

/// A bridge of the host.
#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    index: u32,
    pub(crate) subnet: Ipv4Net,
    gateway: Ipv4Addr,
    mtu: Option<u32>,
    ipv6: Option<BridgeIpv6>,
}

/// What a bridge has of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BridgeIpv6 {
    /// Addresses that follow from those of IPv4, to answer by.
    Following,
    /// A subnet, with the bridge's own address in it.
    Own { gateway: Ipv6Addr, prefix_len: u8 },
}

/// How a bridge is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) name: &'a str,
    pub(crate) subnet: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: Option<u32>,
    /// Without any, nobody on it reaches this host by an address of the link that no rule of ours looks at.
    pub(crate) ipv6: Option<BridgeIpv6>,
}

/// A container's link to a bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire<'a> {
    /// The host's end.
    pub(crate) link: &'a str,
    pub(crate) netns: &'a Path,
    /// Whether there is nothing but loopback in the namespace yet.
    pub(crate) is_first: bool,
    pub(crate) address: Ipv4Addr,
    /// With the length of its prefix. Without one, it follows from the other, where the bridge has such.
    pub(crate) ipv6: Option<(Ipv6Addr, u8)>,
    pub(crate) mac: [u8; 6],
    /// Whether it reaches the bridge, and no other container on it.
    pub(crate) is_alone: bool,
}

/// Makes the bridge that every node has, or takes over the one that is there.
pub(crate) fn open(config: &Config) -> Result<Bridge, Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let subnet = subnet(config, &netlink)?;
    let gateway = first_of(subnet);
    let ipv6 = ipv6::is_spoken().then_some(BridgeIpv6::Following);
    let shape = Shape { name: &config.bridge, subnet, gateway, mtu: None, ipv6 };
    let (bridge, _) = make(shape)?;
    sysctl("ip_forward", "1")?;
    state_file::write(&subnet_file(&config.state_dir), &subnet)?;
    Ok(bridge)
}

/// The address of the bridge that every node has.
pub(crate) fn first_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits() + 1)
}

/// Makes a bridge, or takes over the one of its name; true where it was made.
pub(crate) fn make(shape: Shape<'_>) -> Result<(Bridge, bool), Error> {
    let Shape { name, subnet, gateway, mtu, ipv6 } = shape;
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let is_made = match netlink.create(new_bridge(shape)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        made => made.map(|()| true).map_err(Error::kernel(format!("make bridge {name}")))?,
    };
    let index = link_index(&netlink, name)?;
    let mut addresses = vec![(IpAddr::V4(gateway), subnet.prefix_len())];
    ipv6::switch(name, ipv6.is_some());
    addresses.extend(ipv6.map(|ipv6| match ipv6 {
        BridgeIpv6::Following => {
            (ipv6::of_container(gateway).into(), ipv6::of_subnet(subnet).prefix_len())
        }
        BridgeIpv6::Own { gateway, prefix_len } => (gateway.into(), prefix_len),
    }));
    for (address, length) in addresses {
        match netlink.create(add_address(index, address, length)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::kernel(format!("give bridge {name} its address"))(error));
            }
            _ => {}
        }
    }
    netlink.change(set_up(index)).map_err(Error::kernel(format!("raise bridge {name}")))?;
    // Lets connections to 127.0.0.1 go on to containers; the table guards against strangers using it.
    sysctl(&format!("conf/{name}/route_localnet"), "1")?;
    Ok((Bridge { name: name.to_owned(), index, subnet, gateway, mtu, ipv6 }, is_made))
}

impl Bridge {
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Links a namespace to the bridge; answers with the link's name in there.
    pub(crate) fn plug(&self, wire: Wire<'_>) -> Result<String, Error> {
        let Wire { link, netns, address, .. } = wire;
        let file = std::fs::File::open(netns).map_err(Error::file("open", netns))?;
        // The socket goes on belonging to the container's namespace, wherever it is used.
        let inside = namespace::within(netns, || {
            Netlink::open().map_err(Error::kernel("open a netlink socket"))
        })?;
        let (name, index) = match wire.is_first {
            true => ("eth0".to_owned(), CONTAINER_INDEX),
            false => free_place(&inside)?,
        };
        let outside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let veth = self.veth(wire, &name, index, file.as_raw_fd());
        outside.create_link(link, &veth).map_err(Error::kernel(format!("make link {link}")))?;
        let port = [InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(wire.is_alone)];
        outside
            .change(set_port(link, &port))
            .map_err(Error::kernel(format!("let link {link} turn frames back")))?;
        if wire.is_first {
            let raised = inside.change(set_up(LOOPBACK_INDEX));
            raised.map_err(Error::kernel("raise the container's loopback"))?;
        }
        let index = raise(&inside, &name, index)?;
        let mut addresses = vec![(IpAddr::V4(address), self.subnet.prefix_len())];
        if let Some((address, length)) = wire.ipv6 {
            addresses.push((address.into(), length));
        } else if self.ipv6 == Some(BridgeIpv6::Following) {
            let length = ipv6::of_subnet(self.subnet).prefix_len();
            addresses.push((ipv6::of_container(address).into(), length));
        }
        for (address, length) in addresses {
            inside
                .create(add_address(index, address, length))
                .map_err(Error::kernel(format!("give the container {address}/{length}")))?;
        }
        Ok(name)
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        let removed = netlink.change(RouteNetlinkMessage::DelLink(message));
        removed.map_err(Error::kernel(format!("remove bridge {}", self.name)))
    }

    /// Both ends in one request: ours up and in the bridge, theirs in their namespace. A peer cannot be raised
    /// before it knows its other end, which is when this request is done.
    fn veth(&self, wire: Wire<'_>, name: &str, index: u32, netns: i32) -> RouteNetlinkMessage {
        let mut peer = LinkMessage::default();
        peer.header.index = index;
        peer.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(wire.mac.to_vec()),
            LinkAttribute::NetNsFd(netns),
        ];
        peer.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        let mut message = up(LinkMessage::default());
        message.attributes = vec![LinkAttribute::IfName(wire.link.to_owned())];
        message.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend([
            LinkAttribute::Controller(self.index),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        RouteNetlinkMessage::NewLink(message)
    }
}

/// Raises a container's new link; answers with its index, which is `likely` unless another link was there before.
pub(crate) fn raise(inside: &Netlink, name: &str, likely: u32) -> Result<u32, Error> {
    let failed = || Error::kernel(format!("raise the container's link {name}"));
    match inside.change(set_up(likely)) {
        Ok(()) => return Ok(likely),
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
        Err(error) => return Err(failed()(error)),
    }
    // The kernel gives no index again that a link had.
    let index = link_index(inside, name)?;
    inside.change(set_up(index)).map_err(failed())?;
    Ok(index)
}

/// The first name `ethN` that no link of the namespace has, and the index that the next one gets, most likely.
pub(crate) fn free_place(inside: &Netlink) -> Result<(String, u32), Error> {
    let links = inside.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let links = links.map_err(Error::kernel("list the container's links"))?;
    let mut names = BTreeSet::new();
    let mut last = LOOPBACK_INDEX;
    for message in links {
        let RouteNetlinkMessage::NewLink(link) = message else { continue };
        last = last.max(link.header.index);
        names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }));
    }
    let name = (0..).map(|number| format!("eth{number}")).find(|name| !names.contains(name));
    Ok((name.expect("there are more numbers than links"), last + 1))
}

/// Removes a link of the host; its other end goes with it.
pub(crate) fn unplug(link: &str) -> Result<(), Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    netlink.remove_link(link).map_err(Error::kernel(format!("remove link {link}")))
}

/// Where a container's packets to the world go; nowhere without a gateway. Without one of IPv6, it only answers by that way.
pub(crate) fn lead_out(
    netns: &Path,
    gateway: Option<Ipv4Addr>,
    of_ipv6: Option<Ipv6Addr>,
) -> Result<(), Error> {
    let inside = namespace::within(netns, || {
        Netlink::open().map_err(Error::kernel("open a netlink socket"))
    })?;
    let failed = || Error::kernel("set the container's default route");
    let Some(gateway) = gateway else {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            match inside.change(RouteNetlinkMessage::DelRoute(default_route(family))) {
                Err(error) if !is_no_route(&error) => return Err(failed()(error)),
                _ => {}
            }
        }
        return Ok(());
    };
    let mut route = default_route(AddressFamily::Inet);
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    inside.replace(RouteNetlinkMessage::NewRoute(route)).map_err(failed())?;
    let mut route = default_route(AddressFamily::Inet6);
    let gateway = of_ipv6.unwrap_or_else(|| ipv6::of_container(gateway));
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet6(gateway)));
    match inside.replace(RouteNetlinkMessage::NewRoute(route)) {
        // The gateway has no such address.
        Err(error) if is_no_route(&error) => Ok(()),
        set => set.map_err(failed()),
    }
}

/// There is no such route, or none to its gateway.
fn is_no_route(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::SRCH, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::AFNOSUPPORT];
    known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
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

/// The host's end of a container's link to the bridge that every node has. Container identifiers are hexadecimal, and twelve digits tell them apart.
pub(crate) fn host_link(container: &str) -> String {
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
fn set_port(link: &str, settings: &[InfoBridgePort]) -> RouteNetlinkMessage {
    let settings = InfoPortData::BridgePort(settings.to_vec());
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(link.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(settings),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

pub(crate) fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = up(LinkMessage::default());
    message.header.index = index;
    RouteNetlinkMessage::SetLink(message)
}

/// Has a link take packets of that many bytes.
pub(crate) fn taking(index: u32, bytes: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(bytes)];
    RouteNetlinkMessage::SetLink(message)
}

/// Its hardware address is set: otherwise it would change with each container that comes, and others would send their
/// packets to the world to nobody for a while.
fn new_bridge(shape: Shape<'_>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(shape.name.to_owned()),
        LinkAttribute::Address(address::mac(shape.gateway).to_vec()),
    ];
    message.attributes.extend(shape.mtu.map(LinkAttribute::Mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
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

fn default_route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = MAIN_TABLE;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message
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
    index.ok_or_else(|| Error::kernel(format!("find link {name}"))(io::ErrorKind::NotFound.into()))
}

/// The configured subnet, else the one used before, else the first that nothing on this host overlaps.
fn subnet(config: &Config, netlink: &Netlink) -> Result<Ipv4Net, Error> {
    let known = state_file::read(&subnet_file(&config.state_dir));
    if let Some(subnet) = config.subnet.or(known) {
        return Ok(subnet.trunc());
    }
    let used = routed(netlink)?;
    let found = { SUBNETS }.map(large).find(|subnet| is_free(subnet, &used));
    found.ok_or_else(|| Error::NoSubnet { bridge: config.bridge.clone() })
}

/// The first subnet of Docker's pools that neither a route of this host nor one of `taken` overlaps.
pub(crate) fn free_subnet(taken: &[Ipv4Net]) -> Result<Option<Ipv4Net>, Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let mut used = routed(&netlink)?;
    used.extend(taken);
    let small =
        (0..16).map(|third| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, third * 16, 0), 20));
    Ok({ SUBNETS }.map(large).chain(small).find(|subnet| is_free(subnet, &used)))
}

fn large(second: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16)
}

fn is_free(subnet: &Ipv4Net, used: &[Ipv4Net]) -> bool {
    !used.iter().any(|other| other.contains(subnet) || subnet.contains(other))
}

/// Where this host's routes lead, the default route left out.
fn routed(netlink: &Netlink) -> Result<Vec<Ipv4Net>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(message));
    let routes = routes.map_err(Error::kernel("list routes"))?;
    Ok(routes.iter().filter_map(destination).collect())
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

//! The links of one overlay: a bridge and a vxlan device in a namespace of their own, and what they forward where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tracing::debug;

use super::lane::Lane;
use super::{Overlay, Peer, way};
use crate::bridge::{add_address, free_place, host_link, link_index, raise, set_up, taking, up};
use crate::neighbours::{self, forwarding, neighbour};
use crate::netlink::Netlink;
use crate::{Error, address, mtu as underlay, namespace, tunnel};

const BRIDGE: &str = "br0";
const VXLAN: &str = "vx0";
/// In a new namespace loopback has 1.
const BRIDGE_INDEX: u32 = 2;
const VXLAN_INDEX: u32 = 3;

/// What IPv4, UDP, VXLAN and the inner Ethernet header take.
const OVERHEAD: u32 = 50;
/// The same over IPv6, as within tunnels.
pub(crate) const OVERHEAD_V6: u32 = 70;

/// A container of the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) container: &'a str,
    pub(super) netns: &'a Path,
    pub(super) addresses: &'a [IpNet],
}

/// The overlay's namespace, ready for requests.
pub(super) struct Fabric {
    netlink: Netlink,
    mtu: u32,
    /// Where the kernel has no programs, all goes by the bridge.
    lane: Option<Lane>,
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fabric").field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

impl Fabric {
    /// Makes the namespace at `path`, or takes over the one that is there; answers with the peers it knows.
    ///
    /// What its vxlan device sends leaves from the namespace `way` names, or from the host's.
    pub(super) fn open(
        path: &Path,
        overlay: &Overlay,
        way: Option<&Path>,
    ) -> Result<(Self, BTreeMap<IpAddr, Peer>), Error> {
        if !namespace::exists(path) {
            namespace::create(path, || Ok(()))?;
            if let Err(error) = Self::fill(path, overlay, way) {
                let _ = namespace::remove(path);
                return Err(error);
            }
        }
        let netlink = namespace::within(path, || {
            spare_filters();
            Netlink::open().map_err(Error::kernel("open a netlink socket"))
        })?;
        let lane = Lane::open(VXLAN_INDEX);
        if let Err(error) = &lane {
            debug!(network.id = overlay.id, %error, "packets go by the bridge");
        }
        let fabric = Self { netlink, mtu: mtu(overlay), lane: lane.ok() };
        let peers = fabric.known_peers()?;
        Ok((fabric, peers))
    }

    fn fill(path: &Path, overlay: &Overlay, way: Option<&Path>) -> Result<(), Error> {
        let within = inside(path)?;
        make_bridge(&within, overlay)?;
        make_vxlan(path, overlay, way)?;
        plug_in(&within, VXLAN_INDEX)
            .and_then(|()| within.change(set_up(BRIDGE_INDEX)))
            .map_err(Error::kernel(format!("raise the links of network {}", overlay.id)))
    }

    /// Makes links of the network that are gone, and puts those that are there back into the bridge.
    pub(super) fn mend(
        &self,
        path: &Path,
        overlay: &Overlay,
        way: Option<&Path>,
        containers: &BTreeSet<String>,
    ) -> Result<(), Error> {
        if !self.has(BRIDGE)? {
            make_bridge(&self.netlink, overlay)?;
        }
        if !self.has(VXLAN)? {
            make_vxlan(path, overlay, way)?;
        }
        let failed = || Error::kernel(format!("raise the links of network {}", overlay.id));
        for name in containers.iter().map(String::as_str).chain([VXLAN]) {
            if self.has(name)? {
                plug_in(&self.netlink, link_index(&self.netlink, name)?).map_err(failed())?;
            }
        }
        self.netlink.change(set_up(BRIDGE_INDEX)).map_err(failed())
    }

    /// Makes the container's link to the bridge.
    pub(super) fn plug(&mut self, overlay: &Overlay, place: Place<'_>) -> Result<(), Error> {
        let Place { container, netns, addresses } = place;
        let file = File::open(netns).map_err(Error::file("open", netns))?;
        let within = inside(netns)?;
        let (name, index) = free_place(&within)?;
        let link = link_name(container);
        let mac = hardware_address(addresses.iter().map(IpNet::addr));
        let mac = mac.ok_or_else(|| Error::NoAddressGiven { container: container.to_owned() })?;
        let mut peer = LinkMessage::default();
        peer.header.index = index;
        peer.attributes = vec![
            LinkAttribute::IfName(name.clone()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(file.as_raw_fd()),
        ];
        let mut veth = up(LinkMessage::default());
        veth.attributes = vec![
            LinkAttribute::IfName(link.clone()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Controller(BRIDGE_INDEX),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let made = self.netlink.create_link(&link, &RouteNetlinkMessage::NewLink(veth));
        made.map_err(Error::kernel(format!("make link {link}")))?;
        let index = raise(&within, &name, index)?;
        for address in addresses {
            if address.addr().is_ipv6() {
                namespace::within(netns, || allow_ipv6(&name))?;
            }
            within
                .create(add_address(index, address.addr(), address.prefix_len()))
                .map_err(Error::kernel(format!("give the container {address}")))?;
        }
        self.lead_one(place);
        match sending(overlay) {
            Some(bytes) if bytes < self.mtu => way::limit(netns, index, addresses, Some(bytes)),
            _ => Ok(()),
        }
    }

    /// Has packets go past the bridge from now on. Where that fails they go by it.
    pub(super) fn lead(&mut self, places: &[Place<'_>]) {
        let Some(lane) = &self.lane else { return };
        if let Err(error) = lane.attach(&self.netlink, VXLAN_INDEX) {
            debug!(%error, "packets from other nodes go by the bridge");
        }
        for place in places {
            self.lead_one(*place);
        }
    }

    /// How the program's maps differ from what it was told; with `mends`, they are put right.
    pub(super) fn lane_faults(&self, mends: bool) -> Result<Vec<String>, Error> {
        let faults = self.lane.as_ref().map_or(Ok(Vec::new()), |lane| lane.faults(mends));
        faults.map_err(Error::kernel("read the way past the bridge"))
    }

    fn lead_one(&mut self, place: Place<'_>) {
        let Place { container, addresses, .. } = place;
        let (Some(lane), Some(identity)) = (&mut self.lane, identity(addresses)) else { return };
        let Ok(port) = link_index(&self.netlink, &link_name(container)) else { return };
        if let Err(error) = lane.admit(&self.netlink, container, port, identity) {
            debug!(container, %error, "packets go by the bridge");
        }
    }

    /// Takes the container's link away.
    pub(super) fn unplug(&mut self, container: &str) -> Result<(), Error> {
        let link = link_name(container);
        self.dismiss(container);
        let removed = self.netlink.remove_link(&link);
        removed.map_err(Error::kernel(format!("remove link {link}")))
    }

    /// The container's link is gone, or about to go.
    pub(super) fn dismiss(&mut self, container: &str) {
        if let Some(lane) = &mut self.lane {
            lane.dismiss(container);
        }
    }

    pub(super) fn add_peer(&self, address: IpAddr, peer: Peer) -> Result<(), Error> {
        let Peer { node, mac } = peer;
        let entry = RouteNetlinkMessage::NewNeighbour;
        self.netlink
            .replace(entry(forwarding(VXLAN_INDEX, mac, node)))
            .and_then(|()| self.netlink.replace(entry(neighbour(VXLAN_INDEX, address, mac))))
            .map_err(Error::kernel(format!("tell where {address} is")))
    }

    pub(super) fn forget_peer(&self, address: IpAddr, peer: Peer) -> Result<(), Error> {
        let Peer { node, mac } = peer;
        for entry in [neighbour(VXLAN_INDEX, address, mac), forwarding(VXLAN_INDEX, mac, node)] {
            match self.netlink.change(RouteNetlinkMessage::DelNeighbour(entry)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::kernel(format!("forget where {address} is"))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How the kernel's links and tables differ from a network with these peers and these containers' links.
    pub(super) fn faults(
        &self,
        peers: &BTreeMap<IpAddr, Peer>,
        places: &[Place<'_>],
        overlay: &Overlay,
    ) -> Result<Vec<String>, Error> {
        let links = places.iter().map(|place| link_name(place.container)).collect();
        let found = self.links()?;
        let mut faults = link_faults(&found, &links);
        let (has, wanted) = (found.get(VXLAN).and_then(mtu_of), mtu(overlay));
        if let Some(has) = has.filter(|has| *has != wanted) {
            faults.push(format!("link {VXLAN} takes {has} bytes, and {wanted} fit the way out"));
        }
        faults.extend(self.way_faults(&found, places, overlay)?);
        faults.extend(self.lane_faults(false)?);
        let nodes: BTreeMap<_, _> = peers.values().map(|peer| (peer.mac, peer.node)).collect();
        let addresses: BTreeMap<_, _> =
            peers.iter().map(|(address, peer)| (*address, peer.mac)).collect();
        let (found_nodes, found_addresses) = self.known_entries()?;
        for (mac, node) in &nodes {
            if found_nodes.get(mac) != Some(node) {
                faults.push(format!("no way to {} on {node}", text_of(mac)));
            }
        }
        for (address, mac) in &addresses {
            if found_addresses.get(address) != Some(mac) {
                faults.push(format!("{address} has no neighbour entry"));
            }
        }
        for mac in found_nodes.keys().filter(|mac| !nodes.contains_key(*mac)) {
            faults.push(format!("a way to {}, whom nobody knows", text_of(mac)));
        }
        for address in found_addresses.keys().filter(|it| !addresses.contains_key(*it)) {
            faults.push(format!("a neighbour entry for {address}, whom nobody knows"));
        }
        Ok(faults)
    }

    /// Whether the container's link is there.
    pub(super) fn has_port(&self, container: &str) -> Result<bool, Error> {
        self.has(&link_name(container))
    }

    fn has(&self, link: &str) -> Result<bool, Error> {
        match link_index(&self.netlink, link) {
            Ok(_) => Ok(true),
            Err(Error::Kernel { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes entries for addresses that are nobody's.
    pub(super) fn forget_strangers(&self, peers: &BTreeMap<IpAddr, Peer>) -> Result<(), Error> {
        let (nodes, addresses) = self.known_entries()?;
        let macs: BTreeSet<_> = peers.values().map(|peer| peer.mac).collect();
        let strange_nodes = nodes.into_iter().filter(|(mac, _)| !macs.contains(mac));
        let strange = addresses.into_iter().filter(|(address, _)| !peers.contains_key(address));
        let entries = strange_nodes.map(|(mac, node)| forwarding(VXLAN_INDEX, mac, node));
        for entry in
            entries.chain(strange.map(|(address, mac)| neighbour(VXLAN_INDEX, address, mac)))
        {
            self.netlink
                .change(RouteNetlinkMessage::DelNeighbour(entry))
                .map_err(Error::kernel("forget who is nobody"))?;
        }
        Ok(())
    }

    /// Has all links take what fits the way out now, and its containers send what fits the ways to others.
    pub(super) fn fit(&mut self, overlay: &Overlay, places: &[Place<'_>]) -> Result<(), Error> {
        let bytes = mtu(overlay);
        self.mtu = bytes;
        let failed = || Error::kernel(format!("have network {} take {bytes} bytes", overlay.id));
        let links = self.links()?;
        for place in places {
            let Some(link) = links.get(&link_name(place.container)) else { continue };
            self.netlink.change(taking(link.header.index, bytes)).map_err(failed())?;
            let Some(index) = other_end(link).filter(|_| namespace::exists(place.netns)) else {
                continue;
            };
            inside(place.netns)?.change(taking(index, bytes)).map_err(failed())?;
            if let Some(sent) = sending(overlay) {
                let limit = Some(sent).filter(|sent| *sent < bytes);
                way::limit(place.netns, index, place.addresses, limit)?;
            }
        }
        for index in [VXLAN_INDEX, BRIDGE_INDEX] {
            self.netlink.change(taking(index, bytes)).map_err(failed())?;
        }
        Ok(())
    }

    /// Containers that send more, or less, than the ways to others take.
    fn way_faults(
        &self,
        links: &BTreeMap<String, LinkMessage>,
        places: &[Place<'_>],
        overlay: &Overlay,
    ) -> Result<Vec<String>, Error> {
        let Some(sent) = sending(overlay) else { return Ok(Vec::new()) };
        let limit = Some(sent).filter(|sent| *sent < self.mtu);
        let mut faults = Vec::new();
        for place in places.iter().filter(|place| namespace::exists(place.netns)) {
            let link = links.get(&link_name(place.container)).and_then(other_end);
            let Some(index) = link else { continue };
            let found = way::limits(place.netns, index, place.addresses)?;
            let wanted = place.addresses.iter().map(|address| way::limit_of(address, limit));
            if !found.into_iter().eq(wanted) {
                faults.push(format!(
                    "container {} sends packets of another length than {sent} bytes",
                    place.container
                ));
            }
        }
        Ok(faults)
    }

    fn links(&self) -> Result<BTreeMap<String, LinkMessage>, Error> {
        let listed = self.netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = listed.map_err(Error::kernel("list links"))?.into_iter();
        let named = links.filter_map(|message| {
            let RouteNetlinkMessage::NewLink(link) = message else { return None };
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            Some((name?, link))
        });
        Ok(named.collect())
    }

    /// What an earlier daemon wrote.
    pub(super) fn known_peers(&self) -> Result<BTreeMap<IpAddr, Peer>, Error> {
        let (nodes, addresses) = self.known_entries()?;
        let peer = |mac: [u8; 6]| Some(Peer { node: *nodes.get(&mac)?, mac });
        let known = addresses.into_iter();
        Ok(known.filter_map(|(address, mac)| Some((address, peer(mac)?))).collect())
    }

    /// Nodes by hardware address, hardware addresses by address.
    #[allow(clippy::type_complexity, reason = "two tables of the kernel's")]
    fn known_entries(
        &self,
    ) -> Result<(BTreeMap<[u8; 6], IpAddr>, BTreeMap<IpAddr, [u8; 6]>), Error> {
        let mut nodes = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
            for (destination, mac) in neighbours::list(&self.netlink, VXLAN_INDEX, family)? {
                match family {
                    AddressFamily::Bridge => drop(nodes.insert(mac, destination)),
                    _ => drop(addresses.insert(destination, mac)),
                }
            }
        }
        Ok((nodes, addresses))
    }
}

fn link_faults(found: &BTreeMap<String, LinkMessage>, wanted: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let ports = wanted.iter().map(String::as_str).chain([VXLAN]);
    for (name, is_port) in ports.map(|name| (name, true)).chain([(BRIDGE, false)]) {
        let Some(link) = found.get(name) else {
            faults.push(format!("link {name} is missing"));
            continue;
        };
        if !link.header.flags.contains(LinkFlags::Up) {
            faults.push(format!("link {name} is down"));
        } else if is_port && !link.attributes.contains(&LinkAttribute::Controller(BRIDGE_INDEX)) {
            faults.push(format!("link {name} is not in the bridge"));
        }
    }
    let strange = found.keys().filter(|name| name.starts_with("ve") && !wanted.contains(*name));
    faults.extend(strange.map(|name| format!("link {name} is nobody's")));
    faults
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(bytes) => Some(*bytes),
        _ => None,
    })
}

/// The index of a link's other end, in the namespace it is in.
fn other_end(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// Removes the vxlan device of the namespace at `path`: the kernel ends a namespace some time after it was let go of, and
/// until then no other device could have the network's number.
pub(super) fn take_down(path: &Path) -> Result<(), Error> {
    let removed = inside(path)?.remove_link(VXLAN);
    removed.map_err(Error::kernel(format!("remove the vxlan device of {}", path.display())))
}

fn text_of(mac: &[u8]) -> String {
    let digits: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

fn make_bridge(within: &Netlink, overlay: &Overlay) -> Result<(), Error> {
    within
        .create(bridge(mtu(overlay)))
        .map_err(Error::kernel(format!("make the bridge of network {}", overlay.id)))
}

fn make_vxlan(path: &Path, overlay: &Overlay, way: Option<&Path>) -> Result<(), Error> {
    let netns = File::open(path).map_err(Error::file("open", path))?;
    // From here: the device's socket belongs to the namespace that asks for it.
    let outside = match way {
        Some(way) => inside(way)?,
        None => Netlink::open().map_err(Error::kernel("open a netlink socket"))?,
    };
    outside
        .create(vxlan(overlay, netns.as_raw_fd()))
        .map_err(Error::kernel(format!("make the vxlan device of network {}", overlay.id)))
}

fn plug_in(within: &Netlink, index: u32) -> io::Result<()> {
    let mut plugged = up(LinkMessage::default());
    plugged.header.index = index;
    plugged.attributes = vec![LinkAttribute::Controller(BRIDGE_INDEX)];
    within.change(RouteNetlinkMessage::SetLink(plugged))
}

/// The port of a container's link in the network's namespace.
pub(super) fn link_name(container: &str) -> String {
    host_link(container)
}

/// A socket that belongs to the namespace at `path`, wherever it is used.
pub(crate) fn inside(path: &Path) -> Result<Netlink, Error> {
    namespace::within(path, || Netlink::open().map_err(Error::kernel("open a netlink socket")))
}

fn mtu(overlay: &Overlay) -> u32 {
    overlay.mtu.unwrap_or_else(|| within(overlay, underlay::between_nodes(overlay.local)))
}

/// What containers may send so that all nodes get it whole; nothing where that is not known, or the user has said.
fn sending(overlay: &Overlay) -> Option<u32> {
    let way = overlay.way.filter(|_| overlay.mtu.is_none())?;
    Some(within(overlay, way))
}

/// What fits into a packet of that many bytes between nodes.
fn within(overlay: &Overlay, bytes: u32) -> u32 {
    let is_v6 = overlay.local.is_some_and(|local| local.is_ipv6());
    match overlay.is_encrypted {
        true => bytes - tunnel::overhead(overlay.local) - OVERHEAD_V6,
        false if is_v6 => bytes - OVERHEAD_V6,
        false => bytes - OVERHEAD,
    }
}

/// What fits into the tunnel of a node with this address.
pub(crate) fn tunnel_mtu(local: Option<IpAddr>) -> u32 {
    // Where that is less than IPv6 works over, what is sealed is sent in fragments.
    (underlay::of_link(local) - tunnel::overhead(local)).max(underlay::LEAST)
}

/// A container's hardware address and the address it follows from.
fn identity(addresses: &[IpNet]) -> Option<([u8; 6], Ipv4Addr)> {
    addresses.iter().find_map(|address| match address {
        IpNet::V4(address) => Some((address::mac(address.addr()), address.addr())),
        IpNet::V6(_) => None,
    })
}

/// A container's hardware address in a network. It follows from the IPv4 address there, so nobody needs to be told of it.
pub fn hardware_address(addresses: impl IntoIterator<Item = IpAddr>) -> Option<[u8; 6]> {
    addresses.into_iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(address::mac(address)),
        IpAddr::V6(_) => None,
    })
}

/// Frames in the present namespace do not pass what filters packets: there is nothing of that here, and looking for it takes
/// a fifth of what a small request costs. Where the kernel cannot do so at all there is nothing to switch off.
fn spare_filters() {
    for protocol in ["iptables", "ip6tables", "arptables"] {
        let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{protocol}"), "0");
    }
}

/// Where hosts go without IPv6 links have none of its addresses either, until they are told to.
fn allow_ipv6(link: &str) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
    std::fs::write(&path, "0").map_err(Error::file("write", &path))
}

fn bridge(mtu: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = BRIDGE_INDEX;
    message.attributes = vec![
        LinkAttribute::IfName(BRIDGE.into()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

fn vxlan(overlay: &Overlay, netns: i32) -> RouteNetlinkMessage {
    let mut options = vec![
        InfoVxlan::Id(overlay.vni),
        InfoVxlan::Port(overlay.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Proxy(true),
    ];
    if overlay.is_encrypted {
        // The way out says which of the tunnel's addresses is meant; what is sealed needs no sum.
        options.extend([
            InfoVxlan::Local6(Ipv6Addr::UNSPECIFIED),
            InfoVxlan::UDPZeroCsumTX(true),
            InfoVxlan::UDPZeroCsumRX(true),
        ]);
    } else {
        options.extend(overlay.local.map(|local| match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        }));
    }
    let mut message = LinkMessage::default();
    message.header.index = VXLAN_INDEX;
    message.attributes = vec![
        LinkAttribute::IfName(VXLAN.into()),
        LinkAttribute::Mtu(mtu(overlay)),
        LinkAttribute::NetNsFd(netns),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(options)),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

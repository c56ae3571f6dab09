//! The vxlan device of the ingress network in the host's namespace, and the ways over it.
//!
//! Each other node has a number on this node. It is the next hop's address on the device (169.254.N, with the node's
//! hardware address, which follows from its data address), a mark, and a routing table. All of that is read back from the
//! kernel by the next daemon. Where the host speaks IPv6, there is the same once more (the next hop is fe80::a9fe:N).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Place, Underlay};
use crate::bridge::taking;
use crate::bridge::up;
use crate::neighbours::{self, forwarding, neighbour};
use crate::netlink::Netlink;
use crate::overlay::link::{OVERHEAD_V6, inside};
use crate::{Error, address, ipv6, namespace, tunnel};

/// What IPv4, UDP, VXLAN and the inner Ethernet header take.
const OVERHEAD: u32 = 50;

/// The bits of a packet's mark that say by which node a connection came. The others are left to whoever uses them.
pub(crate) const MARK_MASK: u32 = 0xfff0_0000;
const MARK_SHIFT: u32 = 20;
/// Nodes beside this one: as many as the mark can tell apart.
const NODES_MAX: u16 = 0x0fff;

/// Before the main table's rule (32766), and before those of VPNs that are usual (tailscale: 5210).
const RULE_PRIORITY: u32 = 1_000;
/// What no connection's mark is on passes over the rules of all nodes, however many there are: each packet that is led
/// anywhere is compared with one rule after the other.
const SKIP_PRIORITY: u32 = RULE_PRIORITY - 1;
const LANDING_PRIORITY: u32 = RULE_PRIORITY + 1;
const MAIN_TABLE: u32 = 254;
/// By the bridge and by the device.
const RULES_OF_A_NODE: usize = 2;

/// The mark of connections that came by this node.
pub(crate) fn mark(number: u16) -> u32 {
    u32::from(number) << MARK_SHIFT
}

/// The device's name.
pub(super) fn name(place: &Place) -> String {
    format!("ing-{}", place.instance)
}

/// The device, ready for requests, and what is known to be there.
pub(super) struct Fabric {
    netlink: Netlink,
    underlay: Underlay,
    place: Place,
    index: u32,
    /// By hardware address on the device.
    nodes: BTreeMap<[u8; 6], Way>,
    /// Addresses of tasks, of each version of IP, and the nodes they are on.
    routes: BTreeMap<IpAddr, u16>,
    /// What the device was told to take.
    fitted: Option<u32>,
    /// Whether the host speaks it.
    has_ipv6: bool,
}

/// How another node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    number: u16,
    /// Where it takes the device's packets.
    node: IpAddr,
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fabric").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Fabric {
    /// Makes the device, or takes over the one that is there.
    pub(super) fn open(place: &Place, underlay: &Underlay) -> Result<Self, Error> {
        let netlink = open_netlink()?;
        let name = name(place);
        let index = match find(&netlink, &name)? {
            Some((index, alias)) if alias == describe(underlay) => index,
            found => {
                if found.is_some() {
                    remove(place)?;
                }
                make(place, underlay)?;
                let made = find(&netlink, &name)?.map(|(index, _)| index);
                made.ok_or_else(|| {
                    Error::kernel(format!("find link {name}"))(io::ErrorKind::NotFound.into())
                })?
            }
        };
        set_up(&name)?;
        let mut fabric = Self {
            netlink,
            underlay: underlay.clone(),
            place: place.clone(),
            index,
            nodes: BTreeMap::new(),
            routes: BTreeMap::new(),
            has_ipv6: ipv6::is_spoken(),
            fitted: None,
        };
        fabric.nodes = fabric.known_nodes()?;
        fabric.routes = fabric.known_routes()?;
        fabric.complete()?;
        Ok(fabric)
    }

    /// Makes again what is missing of what an earlier daemon left, and takes away what leads nowhere.
    fn complete(&self) -> Result<(), Error> {
        for rule in self.families().flat_map(skip) {
            create_rule(&self.netlink, rule).map_err(Error::kernel("make the rule for no mark"))?;
        }
        for (mac, way) in &self.nodes {
            self.make_node(*mac, *way)?;
        }
        let numbers: BTreeSet<_> = self.nodes.values().map(|way| way.number).collect();
        for rule in our_rules(&self.netlink, &self.place)? {
            if !number_in(&rule, &self.place).is_some_and(|number| numbers.contains(&number)) {
                let removed = self.netlink.change(RouteNetlinkMessage::DelRule(rule));
                absent_is_fine(removed, "remove a rule that leads to nobody")?;
            }
        }
        Ok(())
    }

    pub(super) fn is_for(&self, underlay: &Underlay) -> bool {
        let asked = |it: &Underlay| (it.vni, it.local, it.port, it.mtu, it.is_encrypted);
        asked(&self.underlay) == asked(underlay)
    }

    /// Has the device take what the narrowest way to other nodes takes: whoever sends more is told. What comes in is not
    /// measured by it.
    pub(super) fn fit(&mut self, way: Option<u32>) -> Result<(), Error> {
        let Some(way) = way.filter(|_| self.underlay.mtu.is_none()) else { return Ok(()) };
        let bytes = mtu(&self.underlay).min(way.saturating_sub(overhead(&self.underlay)));
        if self.fitted != Some(bytes) {
            let failed = Error::kernel(format!("have the routing mesh take {bytes} bytes"));
            self.netlink.change(taking(self.index, bytes)).map_err(failed)?;
            self.fitted = Some(bytes);
        }
        Ok(())
    }

    /// The numbers of other nodes, by hardware address.
    pub(super) fn numbers(&self) -> BTreeMap<[u8; 6], u16> {
        self.nodes.iter().map(|(mac, way)| (*mac, way.number)).collect()
    }

    /// Leads to these nodes and tasks, and to no others.
    pub(super) fn set(
        &mut self,
        nodes: &BTreeMap<IpAddr, IpAddr>,
        routes: &BTreeMap<Ipv4Addr, IpAddr>,
    ) -> Result<(), Error> {
        for (address, node) in nodes {
            self.set_node(mac_of(*address), *node)?;
        }
        let mut wanted = BTreeMap::new();
        for (task, node) in routes {
            let Some(Way { number, .. }) = self.nodes.get(&mac_of(*node)).copied() else {
                continue;
            };
            wanted.insert(IpAddr::V4(*task), number);
            if self.has_ipv6 {
                wanted.insert(IpAddr::V6(ipv6::of_task(*task)), number);
            }
        }
        let routes = wanted;
        let stale: Vec<_> =
            self.routes.keys().filter(|task| !routes.contains_key(task)).copied().collect();
        for task in stale {
            self.forget_route(task)?;
        }
        for (task, number) in routes {
            if self.routes.get(&task) != Some(&number) {
                let route = self.route_to(task, number);
                self.netlink
                    .replace(RouteNetlinkMessage::NewRoute(route))
                    .map_err(Error::kernel(format!("lead to {task}")))?;
                self.routes.insert(task, number);
            }
        }
        let macs: BTreeSet<_> = nodes.keys().map(|address| mac_of(*address)).collect();
        let stale: Vec<_> = self.nodes.keys().filter(|mac| !macs.contains(*mac)).copied().collect();
        stale.into_iter().try_for_each(|mac| self.forget_node(mac))
    }

    /// How the kernel's device and routes differ from what was last asked for.
    pub(super) fn faults(&self) -> Result<Vec<String>, Error> {
        let name = name(&self.place);
        match find(&self.netlink, &name)? {
            Some((index, alias)) if index == self.index => {
                let wanted = describe(&self.underlay);
                if alias != wanted {
                    return Ok(vec![format!(
                        "link {name} is \"{alias}\" and should be \"{wanted}\""
                    )]);
                }
            }
            _ => return Ok(vec![format!("link {name} is missing")]),
        }
        let (nodes, routes) = (self.known_nodes()?, self.known_routes()?);
        let mut faults = Vec::new();
        for (_, way) in self.nodes.iter().filter(|(mac, way)| nodes.get(*mac) != Some(way)) {
            faults.push(format!("link {name}: no way to node {}", way.node));
        }
        let back = self.known_ways_back()?;
        for way in self.nodes.values().filter(|way| !back.contains(&way.number)) {
            faults.push(format!("link {name}: no way back by node {}", way.node));
        }
        for task in self.routes.keys().filter(|task| routes.get(*task) != self.routes.get(*task)) {
            faults.push(format!("link {name}: no route to task {task}"));
        }
        let strange = routes.keys().filter(|task| !self.routes.contains_key(*task));
        faults.extend(strange.map(|task| format!("link {name}: a route to {task}, who is nobody")));
        Ok(faults)
    }

    fn set_node(&mut self, mac: [u8; 6], node: IpAddr) -> Result<(), Error> {
        let known = self.nodes.get(&mac);
        if known.is_some_and(|known| known.node == node) {
            return Ok(());
        }
        let used: BTreeSet<_> = self.nodes.values().map(|way| way.number).collect();
        let free = || (1..=NODES_MAX).find(|number| !used.contains(number));
        let number = known.map(|known| known.number).or_else(free);
        let number = number.ok_or(Error::TooManyNodes { most: NODES_MAX })?;
        let way = Way { number, node };
        self.make_node(mac, way)?;
        self.nodes.insert(mac, way);
        Ok(())
    }

    /// Makes all that leads to a node and back by it, as far as it is not there.
    fn make_node(&self, mac: [u8; 6], way: Way) -> Result<(), Error> {
        let Way { number, node } = way;
        let failed = || Error::kernel(format!("lead to node {node}"));
        for entry in self.entries(mac, way) {
            self.netlink.replace(RouteNetlinkMessage::NewNeighbour(entry)).map_err(failed())?;
        }
        for back in self.ways_back(number) {
            self.netlink.replace(RouteNetlinkMessage::NewRoute(back)).map_err(failed())?;
        }
        for rule in self.rules(number) {
            create_rule(&self.netlink, rule).map_err(failed())?;
        }
        Ok(())
    }

    fn forget_node(&mut self, mac: [u8; 6]) -> Result<(), Error> {
        let Some(way) = self.nodes.remove(&mac) else { return Ok(()) };
        let Way { number, node } = way;
        let what = format!("forget node {node}");
        for rule in self.rules(number) {
            absent_is_fine(self.netlink.change(RouteNetlinkMessage::DelRule(rule)), &what)?;
        }
        for back in self.ways_back(number) {
            absent_is_fine(self.netlink.change(RouteNetlinkMessage::DelRoute(back)), &what)?;
        }
        for entry in self.entries(mac, way) {
            let removed = self.netlink.change(RouteNetlinkMessage::DelNeighbour(entry));
            absent_is_fine(removed, &what)?;
        }
        Ok(())
    }

    fn forget_route(&mut self, task: IpAddr) -> Result<(), Error> {
        let Some(number) = self.routes.remove(&task) else { return Ok(()) };
        let route = self.route_to(task, number);
        let removed = self.netlink.change(RouteNetlinkMessage::DelRoute(route));
        absent_is_fine(removed, &format!("forget the way to {task}"))
    }

    fn table(&self, number: u16) -> u32 {
        table_base(&self.place) | u32::from(number)
    }

    /// The versions of IP that the host speaks.
    fn families(&self) -> impl Iterator<Item = AddressFamily> + use<> {
        std::iter::once(AddressFamily::Inet).chain(self.has_ipv6.then_some(AddressFamily::Inet6))
    }

    fn route_to(&self, task: IpAddr, number: u16) -> RouteMessage {
        let (family, address) = match task {
            IpAddr::V4(task) => (AddressFamily::Inet, RouteAddress::Inet(task)),
            IpAddr::V6(task) => (AddressFamily::Inet6, RouteAddress::Inet6(task)),
        };
        let mut message = self.route(family, number, MAIN_TABLE);
        message.header.destination_prefix_length = if task.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address));
        message
    }

    /// Everywhere by way of a node.
    fn ways_back(&self, number: u16) -> impl Iterator<Item = RouteMessage> {
        self.families().map(move |family| self.route(family, number, self.table(number)))
    }

    fn route(&self, family: AddressFamily, number: u16, table: u32) -> RouteMessage {
        let hop = match family {
            AddressFamily::Inet6 => RouteAddress::Inet6(next_hop_of_ipv6(number)),
            _ => RouteAddress::Inet(next_hop(number)),
        };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Table(table),
            RouteAttribute::Gateway(hop),
            RouteAttribute::Oif(self.index),
        ];
        message
    }

    /// Answers that come from containers, and from nodes that passed a connection on, go back by the node it came by. A
    /// rule without the link would catch the device's own outer packets too: they carry the mark of what is in them.
    fn rules(&self, number: u16) -> Vec<RuleMessage> {
        let links = [self.place.bridge.clone(), name(&self.place)];
        let rule = |family, link| {
            let mut message = RuleMessage::default();
            message.header.family = family;
            message.header.action = RuleAction::ToTable;
            message.attributes = vec![
                RuleAttribute::Iifname(link),
                RuleAttribute::Priority(RULE_PRIORITY),
                RuleAttribute::FwMark(mark(number)),
                RuleAttribute::FwMask(MARK_MASK),
                RuleAttribute::Table(self.table(number)),
            ];
            message
        };
        let rules = self.families().flat_map(|family| links.clone().map(|link| rule(family, link)));
        rules.collect()
    }

    /// What the device is told of a node.
    fn entries(&self, mac: [u8; 6], way: Way) -> Vec<NeighbourMessage> {
        let Way { number, node } = way;
        let mut entries = vec![forwarding(self.index, mac, node)];
        entries.push(neighbour(self.index, next_hop(number).into(), mac));
        if self.has_ipv6 {
            entries.push(neighbour(self.index, next_hop_of_ipv6(number).into(), mac));
        }
        entries
    }

    /// The nodes that an earlier daemon led to.
    fn known_nodes(&self) -> Result<BTreeMap<[u8; 6], Way>, Error> {
        let list = |family| neighbours::list(&self.netlink, self.index, family);
        let places: BTreeMap<_, _> =
            list(AddressFamily::Bridge)?.into_iter().map(|(node, mac)| (mac, node)).collect();
        let mut numbers: BTreeSet<_> = hops(list(AddressFamily::Inet)?).collect();
        if self.has_ipv6 {
            let of_ipv6: BTreeSet<_> = hops(list(AddressFamily::Inet6)?).collect();
            numbers.retain(|number| of_ipv6.contains(number));
        }
        let numbers = numbers.into_iter();
        let way = |mac, number| Some(Way { number, node: *places.get(&mac)? });
        Ok(numbers.filter_map(|(mac, number)| Some((mac, way(mac, number)?))).collect())
    }

    fn listed_routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let listed = self.netlink.dump(RouteNetlinkMessage::GetRoute(message));
        let routes = listed.map_err(Error::kernel("list routes"))?.into_iter();
        let routes = routes.filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes.collect())
    }

    fn known_routes(&self) -> Result<BTreeMap<IpAddr, u16>, Error> {
        let mut known = BTreeMap::new();
        for family in self.families() {
            let routes = self.listed_routes(family)?;
            known.extend(routes.iter().filter_map(|route| self.known_route(route)));
        }
        Ok(known)
    }

    /// The numbers of nodes that answers go back by.
    fn known_ways_back(&self) -> Result<BTreeSet<u16>, Error> {
        let mut found = BTreeMap::<u16, usize>::new();
        for rule in our_rules(&self.netlink, &self.place)? {
            *found.entry(number_in(&rule, &self.place).unwrap_or_default()).or_default() += 1;
        }
        for family in self.families() {
            for route in self.listed_routes(family)? {
                let number = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Table(table) => number_of_table(*table, &self.place),
                    _ => None,
                });
                if let Some(number) = number {
                    *found.entry(number).or_default() += 1;
                }
            }
        }
        let wanted = self.families().count() * (RULES_OF_A_NODE + 1);
        Ok(found.into_iter().filter(|(_, parts)| *parts == wanted).map(|it| it.0).collect())
    }

    fn known_route(&self, route: &RouteMessage) -> Option<(IpAddr, u16)> {
        let (mut to, mut hop, mut is_ours) = (None, None, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    to = Some(IpAddr::V4(*address));
                }
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    to = Some(IpAddr::V6(*address));
                }
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                    hop = number_of((*address).into());
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                    hop = number_of((*address).into());
                }
                RouteAttribute::Oif(index) => is_ours = *index == self.index,
                _ => {}
            }
        }
        let (to, hop) = to.zip(hop)?;
        let whole = if to.is_ipv4() { 32 } else { 128 };
        let is_task = is_ours && route.header.destination_prefix_length == whole;
        is_task.then_some((to, hop))
    }
}

/// The numbers of next hops, with the hardware addresses of their nodes.
fn hops(entries: Vec<(IpAddr, [u8; 6])>) -> impl Iterator<Item = ([u8; 6], u16)> {
    entries.into_iter().filter_map(|(hop, mac)| Some((mac, number_of(hop)?)))
}

/// Removes the device with all that leads over it, and the rules. Nothing happens where there is none.
pub(super) fn remove(place: &Place) -> Result<(), Error> {
    let netlink = open_netlink()?;
    let name = name(place);
    let what = format!("remove the rules of {name}");
    // Another daemon on this host goes on without the skip.
    let ipv6 = ipv6::is_spoken().then_some(AddressFamily::Inet6);
    let skips = std::iter::once(AddressFamily::Inet).chain(ipv6).flat_map(skip);
    for rule in our_rules(&netlink, place)?.into_iter().chain(skips) {
        absent_is_fine(netlink.change(RouteNetlinkMessage::DelRule(rule)), &what)?;
    }
    netlink.remove_link(&name).map_err(Error::kernel(format!("remove link {name}")))
}

/// The rule that passes over those of nodes, behind the one it leads to, which does nothing.
fn skip(family: AddressFamily) -> [RuleMessage; 2] {
    let rule = |action, attributes| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = action;
        message.attributes = attributes;
        message
    };
    let landing = vec![RuleAttribute::Priority(LANDING_PRIORITY)];
    let unmarked = vec![
        RuleAttribute::Priority(SKIP_PRIORITY),
        RuleAttribute::FwMark(0),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Goto(LANDING_PRIORITY),
    ];
    [rule(RuleAction::Nop, landing), rule(RuleAction::Goto, unmarked)]
}

/// One that is there is as good as a new one.
fn create_rule(netlink: &Netlink, rule: RuleMessage) -> io::Result<()> {
    match netlink.create(RouteNetlinkMessage::NewRule(rule)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn our_rules(netlink: &Netlink, place: &Place) -> Result<Vec<RuleMessage>, Error> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let listed = netlink.dump(RouteNetlinkMessage::GetRule(message));
        let listed = match listed {
            // The host does not speak it.
            Err(_) if family == AddressFamily::Inet6 => Vec::new(),
            listed => listed.map_err(Error::kernel("list rules"))?,
        };
        rules.extend(listed.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        }));
    }
    rules.retain(|rule| number_in(rule, place).is_some());
    Ok(rules)
}

/// The node that a rule of ours is about.
fn number_in(rule: &RuleMessage, place: &Place) -> Option<u16> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => number_of_table(*table, place),
        _ => None,
    })
}

fn number_of_table(table: u32, place: &Place) -> Option<u16> {
    let number = table.checked_sub(table_base(place))?;
    u16::try_from(number).ok().filter(|number| *number <= NODES_MAX)
}

/// Tables of daemons that share a host must differ; no other program's are numbered like that.
fn table_base(place: &Place) -> u32 {
    // FNV-1a, folded to 16 bits.
    let hash = place
        .instance
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    0x5000_0000 | ((hash >> 16) ^ (hash & 0xffff)) << 12
}

fn next_hop(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(169, 254, high, low)
}

/// An address of the link itself, which ends as the one of IPv4 does.
fn next_hop_of_ipv6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, number)
}

fn number_of(hop: IpAddr) -> Option<u16> {
    let number = match hop {
        IpAddr::V4(hop) => match hop.octets() {
            [169, 254, high, low] => Some(u16::from_be_bytes([high, low])),
            _ => None,
        },
        IpAddr::V6(hop) => match hop.segments() {
            [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, number] => Some(number),
            _ => None,
        },
    };
    number.filter(|number| (1..=NODES_MAX).contains(number))
}

/// A node's hardware address on the device, which every node can tell from the node's address.
fn mac_of(node: IpAddr) -> [u8; 6] {
    match node {
        IpAddr::V4(node) => address::mac(node),
        IpAddr::V6(node) => {
            let [.., a, b, c, d, e] = node.octets();
            [0x06, a, b, c, d, e]
        }
    }
}

fn mtu(underlay: &Underlay) -> u32 {
    let way = crate::mtu::between_nodes(Some(underlay.local));
    underlay.mtu.unwrap_or(way - overhead(underlay))
}

/// What is around a packet between nodes.
fn overhead(underlay: &Underlay) -> u32 {
    match underlay.is_encrypted {
        // Inside of the tunnel nodes have addresses of IPv6.
        true => tunnel::overhead(Some(underlay.local)) + OVERHEAD_V6,
        false => OVERHEAD,
    }
}

/// Written on the device, for the next daemon to know whether it is the right one.
fn describe(underlay: &Underlay) -> String {
    let Underlay { vni, local, port, .. } = underlay;
    let sealed = if underlay.is_encrypted { ", sealed" } else { "" };
    format!("skep ingress: vni {vni}, from {local} port {port}, mtu {}{sealed}", mtu(underlay))
}

/// What is sealed leaves from the tunnel's namespace, as the device's socket belongs to the one that asks for it.
fn make(place: &Place, underlay: &Underlay) -> Result<(), Error> {
    let (name, netlink) = (&*name(place), open_netlink()?);
    let mut options = vec![
        InfoVxlan::Id(underlay.vni),
        InfoVxlan::Port(underlay.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Proxy(true),
    ];
    match underlay.local {
        _ if underlay.is_encrypted => options.extend([
            InfoVxlan::Local6(Ipv6Addr::UNSPECIFIED),
            InfoVxlan::UDPZeroCsumTX(true),
            InfoVxlan::UDPZeroCsumRX(true),
        ]),
        IpAddr::V4(local) => options.push(InfoVxlan::Local(local)),
        IpAddr::V6(local) => options.push(InfoVxlan::Local6(local)),
    }
    let failed = || Error::kernel(format!("make link {name}"));
    let host = namespace::present()?;
    let (outside, netns) = match underlay.is_encrypted {
        true => {
            let netns = LinkAttribute::NetNsFd(host.as_raw_fd());
            (inside(&tunnel::netns(&place.run_dir)?)?, Some(netns))
        }
        false => (open_netlink()?, None),
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu(underlay)),
        LinkAttribute::Address(mac_of(underlay.local).to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(options)),
        ]),
    ];
    message.attributes.extend(netns);
    outside.create(RouteNetlinkMessage::NewLink(message)).map_err(failed())?;
    // The alias is not heard while a link is being made.
    let mut raised = up(LinkMessage::default());
    raised.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(describe(underlay))];
    netlink.change(RouteNetlinkMessage::SetLink(raised)).map_err(failed())
}

fn set_up(name: &str) -> Result<(), Error> {
    // Clients' addresses come in here that lead elsewhere. The stricter of this and of `all` counts, but 2 undoes 1.
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter");
    let is_filtered = all.is_ok_and(|all| all.trim() != "0");
    sysctl(name, "rp_filter", if is_filtered { "2" } else { "0" })?;
    // From the host's own 127.0.0.1; the table guards against strangers using it.
    sysctl(name, "route_localnet", "1")?;
    sysctl(name, "send_redirects", "0")?;
    ipv6::switch(name, true);
    Ok(())
}

fn sysctl(link: &str, key: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net/ipv4/conf").join(link).join(key);
    std::fs::write(&path, value).map_err(Error::file("write", &path))
}

fn open_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(Error::kernel("open a netlink socket"))
}

/// A link's index and alias.
fn find(netlink: &Netlink, name: &str) -> Result<Option<(u32, String)>, Error> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let links = links.map_err(Error::kernel("list links"))?;
    let named = LinkAttribute::IfName(name.to_owned());
    Ok(links.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if link.attributes.contains(&named) => {
            let alias = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfAlias(alias) => Some(alias.clone()),
                _ => None,
            });
            Some((link.header.index, alias.unwrap_or_default()))
        }
        _ => None,
    }))
}

fn absent_is_fine(removed: io::Result<()>, what: &str) -> Result<(), Error> {
    use rustix::io::Errno;
    match removed {
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::NODEV) => Ok(()),
            _ => Err(Error::kernel(what)(error)),
        },
        Ok(()) => Ok(()),
    }
}

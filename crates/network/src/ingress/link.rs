//! The vxlan device of the ingress network in the host's namespace, and the ways over it.
//!
//! Each other node has a number on this node. It is the next hop's address on the device (169.254.N, with the node's
//! hardware address, which follows from its data address), a mark, and a routing table. All of that is read back from the
//! kernel by the next daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
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
use crate::{Error, address};

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
    nodes: BTreeMap<IpAddr, u16>,
    routes: BTreeMap<Ipv4Addr, u16>,
    /// What the device was told to take.
    fitted: Option<u32>,
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
                make(&netlink, &name, underlay)?;
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
            fitted: None,
        };
        fabric.nodes = fabric.known_nodes()?;
        fabric.routes = fabric.known_routes()?;
        fabric.complete()?;
        Ok(fabric)
    }

    /// Makes again what is missing of what an earlier daemon left, and takes away what leads nowhere.
    fn complete(&self) -> Result<(), Error> {
        for rule in skip() {
            create_rule(&self.netlink, rule).map_err(Error::kernel("make the rule for no mark"))?;
        }
        for (node, number) in &self.nodes {
            self.make_node(*node, *number)?;
        }
        let numbers: BTreeSet<_> = self.nodes.values().copied().collect();
        for rule in our_rules(&self.netlink, &self.place)? {
            if !number_in(&rule, &self.place).is_some_and(|number| numbers.contains(&number)) {
                let removed = self.netlink.change(RouteNetlinkMessage::DelRule(rule));
                absent_is_fine(removed, "remove a rule that leads to nobody")?;
            }
        }
        Ok(())
    }

    pub(super) fn is_for(&self, underlay: &Underlay) -> bool {
        let asked = |it: &Underlay| (it.vni, it.local, it.port, it.mtu);
        asked(&self.underlay) == asked(underlay)
    }

    /// Has the device take what the narrowest way to other nodes takes: whoever sends more is told. What comes in is not
    /// measured by it.
    pub(super) fn fit(&mut self, way: Option<u32>) -> Result<(), Error> {
        let Some(way) = way.filter(|_| self.underlay.mtu.is_none()) else { return Ok(()) };
        let bytes = mtu(&self.underlay).min(way.saturating_sub(OVERHEAD));
        if self.fitted != Some(bytes) {
            let failed = Error::kernel(format!("have the routing mesh take {bytes} bytes"));
            self.netlink.change(taking(self.index, bytes)).map_err(failed)?;
            self.fitted = Some(bytes);
        }
        Ok(())
    }

    /// The numbers of other nodes, by hardware address.
    pub(super) fn numbers(&self) -> BTreeMap<[u8; 6], u16> {
        self.nodes.iter().map(|(node, number)| (mac_of(*node), *number)).collect()
    }

    /// Leads to these nodes and tasks, and to no others.
    pub(super) fn set(
        &mut self,
        nodes: &BTreeSet<IpAddr>,
        routes: &BTreeMap<Ipv4Addr, IpAddr>,
    ) -> Result<(), Error> {
        for node in nodes {
            if !self.nodes.contains_key(node) {
                self.add_node(*node)?;
            }
        }
        let routes: BTreeMap<_, _> = routes
            .iter()
            .filter_map(|(task, node)| Some((*task, *self.nodes.get(node)?)))
            .collect();
        let stale: Vec<_> =
            self.routes.keys().filter(|task| !routes.contains_key(task)).copied().collect();
        for task in stale {
            self.forget_route(task)?;
        }
        for (task, number) in routes {
            if self.routes.get(&task) != Some(&number) {
                let route = self.route(Some(task), number, MAIN_TABLE);
                self.netlink
                    .replace(RouteNetlinkMessage::NewRoute(route))
                    .map_err(Error::kernel(format!("lead to {task}")))?;
                self.routes.insert(task, number);
            }
        }
        let stale: Vec<_> =
            self.nodes.keys().filter(|node| !nodes.contains(node)).copied().collect();
        stale.into_iter().try_for_each(|node| self.forget_node(node))
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
        for node in self.nodes.keys().filter(|node| nodes.get(*node) != self.nodes.get(*node)) {
            faults.push(format!("link {name}: no way to node {node}"));
        }
        let back = self.known_ways_back()?;
        for (node, _) in self.nodes.iter().filter(|(_, number)| !back.contains(number)) {
            faults.push(format!("link {name}: no way back by node {node}"));
        }
        for task in self.routes.keys().filter(|task| routes.get(*task) != self.routes.get(*task)) {
            faults.push(format!("link {name}: no route to task {task}"));
        }
        let strange = routes.keys().filter(|task| !self.routes.contains_key(*task));
        faults.extend(strange.map(|task| format!("link {name}: a route to {task}, who is nobody")));
        Ok(faults)
    }

    fn add_node(&mut self, node: IpAddr) -> Result<(), Error> {
        let used: BTreeSet<_> = self.nodes.values().copied().collect();
        let number = (1..=NODES_MAX).find(|number| !used.contains(number));
        let number = number.ok_or(Error::TooManyNodes { most: NODES_MAX })?;
        self.make_node(node, number)?;
        self.nodes.insert(node, number);
        Ok(())
    }

    /// Makes all that leads to a node and back by it, as far as it is not there.
    fn make_node(&self, node: IpAddr, number: u16) -> Result<(), Error> {
        let failed = || Error::kernel(format!("lead to node {node}"));
        for entry in self.entries(node, number) {
            self.netlink.replace(RouteNetlinkMessage::NewNeighbour(entry)).map_err(failed())?;
        }
        let back = self.route(None, number, self.table(number));
        self.netlink.replace(RouteNetlinkMessage::NewRoute(back)).map_err(failed())?;
        for rule in self.rules(number) {
            create_rule(&self.netlink, rule).map_err(failed())?;
        }
        Ok(())
    }

    fn forget_node(&mut self, node: IpAddr) -> Result<(), Error> {
        let Some(number) = self.nodes.remove(&node) else { return Ok(()) };
        let what = format!("forget node {node}");
        for rule in self.rules(number) {
            absent_is_fine(self.netlink.change(RouteNetlinkMessage::DelRule(rule)), &what)?;
        }
        let back = self.route(None, number, self.table(number));
        absent_is_fine(self.netlink.change(RouteNetlinkMessage::DelRoute(back)), &what)?;
        for entry in self.entries(node, number) {
            let removed = self.netlink.change(RouteNetlinkMessage::DelNeighbour(entry));
            absent_is_fine(removed, &what)?;
        }
        Ok(())
    }

    fn forget_route(&mut self, task: Ipv4Addr) -> Result<(), Error> {
        let Some(number) = self.routes.remove(&task) else { return Ok(()) };
        let route = self.route(Some(task), number, MAIN_TABLE);
        let removed = self.netlink.change(RouteNetlinkMessage::DelRoute(route));
        absent_is_fine(removed, &format!("forget the way to {task}"))
    }

    fn table(&self, number: u16) -> u32 {
        table_base(&self.place) | u32::from(number)
    }

    /// To a task, or everywhere, by way of a node.
    fn route(&self, to: Option<Ipv4Addr>, number: u16, table: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = if to.is_some() { 32 } else { 0 };
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Table(table),
            RouteAttribute::Gateway(RouteAddress::Inet(next_hop(number))),
            RouteAttribute::Oif(self.index),
        ];
        message.attributes.extend(to.map(|to| RouteAttribute::Destination(RouteAddress::Inet(to))));
        message
    }

    /// Answers that come from containers, and from nodes that passed a connection on, go back by the node it came by. A
    /// rule without the link would catch the device's own outer packets too: they carry the mark of what is in them.
    fn rules(&self, number: u16) -> [RuleMessage; 2] {
        [self.place.bridge.clone(), name(&self.place)].map(|link| {
            let mut message = RuleMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.action = RuleAction::ToTable;
            message.attributes = vec![
                RuleAttribute::Iifname(link),
                RuleAttribute::Priority(RULE_PRIORITY),
                RuleAttribute::FwMark(mark(number)),
                RuleAttribute::FwMask(MARK_MASK),
                RuleAttribute::Table(self.table(number)),
            ];
            message
        })
    }

    /// What the device is told of a node.
    fn entries(&self, node: IpAddr, number: u16) -> [NeighbourMessage; 2] {
        let mac = mac_of(node);
        [forwarding(self.index, mac, node), neighbour(self.index, next_hop(number).into(), mac)]
    }

    /// The nodes that an earlier daemon led to.
    fn known_nodes(&self) -> Result<BTreeMap<IpAddr, u16>, Error> {
        let list = |family| neighbours::list(&self.netlink, self.index, family);
        let places: BTreeMap<_, _> =
            list(AddressFamily::Bridge)?.into_iter().map(|(node, mac)| (mac, node)).collect();
        let numbers = list(AddressFamily::Inet)?.into_iter().filter_map(|(hop, mac)| match hop {
            IpAddr::V4(hop) => Some((mac, number_of(hop)?)),
            IpAddr::V6(_) => None,
        });
        Ok(numbers.filter_map(|(mac, number)| Some((*places.get(&mac)?, number))).collect())
    }

    fn known_routes(&self) -> Result<BTreeMap<Ipv4Addr, u16>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let listed = self.netlink.dump(RouteNetlinkMessage::GetRoute(message));
        let listed = listed.map_err(Error::kernel("list routes"))?;
        Ok(listed.iter().filter_map(|route| self.known_route(route)).collect())
    }

    /// The numbers of nodes that answers go back by.
    fn known_ways_back(&self) -> Result<BTreeSet<u16>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let listed = self.netlink.dump(RouteNetlinkMessage::GetRoute(message));
        let listed = listed.map_err(Error::kernel("list routes"))?;
        let mut rules = BTreeMap::<u16, usize>::new();
        for rule in our_rules(&self.netlink, &self.place)? {
            *rules.entry(number_in(&rule, &self.place).unwrap_or_default()).or_default() += 1;
        }
        let tables = listed.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Table(table) => number_of_table(*table, &self.place),
                    _ => None,
                })
            }
            _ => None,
        });
        Ok(tables.filter(|number| rules.get(number) == Some(&RULES_OF_A_NODE)).collect())
    }

    fn known_route(&self, message: &RouteNetlinkMessage) -> Option<(Ipv4Addr, u16)> {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let (mut to, mut hop, mut is_ours) = (None, None, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => hop = number_of(*address),
                RouteAttribute::Oif(index) => is_ours = *index == self.index,
                _ => {}
            }
        }
        let is_task = is_ours && route.header.destination_prefix_length == 32;
        to.zip(hop).filter(|_| is_task)
    }
}

/// Removes the device with all that leads over it, and the rules. Nothing happens where there is none.
pub(super) fn remove(place: &Place) -> Result<(), Error> {
    let netlink = open_netlink()?;
    let name = name(place);
    let what = format!("remove the rules of {name}");
    // Another daemon on this host goes on without the skip.
    for rule in our_rules(&netlink, place)?.into_iter().chain(skip()) {
        absent_is_fine(netlink.change(RouteNetlinkMessage::DelRule(rule)), &what)?;
    }
    netlink.remove_link(&name).map_err(Error::kernel(format!("remove link {name}")))
}

/// The rule that passes over those of nodes, behind the one it leads to, which does nothing.
fn skip() -> [RuleMessage; 2] {
    let rule = |action, attributes| {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
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
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    let listed = netlink.dump(RouteNetlinkMessage::GetRule(message));
    let listed = listed.map_err(Error::kernel("list rules"))?.into_iter();
    let rules = listed.filter_map(|message| match message {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    });
    Ok(rules.filter(|rule| number_in(rule, place).is_some()).collect())
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

fn number_of(hop: Ipv4Addr) -> Option<u16> {
    match hop.octets() {
        [169, 254, high, low] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
    .filter(|number| (1..=NODES_MAX).contains(number))
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
    underlay.mtu.unwrap_or(way - OVERHEAD)
}

/// Written on the device, for the next daemon to know whether it is the right one.
fn describe(underlay: &Underlay) -> String {
    let Underlay { vni, local, port, .. } = underlay;
    format!("skep ingress: vni {vni}, from {local} port {port}, mtu {}", mtu(underlay))
}

fn make(netlink: &Netlink, name: &str, underlay: &Underlay) -> Result<(), Error> {
    let mut options = vec![
        InfoVxlan::Id(underlay.vni),
        InfoVxlan::Port(underlay.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Proxy(true),
    ];
    options.push(match underlay.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    });
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
    let failed = || Error::kernel(format!("make link {name}"));
    netlink.create(RouteNetlinkMessage::NewLink(message)).map_err(failed())?;
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
    sysctl(name, "send_redirects", "0")
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

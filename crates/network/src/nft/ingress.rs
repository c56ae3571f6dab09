//! The table of the routing mesh, in the host's namespace.
//!
//! ```text
//! table ip skep-<instance>-ingress {
//!   map fronts   { type inet_proto . inet_service : verdict }                      # tcp . 8080 : goto b3
//!   map backends { type inet_proto . inet_service . mark : ipv4_addr . inet_service }
//!   map own      { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!   map came_by  { type ether_addr : verdict }                                     # a node : goto from7
//!   map go_by    { type mark : verdict }                                           # its mark : goto to7
//!   set homes    { type ipv4_addr . ipv4_addr }                                    # a node . a task on it
//!   set unserved { type inet_proto . inet_service }                                # published, and nobody is there
//!   chain input      { l4proto . dport @unserved goto refused }
//!   chain s256       { the same, by jhash saddr mod 256 }                          # clients stay with their task
//!   chain b3         { dnat to l4proto . dport . numgen random mod 3 map @backends }
//!   chain published  { l4proto . dport vmap @fronts }
//!   chain incoming   { dnat to daddr . l4proto . dport map @own; goto published }
//!   chain prerouting { iifname LINK goto incoming; fib daddr type local goto published }
//!   chain output     { fib daddr type local goto published }
//!   chain marks      { iifname LINK ct state new ether saddr vmap @came_by; ct direction reply ct mark vmap @go_by }
//!   chain from7, to7 { set the mark's bits }
//!   chain clamp      { oifname LINK tcp option maxseg size set rt mtu }
//!   chain leaving    { oifname LINK, from this host's inside: snat to this node }
//!   chain stray      { iifname LINK oifname != LINK daddr in the network: drop }
//! }
//! ```
//! A node that gets a connection for a task that serves no more passes it on by `published`: whoever has not heard yet
//! loses nothing. There is a table of this form for each version of IP that the host speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::expression::{self, Expression, octets};
use super::list::{self, Elements, Target};
use super::message::{Batch, Family, Hook, MapSpec};
use super::socket::Socket as Netfilter;
use super::{
    ELEMENTS_PER_BATCH_MAX, INET_PROTO, INET_SERVICE, MARK, VERDICT, concatenation, loopback,
    port_bytes, socket_bytes, sticky,
};
use crate::Error;
use crate::ingress::{Front, MARK_MASK, mark};

/// A socket that connections are led to.
pub(crate) type Socket = (IpAddr, u16);

/// The kernel's number for a hardware address (nft userspace, datatype.h).
const ETHER: u32 = 9;

/// A table is made anew in one transaction up to that many elements: of some hundred bytes each, they fit the socket.
const ELEMENTS_AT_ONCE_MAX: usize = 20_000;

/// What the table is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshRules {
    pub(crate) base: Base,
    pub(crate) fronts: BTreeMap<Front, BTreeSet<Socket>>,
    /// Fronts whose clients stay with their task.
    pub(crate) sticky: BTreeSet<Front>,
    pub(crate) own: BTreeMap<(IpAddr, Front), Socket>,
    /// Numbers of other nodes, by hardware address on the device.
    pub(crate) nodes: BTreeMap<[u8; 6], u16>,
    /// Addresses of nodes, each with the tasks that are on it.
    pub(crate) homes: BTreeSet<(IpAddr, IpAddr)>,
}

/// Each backend of a front in its slots. Nobody in any is a front that nobody serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Slots {
    is_sticky: bool,
    sockets: Vec<Socket>,
}

impl Slots {
    /// The chain that chooses, where there is anybody to be chosen.
    fn chain(&self) -> Option<String> {
        let chain = format!("{}{}", kind_of(self.is_sticky), self.sockets.len());
        Some(chain).filter(|_| !self.sockets.is_empty())
    }
}

/// How the names of chains that choose begin.
fn kind_of(is_sticky: bool) -> char {
    if is_sticky { 's' } else { 'b' }
}

/// What rarely changes; the table is made anew then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) link: String,
    pub(crate) bridge: String,
    /// The bridge's address.
    pub(crate) gateway: IpAddr,
    /// Addresses of containers and of their gateways, which mean somebody else on other nodes.
    pub(crate) inside: Vec<IpNet>,
    pub(crate) subnets: Vec<IpNet>,
    /// Under which address the host and its containers ask tasks of other nodes.
    pub(crate) local: Option<IpAddr>,
}

/// The table of one daemon.
#[derive(Debug)]
pub(crate) struct MeshTable {
    name: String,
    family: Family,
    socket: Netfilter,
    /// What it holds; unknown before the first change, as an earlier daemon may have left one.
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    base: Base,
    fronts: BTreeMap<Front, Slots>,
    own: BTreeMap<(IpAddr, Front), Socket>,
    nodes: BTreeMap<[u8; 6], u16>,
    homes: BTreeSet<(IpAddr, IpAddr)>,
    /// For which numbers of backends, and of nodes, there are chains.
    balancing: BTreeSet<(bool, usize)>,
    marking: BTreeSet<u16>,
}

impl MeshTable {
    /// For one version of IP, as which `of` is an address. A table that is there stays as it is for now.
    pub(crate) fn open(instance: &str, of: IpAddr) -> Result<Self, Error> {
        let socket = Netfilter::open().map_err(Error::kernel("open an nftables socket"))?;
        let (name, family) = (format!("skep-{instance}-ingress"), Family::of(of));
        Ok(Self { name, family, socket, known: None })
    }

    /// Brings the table in line. Connections that are under way keep their task.
    pub(crate) fn set(&mut self, rules: MeshRules) -> Result<(), Error> {
        let mut work =
            Work { table: self, size: 0, batch: None, elements_max: ELEMENTS_PER_BATCH_MAX };
        let mut known = match work.table.known.take() {
            Some(known) if known.base == rules.base => known,
            _ => {
                work.elements_max = ELEMENTS_AT_ONCE_MAX;
                work.begin(rules.base.clone())
            }
        };
        work.set_nodes(&mut known, rules.nodes)?;
        work.set_homes(&mut known, rules.homes)?;
        work.set_own(&mut known, rules.own)?;
        work.set_fronts(&mut known, &rules.fronts, &rules.sticky)?;
        work.commit()?;
        self.known = Some(known);
        Ok(())
    }

    /// How the kernel's table differs from what was last asked for.
    pub(crate) fn faults(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = self.compare(&mut faults) {
            faults.push(error.to_string());
        }
        let (family, name) = (self.family.name(), &self.name);
        faults.iter().map(|fault| format!("nftables table {family} {name}: {fault}")).collect()
    }

    /// Begins anew with the next change.
    pub(crate) fn distrust(&mut self) {
        self.known = None;
    }

    fn compare(&mut self, faults: &mut Vec<String>) -> std::io::Result<()> {
        let Some(known) = &self.known else { return Ok(()) };
        let mut maps: BTreeMap<&str, Elements> = BTreeMap::new();
        let mut put = |map, key: Vec<u8>, target| maps.entry(map).or_default().insert(key, target);
        for (front, slots) in &known.fronts {
            let key = front_bytes(*front);
            let Some(chain) = slots.chain() else {
                put("unserved", key.to_vec(), Target::Data(Vec::new()));
                continue;
            };
            for (slot, socket) in (0u32..).zip(&slots.sockets) {
                let slot = [&key[..], &slot.to_ne_bytes()].concat();
                put("backends", slot, Target::Data(socket_bytes(socket.0, socket.1)));
            }
            put("fronts", key.to_vec(), Target::Chain(chain));
            put(loopback::SET, key.to_vec(), Target::Data(Vec::new()));
        }
        for ((address, front), socket) in &known.own {
            let key = [&octets(*address)[..], &front_bytes(*front)].concat();
            put("own", key, Target::Data(socket_bytes(socket.0, socket.1)));
        }
        for (mac, number) in &known.nodes {
            put("came_by", mac.to_vec(), Target::Chain(format!("from{number}")));
            let mark = mark(*number).to_ne_bytes().to_vec();
            put("go_by", mark, Target::Chain(format!("to{number}")));
        }
        for (node, task) in &known.homes {
            put("homes", [octets(*node), octets(*task)].concat(), Target::Data(Vec::new()));
        }
        let found = list::rules(&mut self.socket, self.family, &self.name)?;
        let balancing = known.balancing.iter();
        let balancing =
            balancing.map(|(is_sticky, count)| format!("{}{count}", kind_of(*is_sticky)));
        for chain in balancing.chain(["published", "prerouting", "output"].map(str::to_owned)) {
            if !found.contains_key(&chain) {
                faults.push(format!("chain {chain} has no rules"));
            }
        }
        let looped = (self.family == Family::Ipv6).then_some(loopback::SET);
        let maps_of_all = ["fronts", "unserved", "backends", "own", "came_by", "go_by", "homes"];
        for map in maps_of_all.into_iter().chain(looped) {
            let found = list::elements(&mut self.socket, self.family, &self.name, map)?;
            let wanted = maps.remove(map).unwrap_or_default();
            list::compare(map, &wanted, &found, faults);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.known = None;
        let mut batch = self.socket.batch_for(self.family);
        batch.remove_table(&self.name);
        let removed = self.socket.commit(batch);
        removed.map_err(Error::kernel(format!("remove nftables table {}", self.name)))
    }
}

/// Changes of the table on their way.
struct Work<'a> {
    table: &'a mut MeshTable,
    batch: Option<Batch>,
    /// Elements in the batch.
    size: usize,
    elements_max: usize,
}

impl Work<'_> {
    fn batch(&mut self, elements: usize) -> &mut Batch {
        self.size += elements;
        let table = &self.table;
        self.batch.get_or_insert_with(|| table.socket.batch_for(table.family))
    }

    fn name(&self) -> String {
        self.table.name.clone()
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.size = 0;
        let Some(batch) = self.batch.take() else { return Ok(()) };
        self.table.socket.commit_to(&self.table.name, batch)
    }

    /// Between parts that need not be in one transaction.
    fn commit_when_full(&mut self) -> Result<(), Error> {
        if self.size > self.elements_max { self.commit() } else { Ok(()) }
    }

    /// Takes away what there is and makes the frame.
    fn begin(&mut self, base: Base) -> Known {
        let (name, family) = (self.name(), self.table.family);
        let batch = self.batch(0);
        batch.remove_table(&name);
        batch.add_table(&name);
        add_maps(batch, &name, family);
        add_leading(batch, &name, family, &base);
        if let IpAddr::V6(gateway) = base.gateway {
            loopback::add(batch, &name, gateway);
        }
        add_refusing(batch, &name, family);
        add_marking(batch, &name, &base);
        add_leaving(batch, &name, family, &base);
        Known {
            base,
            fronts: BTreeMap::new(),
            own: BTreeMap::new(),
            nodes: BTreeMap::new(),
            homes: BTreeSet::new(),
            balancing: BTreeSet::new(),
            marking: BTreeSet::new(),
        }
    }

    fn set_nodes(&mut self, known: &mut Known, nodes: BTreeMap<[u8; 6], u16>) -> Result<(), Error> {
        let name = self.name();
        for (mac, number) in &known.nodes {
            if nodes.get(mac) != Some(number) {
                let batch = self.batch(2);
                batch.delete_element(&name, "came_by", mac);
                batch.delete_element(&name, "go_by", &mark(*number).to_ne_bytes());
            }
        }
        for (mac, number) in &nodes {
            if known.nodes.get(mac) == Some(number) {
                continue;
            }
            let batch = self.batch(2);
            let (from, to) = (format!("from{number}"), format!("to{number}"));
            if known.marking.insert(*number) {
                batch.add_chain(&name, &from, None);
                let marks = expression::mark_connection(MARK_MASK, mark(*number));
                batch.add_rule(&name, &from, &marks);
                batch.add_chain(&name, &to, None);
                batch.add_rule(&name, &to, &expression::mark_packet(MARK_MASK, mark(*number)));
            }
            batch.add_goto(&name, "came_by", mac, &from);
            batch.add_goto(&name, "go_by", &mark(*number).to_ne_bytes(), &to);
        }
        known.nodes = nodes;
        self.commit_when_full()
    }

    fn set_homes(
        &mut self,
        known: &mut Known,
        homes: BTreeSet<(IpAddr, IpAddr)>,
    ) -> Result<(), Error> {
        let name = self.name();
        let key = |(node, task): &(IpAddr, IpAddr)| [octets(*node), octets(*task)].concat();
        for home in known.homes.difference(&homes) {
            self.batch(1).delete_element(&name, "homes", &key(home));
            self.commit_when_full()?;
        }
        for home in homes.difference(&known.homes) {
            self.batch(1).add_member(&name, "homes", &key(home));
            self.commit_when_full()?;
        }
        known.homes = homes;
        Ok(())
    }

    fn set_own(
        &mut self,
        known: &mut Known,
        own: BTreeMap<(IpAddr, Front), Socket>,
    ) -> Result<(), Error> {
        let name = self.name();
        let key = |(address, front): &(IpAddr, Front)| {
            [&octets(*address)[..], &front_bytes(*front)].concat()
        };
        for (place, socket) in &known.own {
            if own.get(place) != Some(socket) {
                self.batch(1).delete_element(&name, "own", &key(place));
            }
        }
        for (place, socket) in &own {
            if known.own.get(place) != Some(socket) {
                self.batch(1).add_element(
                    &name,
                    "own",
                    &key(place),
                    &socket_bytes(socket.0, socket.1),
                );
            }
        }
        known.own = own;
        self.commit_when_full()
    }

    fn set_fronts(
        &mut self,
        known: &mut Known,
        fronts: &BTreeMap<Front, BTreeSet<Socket>>,
        sticky: &BTreeSet<Front>,
    ) -> Result<(), Error> {
        let touched: BTreeSet<_> = known.fronts.keys().chain(fronts.keys()).copied().collect();
        let own = known.own.iter().map(|((task, front), socket)| ((*front, *socket), *task));
        let names: BTreeMap<_, _> = own.filter(|((front, _), _)| sticky.contains(front)).collect();
        for front in touched {
            let old = known.fronts.remove(&front);
            let next = fronts.get(&front).map(|to| match sticky.contains(&front) {
                true => Slots { is_sticky: true, sockets: shared(front, to, &names) },
                false => {
                    let known = old.as_ref().filter(|old| !old.is_sticky);
                    let known = known.map(|old| &old.sockets[..]).unwrap_or_default();
                    Slots { is_sticky: false, sockets: slots(known, to) }
                }
            });
            self.set_front(front, old.as_ref(), next.as_ref(), &mut known.balancing);
            known.fronts.extend(next.map(|next| (front, next)));
            self.commit_when_full()?;
        }
        Ok(())
    }

    fn set_front(
        &mut self,
        front: Front,
        old: Option<&Slots>,
        next: Option<&Slots>,
        balancing: &mut BTreeSet<(bool, usize)>,
    ) {
        if old == next {
            return;
        }
        let (name, family) = (self.name(), self.table.family);
        let key = front_bytes(front);
        let is_unserved = |slots: Option<&Slots>| slots.is_some_and(|it| it.sockets.is_empty());
        if is_unserved(old) {
            self.batch(1).delete_element(&name, "unserved", &key);
        }
        if is_unserved(next) {
            self.batch(1).add_member(&name, "unserved", &key);
        }
        let nobody = Slots::default();
        let (old, next) = (old.unwrap_or(&nobody), next.unwrap_or(&nobody));
        let (from, to) = (old.chain(), next.chain());
        let slot_key = |slot: usize| {
            let slot = u32::try_from(slot).expect("far fewer backends than 2^32");
            [&key[..], &slot.to_ne_bytes()].concat()
        };
        let batch = self.batch(old.sockets.len().max(next.sockets.len()) + 2);
        if from.is_some() && from != to {
            batch.delete_element(&name, "fronts", &key);
        }
        let is_looped = family == Family::Ipv6 && from.is_some() != to.is_some();
        match to {
            None if is_looped => batch.delete_element(&name, loopback::SET, &key),
            Some(_) if is_looped => batch.add_member(&name, loopback::SET, &key),
            _ => {}
        }
        for (slot, socket) in old.sockets.iter().enumerate() {
            if next.sockets.get(slot) != Some(socket) {
                batch.delete_element(&name, "backends", &slot_key(slot));
            }
        }
        for (slot, socket) in next.sockets.iter().enumerate() {
            if old.sockets.get(slot) != Some(socket) {
                let to = socket_bytes(socket.0, socket.1);
                batch.add_element(&name, "backends", &slot_key(slot), &to);
            }
        }
        if let Some(to) = to.filter(|to| from.as_ref() != Some(to)) {
            if balancing.insert((next.is_sticky, next.sockets.len())) {
                add_balancing(batch, &name, family, &to, next);
            }
            batch.add_goto(&name, "fronts", &key, &to);
        }
    }
}

/// Gives each number of clients a backend. Tasks of this node are known to others by the addresses in `names`.
fn shared(
    front: Front,
    sockets: &BTreeSet<Socket>,
    names: &BTreeMap<(Front, Socket), IpAddr>,
) -> Vec<Socket> {
    let name = |socket: &Socket| names.get(&(front, *socket)).copied().unwrap_or(socket.0);
    let backends: Vec<_> = sockets.iter().map(|socket| (name(socket), *socket)).collect();
    sticky::share(&backends)
}

/// Gives each backend a slot. Those that stay keep theirs where that is possible, so that little has to be written.
fn slots(old: &[Socket], wanted: &BTreeSet<Socket>) -> Vec<Socket> {
    let mut new = wanted.iter().filter(|socket| !old.contains(socket)).copied();
    let mut slots: Vec<Option<Socket>> =
        old.iter().map(|socket| wanted.contains(socket).then_some(*socket)).collect();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = new.next();
    }
    slots.extend(new.map(Some));
    // Holes that are left are filled from behind.
    let mut filled: Vec<Socket> = Vec::with_capacity(wanted.len());
    let mut front = 0;
    while front < slots.len() {
        match slots[front] {
            Some(socket) => {
                filled.push(socket);
                front += 1;
            }
            None => {
                let last = slots.pop().flatten();
                if front < slots.len() {
                    slots[front] = last;
                }
            }
        }
    }
    filled
}

fn add_maps(batch: &mut Batch, table: &str, family: Family) {
    let (address, address_bytes) = (family.address_type(), family.bytes());
    let front = [INET_PROTO, INET_SERVICE];
    let own = [address, INET_PROTO, INET_SERVICE];
    let slot = [INET_PROTO, INET_SERVICE, MARK];
    let socket = concatenation(&[address, INET_SERVICE]);
    let socket_bytes = address_bytes + 4;
    let maps: [(&str, &[u32], usize, u32, usize); 5] = [
        ("fronts", &front, 8, VERDICT, 0),
        ("backends", &slot, 12, socket, socket_bytes),
        ("own", &own, address_bytes + 8, socket, socket_bytes),
        ("came_by", &[ETHER], 6, VERDICT, 0),
        ("go_by", &[MARK], 4, VERDICT, 0),
    ];
    for (name, key, key_bytes, data_type, data_bytes) in maps {
        let key_type = concatenation(key);
        batch.add_map(table, &MapSpec { name, key_type, key_bytes, data_type, data_bytes });
    }
    batch.add_set(table, "unserved", concatenation(&front), 8);
    batch.add_set(table, "homes", concatenation(&[address, address]), 2 * address_bytes);
}

/// Chains that lead connections to tasks.
fn add_leading(batch: &mut Batch, table: &str, family: Family, base: &Base) {
    let first = expression::FIRST_REGISTER;
    let nat = |hook| Some(Hook { kind: "nat", hook, priority: -100 });
    batch.add_chain(table, "published", None);
    batch.add_chain(table, "incoming", None);
    batch.add_chain(table, "prerouting", nat(Hook::PREROUTING));
    batch.add_chain(table, "output", nat(Hook::OUTPUT));
    let look_up = [front_key(first), vec![Expression::look_up_verdict("fronts")]];
    batch.add_rule(table, "published", &look_up.concat());
    let own = [
        vec![Expression::destination_address_of(family, first)],
        front_key(first + family.registers()),
        vec![Expression::look_up("own"), Expression::DestinationNat(family)],
    ];
    batch.add_rule(table, "incoming", &own.concat());
    batch.add_rule(table, "incoming", &expression::accept_goto("published"));
    let from_others = [expression::input_link(&base.link), expression::accept_goto("incoming")];
    batch.add_rule(table, "prerouting", &from_others.concat());
    let to_this_host = [expression::destination_is_local(), expression::accept_goto("published")];
    batch.add_rule(table, "prerouting", &to_this_host.concat());
    batch.add_rule(table, "output", &to_this_host.concat());
}

/// Chains that refuse at once what nobody serves. Whoever is led to a task does not pass here.
fn add_refusing(batch: &mut Batch, table: &str, family: Family) {
    let hook = Hook { kind: "filter", hook: Hook::INPUT, priority: 0 };
    batch.add_chain(table, "refused", None);
    batch.add_chain(table, "input", Some(hook));
    for rule in expression::refuse(family) {
        batch.add_rule(table, "refused", &rule);
    }
    let unserved = [
        front_key(expression::FIRST_REGISTER),
        vec![Expression::Member { set: "unserved", is_member: true }],
        expression::accept_goto("refused"),
    ];
    batch.add_rule(table, "input", &unserved.concat());
}

/// Chains that remember by which node a connection came, and send its answers back there.
fn add_marking(batch: &mut Batch, table: &str, base: &Base) {
    // After connections are known (-200), before routes are looked up.
    let hook = Hook { kind: "filter", hook: Hook::PREROUTING, priority: -150 };
    batch.add_chain(table, "marks", Some(hook));
    let came_by = [
        expression::input_link(&base.link),
        expression::is_new(),
        expression::source_hardware(),
        vec![Expression::look_up_verdict("came_by")],
    ];
    batch.add_rule(table, "marks", &came_by.concat());
    for link in [&base.bridge, &base.link] {
        let go_by = [
            expression::input_link(link),
            expression::is_answer(),
            expression::connection_mark(MARK_MASK),
            vec![Expression::look_up_verdict("go_by")],
        ];
        batch.add_rule(table, "marks", &go_by.concat());
    }
}

/// Chains for what leaves by the device, or must not leave.
fn add_leaving(batch: &mut Batch, table: &str, family: Family, base: &Base) {
    let hook = Hook { kind: "filter", hook: Hook::POSTROUTING, priority: -150 };
    batch.add_chain(table, "clamp", Some(hook));
    let by_link = expression::output_link(&base.link, true);
    let clamp = [by_link.clone(), expression::clamp_segments()];
    batch.add_rule(table, "clamp", &clamp.concat());
    // Before the bridge's table (100), whose masquerade would take an address of the device, which has none.
    let hook = Hook { kind: "nat", hook: Hook::POSTROUTING, priority: 99 };
    batch.add_chain(table, "leaving", Some(hook));
    let as_this_node = match base.local {
        Some(local) => vec![
            Expression::Load { register: expression::FIRST_REGISTER, value: octets(local) },
            Expression::SourceNatAddress(family),
        ],
        None => vec![Expression::Masquerade],
    };
    // IPv6 leaves loopback by another way.
    let loopback = Some(family.loopback()).filter(|_| family == Family::Ipv4);
    for subnet in base.inside.iter().chain(&loopback) {
        let inside = expression::source_in(*subnet);
        batch.add_rule(table, "leaving", &[by_link.clone(), inside, as_this_node.clone()].concat());
    }
    // A node that asks another one for what itself serves: it would not take its own address from outside.
    let first = expression::FIRST_REGISTER;
    let at_home = vec![
        Expression::source_address_of(family, first),
        Expression::destination_address_of(family, first + family.registers()),
        Expression::Member { set: "homes", is_member: true },
    ];
    batch.add_rule(table, "leaving", &[by_link, at_home, as_this_node].concat());
    let hook = Hook { kind: "filter", hook: Hook::FORWARD, priority: 0 };
    batch.add_chain(table, "stray", Some(hook));
    for subnet in &base.subnets {
        let stray = [
            expression::input_link(&base.link),
            expression::output_link(&base.link, false),
            expression::destination_in(*subnet),
            vec![Expression::Drop],
        ];
        batch.add_rule(table, "stray", &stray.concat());
    }
}

fn add_balancing(batch: &mut Batch, table: &str, family: Family, chain: &str, slots: &Slots) {
    let first = expression::FIRST_REGISTER;
    let modulus = u32::try_from(slots.sockets.len()).expect("far fewer backends than 2^32");
    let choice = match slots.is_sticky {
        true => expression::client_number(family, modulus, first + 2),
        false => vec![Expression::Random { modulus, register: first + 2 }],
    };
    let lead = vec![Expression::look_up("backends"), Expression::DestinationNat(family)];
    batch.add_chain(table, chain, None);
    batch.add_rule(table, chain, &[front_key(first), choice, lead].concat());
}

/// Loads protocol and port, in the order of [`front_bytes`].
fn front_key(register: u32) -> Vec<Expression> {
    vec![Expression::protocol(register), Expression::destination_port(register + 1)]
}

fn front_bytes((protocol, port): Front) -> [u8; 8] {
    port_bytes(protocol, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(numbers: &[u8]) -> Vec<Socket> {
        numbers.iter().map(|number| (IpAddr::from([10, 255, 0, *number]), 80)).collect()
    }

    #[test]
    fn backends_that_stay_keep_their_slots_where_they_can() {
        for (old, wanted, expected) in [
            (&[][..], &[1, 2][..], &[1, 2][..]),
            (&[1, 2, 3], &[1, 3, 4], &[1, 4, 3]),
            (&[1, 2, 3], &[1, 3], &[1, 3]),
            (&[1, 2, 3], &[3], &[3]),
            (&[1, 2, 3], &[], &[]),
            (&[3, 1], &[1, 2, 3], &[3, 1, 2]),
            (&[1, 2, 3, 4], &[4, 5], &[5, 4]),
        ] {
            let given = slots(&sockets(old), &sockets(wanted).into_iter().collect());
            assert_eq!(given, sockets(expected), "{old:?} {wanted:?}");
        }
    }
}

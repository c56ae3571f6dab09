//! Our nftables table: fronts and backends as map elements, chains shared by all ports with equally many backends.
//!
//! ```text
//! table ip skep-<instance> {
//!   map fronts   { type inet_proto . inet_service : verdict }                     # tcp . 8080 : goto b3
//!   map backends { type inet_proto . inet_service . mark : ipv4_addr . inet_service }
//!   chain b3     { dnat to l4proto . dport . numgen random mod 3 map @backends }
//!   chain prerouting, output { fib daddr type local goto published }
//!   set wires    { type inet_service }                                            # 4789
//!   chain guard, sending { udp dport @wires notrack }
//! }
//! ```
//! What overlays send from node to node is not followed as connections: each of their packets is one of a container's, which
//! are followed where they begin, and the host's table of connections stays small. A port costs map elements only, and a
//! change of backends is one transaction. A table of the same form for IPv6 is there where the host speaks it.

mod arrivals;
mod balance;
mod bridges;
mod conntrack;
mod expression;
mod guard;
mod ingress;
pub(crate) mod list;
mod loopback;
mod message;
mod relay;
mod socket;
mod sticky;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::ports::{Front, Protocol, Rule};
use crate::{Error, ipv6};
pub use arrivals::Arrivals;
pub(crate) use balance::{Balancer, NAMES_ADDRESS, NamePorts};
pub(crate) use bridges::{Fence, Fences};
pub use conntrack::Flows;
pub(crate) use conntrack::{answering, forget as forget_connections};
use expression::{Expression, accept_goto, octets};
pub(crate) use guard::{Guard, Tenant};
pub(crate) use ingress::{Base as MeshBase, MeshRules, MeshTable};
pub use list::BaseChain;
use message::{Batch, Family, Hook, MapSpec};
pub(crate) use relay::{Awaited, RelayTable};
use socket::Socket;
pub(crate) use watch::{Heard, Watch};

/// The kernel's numbers for data types that `nft list` knows by name (nft userspace, datatype.h).
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;
const MARK: u32 = 19;
const VERDICT: u32 = 0xffff_ff00;

/// Before connections are followed.
const RAW: i32 = -300;

/// Elements in one transaction; more are split, so that no message outgrows the socket's buffer.
const ELEMENTS_PER_BATCH_MAX: usize = 500;

/// The tables of published ports, one for each version of IP that the host speaks.
#[derive(Debug)]
pub(crate) struct Table {
    families: Vec<FamilyTable>,
}

#[derive(Debug)]
struct FamilyTable {
    name: String,
    family: Family,
    socket: Socket,
    /// For which numbers of backends there are chains, with and without an address in the key.
    chains: BTreeSet<(bool, u32)>,
    /// UDP ports of overlays.
    wires: BTreeSet<u16>,
    /// How many rules each chain had when the table was made.
    base: BTreeMap<String, usize>,
}

/// All chains of the present network namespace that packets pass, whoever made them.
pub(crate) fn base_chains() -> Result<Vec<BaseChain>, Error> {
    let listed = Socket::open().and_then(|mut socket| list::base_chains(&mut socket));
    listed.map_err(Error::kernel("list nftables chains"))
}

/// Names of the maps for fronts on all addresses, and on one.
fn map_names(with_address: bool) -> (&'static str, &'static str) {
    if with_address { ("fronts_at", "backends_at") } else { ("fronts", "backends") }
}

fn chain_name(with_address: bool, backends: u32) -> String {
    if with_address { format!("a{backends}") } else { format!("b{backends}") }
}

fn concatenation(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

impl Table {
    /// Makes the tables anew, each in one transaction: at no moment is there a table without its rules.
    /// What goes to one of the UDP ports `wires` is not followed as a connection.
    pub(crate) fn open(
        instance: &str,
        bridge: &str,
        subnet: Ipv4Net,
        wires: &BTreeSet<u16>,
    ) -> Result<Self, Error> {
        let mut families = vec![FamilyTable::open(instance, bridge, subnet.into(), wires)?];
        if ipv6::is_spoken() {
            let subnet = ipv6::of_subnet(subnet).into();
            families.push(FamilyTable::open(instance, bridge, subnet, wires)?);
        }
        Ok(Self { families })
    }

    /// Ports of [`Table::untrack`], for the next table.
    pub(crate) fn wires(&self) -> BTreeSet<u16> {
        self.families.first().map(|table| table.wires.clone()).unwrap_or_default()
    }

    /// What goes to this UDP port of a node, and comes to it, is followed as a connection no more.
    pub(crate) fn untrack(&mut self, port: u16) {
        self.families.iter_mut().for_each(|table| table.untrack(port));
    }

    /// How the kernel's tables differ from those with these rules.
    pub(crate) fn faults(&mut self, rules: &[Rule]) -> Vec<String> {
        self.families.iter_mut().flat_map(|table| table.faults(&table.own(rules))).collect()
    }

    /// Takes rules out and puts others in. Connections that are under way keep their backend.
    pub(crate) fn change(&mut self, removed: &[Rule], added: &[Rule]) -> Result<(), Error> {
        for at in 0..self.families.len() {
            let changed = self.families[at].change(removed, added);
            if changed.is_err() {
                for table in &mut self.families[..at] {
                    // What is left of it is found by the audit.
                    let _ = table.change(added, removed);
                }
                return changed;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.families.iter_mut().try_for_each(FamilyTable::remove)
    }
}

impl FamilyTable {
    fn open(
        instance: &str,
        bridge: &str,
        subnet: IpNet,
        wires: &BTreeSet<u16>,
    ) -> Result<Self, Error> {
        let socket = Socket::open().map_err(Error::kernel("open an nftables socket"))?;
        let (name, family) = (format!("skep-{instance}"), Family::of(subnet.addr()));
        let (chains, base) = (BTreeSet::new(), BTreeMap::new());
        let wires = wires.clone();
        let mut table = Self { name, family, socket, chains, wires, base };
        let mut batch = table.socket.batch_for(family);
        batch.remove_table(&table.name);
        batch.add_table(&table.name);
        table.add_maps(&mut batch);
        table.add_base_chains(&mut batch, bridge, subnet);
        table.add_guard(&mut batch);
        table.commit(batch, "make nftables table")?;
        let base = list::rules(&mut table.socket, family, &table.name);
        table.base = base.map_err(Error::kernel("list nftables rules"))?;
        Ok(table)
    }

    fn untrack(&mut self, port: u16) {
        if self.wires.insert(port) {
            let mut batch = self.socket.batch_for(self.family);
            batch.add_member(&self.name, "wires", &port_key(port));
            // Where somebody has removed the table, whoever puts it back knows the port.
            let _ = self.socket.commit(batch);
        }
    }

    /// Those of the rules that are about this version of IP.
    fn own(&self, rules: &[Rule]) -> Vec<Rule> {
        let is_own = |rule: &&Rule| Family::of(rule.front.address) == self.family;
        rules.iter().filter(is_own).cloned().collect()
    }

    fn faults(&mut self, rules: &[Rule]) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = self.compare(rules, &mut faults) {
            faults.push(error.to_string());
        }
        let (family, name) = (self.family.name(), &self.name);
        faults.iter().map(|fault| format!("nftables table {family} {name}: {fault}")).collect()
    }

    fn compare(&mut self, rules: &[Rule], faults: &mut Vec<String>) -> std::io::Result<()> {
        let found = list::rules(&mut self.socket, self.family, &self.name)?;
        let chains = self.chains.iter().map(|(at, count)| (chain_name(*at, *count), 1));
        for (chain, count) in self.base.clone().into_iter().chain(chains) {
            let found = found.get(&chain).copied().unwrap_or(0);
            if found != count {
                faults.push(format!("chain {chain} has {found} rules and should have {count}"));
            }
        }
        let member = |port: &u16| (port_key(*port), list::Target::Data(Vec::new()));
        let wires = self.wires.iter().map(member).collect();
        let found = list::elements(&mut self.socket, self.family, &self.name, "wires")?;
        list::compare("wires", &wires, &found, faults);
        for with_address in [false, true] {
            let (fronts, backends) = map_names(with_address);
            let (mut to_chains, mut to_tasks) = (list::Elements::new(), list::Elements::new());
            let served = rules.iter().filter(|rule| !rule.backends.is_empty());
            for rule in served.filter(|rule| rule.front.names_address() == with_address) {
                let key = front_bytes(rule.front);
                for (slot, (address, port)) in (0u32..).zip(&rule.backends) {
                    let slot = [&key[..], &slot.to_ne_bytes()].concat();
                    let data = socket_bytes(*address, *port);
                    to_tasks.insert(slot, list::Target::Data(data));
                }
                to_chains.insert(key, list::Target::Chain(chain_name(with_address, count(rule))));
            }
            for (map, wanted) in [(fronts, to_chains), (backends, to_tasks)] {
                let found = list::elements(&mut self.socket, self.family, &self.name, map)?;
                list::compare(map, &wanted, &found, faults);
            }
        }
        if self.family == Family::Ipv6 {
            let served = rules.iter().filter(|rule| !rule.backends.is_empty());
            let ports = served.filter_map(|rule| looped(rule.front));
            let ports = ports.map(|port| (port.to_vec(), list::Target::Data(Vec::new())));
            let found = list::elements(&mut self.socket, self.family, &self.name, loopback::SET)?;
            list::compare(loopback::SET, &ports.collect(), &found, faults);
        }
        Ok(())
    }

    fn change(&mut self, removed: &[Rule], added: &[Rule]) -> Result<(), Error> {
        let (removed, added) = (&self.own(removed)[..], &self.own(added)[..]);
        let kept: BTreeSet<_> = added.iter().map(|rule| rule.front).collect();
        let elements =
            |rules: &[Rule]| rules.iter().map(|rule| rule.backends.len() + 1).sum::<usize>();
        if elements(removed) + elements(added) <= ELEMENTS_PER_BATCH_MAX {
            return self.change_at_once(removed, added);
        }
        // A front that changes stays in one transaction with its change.
        for rule in removed.iter().filter(|rule| !kept.contains(&rule.front)) {
            self.change_at_once(std::slice::from_ref(rule), &[])?;
        }
        for rule in added {
            let old = removed.iter().filter(|old| old.front == rule.front).cloned();
            self.change_at_once(&old.collect::<Vec<_>>(), std::slice::from_ref(rule))?;
        }
        Ok(())
    }

    fn change_at_once(&mut self, removed: &[Rule], added: &[Rule]) -> Result<(), Error> {
        let mut batch = self.socket.batch_for(self.family);
        let mut new_chains = BTreeSet::new();
        for rule in added {
            let kind = (rule.front.names_address(), count(rule));
            if kind.1 > 0 && !self.chains.contains(&kind) && new_chains.insert(kind) {
                self.add_chain(&mut batch, kind);
            }
        }
        for rule in removed.iter().filter(|rule| !rule.backends.is_empty()) {
            self.remove_rule(&mut batch, rule);
        }
        for rule in added.iter().filter(|rule| !rule.backends.is_empty()) {
            self.add_rule(&mut batch, rule);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.commit(batch, "change nftables table")?;
        self.chains.extend(new_chains);
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Error> {
        let mut batch = self.socket.batch_for(self.family);
        batch.remove_table(&self.name);
        self.chains.clear();
        self.commit(batch, "remove nftables table")
    }

    fn commit(&mut self, batch: Batch, what: &str) -> Result<(), Error> {
        let what = format!("{what} {}", self.name);
        self.socket.commit(batch).map_err(Error::kernel(what))
    }

    fn add_maps(&self, batch: &mut Batch) {
        for with_address in [false, true] {
            let mut key = vec![INET_PROTO, INET_SERVICE];
            if with_address {
                key.insert(0, self.family.address_type());
            }
            let address_bytes = if with_address { self.family.bytes() } else { 0 };
            let front_bytes = address_bytes + 8;
            let (fronts, backends) = map_names(with_address);
            batch.add_map(
                &self.name,
                &MapSpec {
                    name: fronts,
                    key_type: concatenation(&key),
                    key_bytes: front_bytes,
                    data_type: VERDICT,
                    data_bytes: 0,
                },
            );
            key.push(MARK);
            batch.add_map(
                &self.name,
                &MapSpec {
                    name: backends,
                    key_type: concatenation(&key),
                    key_bytes: front_bytes + 4,
                    data_type: concatenation(&[self.family.address_type(), INET_SERVICE]),
                    data_bytes: self.family.bytes() + 4,
                },
            );
        }
    }

    fn add_base_chains(&self, batch: &mut Batch, bridge: &str, subnet: IpNet) {
        let table = &self.name;
        batch.add_chain(table, "published", None);
        let nat = |hook, priority| Some(Hook { kind: "nat", hook, priority });
        batch.add_chain(table, "prerouting", nat(Hook::PREROUTING, -100));
        batch.add_chain(table, "output", nat(Hook::OUTPUT, -100));
        batch.add_chain(table, "postrouting", nat(Hook::POSTROUTING, 100));
        let raw = Some(Hook { kind: "filter", hook: Hook::PREROUTING, priority: -300 });
        batch.add_chain(table, "guard", raw);
        let to_published = [expression::destination_is_local(), accept_goto("published")];
        batch.add_rule(table, "prerouting", &to_published.concat());
        batch.add_rule(table, "output", &to_published.concat());
        for with_address in [true, false] {
            let key = front_key(self.family, with_address);
            let to_chain = Expression::look_up_verdict(map_names(with_address).0);
            batch.add_rule(table, "published", &[key, vec![to_chain]].concat());
        }
        if let IpNet::V6(subnet) = subnet {
            loopback::add(batch, table, ipv6::first_of(subnet));
        }
        let masquerade =
            |parts: &[Vec<Expression>]| [parts.concat(), vec![Expression::Masquerade]].concat();
        let (from_inside, by_bridge) =
            (expression::source_in(subnet), expression::output_link(bridge, true));
        if self.family == Family::Ipv4 {
            // Out to the world under the host's address.
            let elsewhere = expression::output_link(bridge, false);
            batch.add_rule(table, "postrouting", &masquerade(&[from_inside.clone(), elsewhere]));
            // From the host's own loopback: the answer must come back this way.
            let loopback = expression::source_in(self.family.loopback());
            batch.add_rule(table, "postrouting", &masquerade(&[loopback, by_bridge.clone()]));
        }
        // From a container to itself or a neighbour by a published port: likewise.
        let led = expression::is_destination_nat();
        batch.add_rule(table, "postrouting", &masquerade(&[from_inside, by_bridge, led]));
    }

    fn add_guard(&self, batch: &mut Batch) {
        let table = &self.name;
        batch.add_set(table, "wires", INET_SERVICE, 2);
        for port in &self.wires {
            batch.add_member(table, "wires", &port_key(*port));
        }
        let raw = |hook| Some(Hook { kind: "filter", hook, priority: RAW });
        batch.add_chain(table, "guard", raw(Hook::PREROUTING));
        batch.add_chain(table, "sending", raw(Hook::OUTPUT));
        for chain in ["guard", "sending"] {
            batch.add_rule(table, chain, &expression::untrack_datagrams("wires"));
        }
        if self.family == Family::Ipv4 {
            // route_localnet would let neighbours on a wire reach 127.0.0.0/8: only the host itself may.
            let rule = [
                expression::destination_in(self.family.loopback()),
                expression::input_link_is_not("lo"),
                vec![Expression::Drop],
            ];
            batch.add_rule(table, "guard", &rule.concat());
        }
    }

    fn add_chain(&self, batch: &mut Batch, (with_address, backends): (bool, u32)) {
        let chain = chain_name(with_address, backends);
        batch.add_chain(&self.name, &chain, None);
        let key = front_key(self.family, with_address);
        let address = if with_address { self.family.registers() } else { 0 };
        let slot = expression::FIRST_REGISTER + address + 2;
        let (_, map) = map_names(with_address);
        batch.add_rule(
            &self.name,
            &chain,
            &[
                key,
                vec![
                    Expression::Random { modulus: backends, register: slot },
                    Expression::look_up(map),
                    Expression::DestinationNat(self.family),
                ],
            ]
            .concat(),
        );
    }

    fn add_rule(&self, batch: &mut Batch, rule: &Rule) {
        let with_address = rule.front.names_address();
        let (fronts, backends) = map_names(with_address);
        for (slot, (address, port)) in (0u32..).zip(&rule.backends) {
            let key = [front_bytes(rule.front), slot.to_ne_bytes().to_vec()].concat();
            batch.add_element(&self.name, backends, &key, &socket_bytes(*address, *port));
        }
        let chain = chain_name(with_address, count(rule));
        batch.add_goto(&self.name, fronts, &front_bytes(rule.front), &chain);
        if let Some(port) = looped(rule.front) {
            batch.add_member(&self.name, loopback::SET, &port);
        }
    }

    fn remove_rule(&self, batch: &mut Batch, rule: &Rule) {
        let (fronts, backends) = map_names(rule.front.names_address());
        batch.delete_element(&self.name, fronts, &front_bytes(rule.front));
        if let Some(port) = looped(rule.front) {
            batch.delete_element(&self.name, loopback::SET, &port);
        }
        for (slot, _) in (0u32..).zip(&rule.backends) {
            let key = [front_bytes(rule.front), slot.to_ne_bytes().to_vec()].concat();
            batch.delete_element(&self.name, backends, &key);
        }
    }
}

fn count(rule: &Rule) -> u32 {
    u32::try_from(rule.backends.len()).expect("far fewer backends than 2^32")
}

/// The port as [`loopback::SET`] has it, where the front is one at ::1.
fn looped(front: Front) -> Option<[u8; 8]> {
    let is_looped = front.address == Ipv6Addr::UNSPECIFIED || front.address == Ipv6Addr::LOCALHOST;
    is_looped.then(|| port_bytes(front.protocol, front.port))
}

/// Loads a packet's front into registers, in the order of [`front_bytes`].
fn front_key(family: Family, with_address: bool) -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    if with_address {
        let behind = first + family.registers();
        return vec![
            Expression::destination_address_of(family, first),
            Expression::protocol(behind),
            Expression::destination_port(behind + 1),
        ];
    }
    vec![Expression::protocol(first), Expression::destination_port(first + 1)]
}

/// A front as the maps' keys have it: each part in 32 bits, in network order, padded behind.
fn front_bytes(front: Front) -> Vec<u8> {
    let mut bytes = if front.names_address() { octets(front.address) } else { Vec::new() };
    bytes.extend(port_bytes(front.protocol, front.port));
    bytes
}

/// Protocol and port, as keys have them.
fn port_bytes(protocol: Protocol, port: u16) -> [u8; 8] {
    let protocol = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let [high, low] = port.to_be_bytes();
    [protocol, 0, 0, 0, high, low, 0, 0]
}

fn port_key(port: u16) -> Vec<u8> {
    port.to_be_bytes().to_vec()
}

/// Where connections are led, as maps have it.
fn socket_bytes(address: IpAddr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [&octets(address)[..], &[high, low, 0, 0]].concat()
}

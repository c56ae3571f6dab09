//! A container's own table: virtual addresses of services, and where its questions for names go.
//!
//! ```text
//! table ip skep {                                                      # in the container's namespace
//!   map vips     { type ipv4_addr : verdict }                          # 10.0.1.9 : goto n3
//!   map backends { type ipv4_addr . mark : ipv4_addr }                 # 10.0.1.9 . 0 : 10.0.1.12
//!   chain n3     { dnat to ip daddr . numgen random mod 3 map @backends }
//!   chain s256   { dnat to ip daddr . jhash ip saddr mod 256 map @backends }   # clients stay with their task
//!   set empty    { type ipv4_addr }                                    # services without tasks
//!   chain refuse { type filter hook output; ip daddr @empty goto refused }
//!   chain output { type nat hook output; tcp to 127.0.0.11:53 dnat to 127.0.0.11:PORT; ip daddr vmap @vips }
//!   chain names  { type filter hook output priority raw; udp to 127.0.0.11:53 gets PORT, from 127.0.0.11:PORT gets 53 }
//! }
//! ```
//! A question's ports are written as it passes and nothing of it is remembered: it has a connection of its own otherwise,
//! which costs more than the answer. Where users listen on port 53 themselves, that stays theirs.
//!
//! The container itself picks a backend as it connects, so the backend sees who it was. A table of the same form for IPv6
//! is there where a service has such an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::expression::{self, Expression, octets};
use super::message::{Batch, Family, Hook, MapSpec};
use super::socket::Socket;
use super::{ELEMENTS_PER_BATCH_MAX, MARK, RAW, VERDICT, concatenation, list, sticky};
use crate::{Backends, Error, Services, Update, namespace};

const TABLE: &str = "skep";
const OUTPUT: &str = "output";
const NAMES: &str = "names";
const REFUSE: &str = "refuse";
const REFUSED: &str = "refused";
const EMPTY: &str = "empty";

/// Where containers ask for names.
pub(crate) const NAMES_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const NAMES_PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

type Changes = BTreeMap<IpAddr, Option<Backends>>;

/// Ports of 127.0.0.11 on which names are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamePorts {
    pub(crate) udp: u16,
    pub(crate) tcp: u16,
}

/// The tables of one container.
#[derive(Debug)]
pub(crate) struct Balancer {
    socket: Socket,
    ipv4: Table,
    ipv6: Table,
}

/// The table of one address family.
#[derive(Debug)]
struct Table {
    family: Family,
    holds: Holds,
    chains: BTreeSet<Balancing>,
    names: Option<NamePorts>,
}

/// How a number is chosen for a connection, of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Balancing {
    Random(u32),
    ByClient(u32),
}

impl Balancing {
    fn chain(self) -> String {
        match self {
            Self::Random(count) => format!("n{count}"),
            Self::ByClient(count) => format!("s{count}"),
        }
    }
}

#[derive(Debug, Default)]
enum Holds {
    /// An earlier daemon may have left a table.
    #[default]
    Unknown,
    NoTable,
    Services(BTreeMap<IpAddr, Led>),
}

/// Where a virtual address leads in the table.
#[derive(Clone, Debug)]
enum Led {
    ByClient(Backends),
    /// By slot. Who stays keeps its slot, so that a change writes little.
    AtRandom(Vec<IpAddr>),
}

impl PartialEq<Backends> for Led {
    fn eq(&self, other: &Backends) -> bool {
        match self {
            Self::ByClient(backends) => backends == other,
            Self::AtRandom(slots) => {
                let is_same = slots.len() == other.tasks.len();
                !other.is_sticky && is_same && slots.iter().all(|it| other.tasks.contains(it))
            }
        }
    }
}

impl Led {
    /// To these tasks from now on, and until now as `old` says.
    fn to(backends: Backends, old: Option<&Self>) -> Self {
        match (backends.is_sticky, old) {
            (true, _) => Self::ByClient(backends),
            (false, Some(Self::AtRandom(slots))) => Self::AtRandom(kept(slots, &backends.tasks)),
            (false, _) => Self::AtRandom(backends.tasks.into_iter().collect()),
        }
    }

    /// How a slot is chosen, and who is in each; nothing where there is nobody.
    fn slots(&self) -> Option<(Balancing, Vec<IpAddr>)> {
        let (balancing, tasks): (fn(u32) -> Balancing, _) = match self {
            Self::ByClient(backends) => {
                let tasks: Vec<_> = backends.tasks.iter().map(|task| (*task, *task)).collect();
                (Balancing::ByClient, sticky::share(&tasks))
            }
            Self::AtRandom(slots) => (Balancing::Random, slots.clone()),
        };
        let count = u32::try_from(tasks.len()).expect("far fewer than 2^32");
        (count > 0).then(|| (balancing(count), tasks))
    }
}

/// Slots for these tasks where those were before: newcomers take the places of who has left, then the last ones do.
fn kept(slots: &[IpAddr], tasks: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let known: BTreeSet<_> = slots.iter().copied().collect();
    let mut newcomers = tasks.difference(&known).copied();
    let (mut slots, mut at) = (slots.to_vec(), 0);
    while at < slots.len() {
        match tasks.contains(&slots[at]).then_some(slots[at]).or_else(|| newcomers.next()) {
            Some(task) => {
                slots[at] = task;
                at += 1;
            }
            None => drop(slots.swap_remove(at)),
        }
    }
    slots.extend(newcomers);
    slots
}

impl Balancer {
    /// For the namespace at `netns`. Tables that are there stay as they are for now.
    pub(crate) fn open(netns: &Path) -> Result<Self, Error> {
        let socket = namespace::within(netns, || {
            Socket::open().map_err(Error::kernel("open an nftables socket"))
        })?;
        Ok(Self { socket, ipv4: Table::new(Family::Ipv4), ipv6: Table::new(Family::Ipv6) })
    }

    /// Balances over these services and no others. Connections that are under way keep their backend.
    pub(crate) fn balance(&mut self, services: Services) -> Result<(), Error> {
        let (ipv4, ipv6) = services.into_iter().partition(|(address, _)| address.is_ipv4());
        self.ipv4.balance(&mut self.socket, ipv4)?;
        if ipv6.is_empty() && !matches!(self.ipv6.holds, Holds::Services(_)) {
            self.ipv6.make_sure_of_nothing(&mut self.socket);
            return Ok(());
        }
        self.ipv6.balance(&mut self.socket, ipv6)
    }

    /// Changes what is balanced over at these addresses; nothing where there is no value. Answers `false` when it is not
    /// known what the tables hold: then all of it has to be said.
    pub(crate) fn change(&mut self, changes: &Changes) -> Result<bool, Error> {
        let (ipv4, ipv6): (Changes, Changes) =
            changes.clone().into_iter().partition(|(address, _)| address.is_ipv4());
        Ok(self.ipv4.change_known(&mut self.socket, ipv4)?
            && self.ipv6.change_known(&mut self.socket, ipv6)?)
    }

    /// Leads questions for names to these ports. The services stay as they are, also those of an earlier daemon.
    pub(crate) fn answer_names(&mut self, names: NamePorts) -> Result<(), Error> {
        self.ipv4.names = Some(names);
        let mut batch = self.socket.batch();
        // There is none in the table of a daemon that led questions otherwise.
        add_names_chain(&mut batch);
        for chain in [OUTPUT, NAMES] {
            batch.flush_chain(TABLE, chain);
        }
        self.ipv4.add_output_rules(&mut batch);
        self.ipv4.commit(&mut self.socket, batch)
    }

    /// How the kernel's tables differ from what was last asked for.
    pub(crate) fn faults(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        for table in [&self.ipv4, &self.ipv6] {
            if let Err(error) = table.compare(&mut self.socket, &mut faults) {
                faults.push(error.to_string());
            }
        }
        faults
    }

    /// Makes the tables anew.
    pub(crate) fn renew(&mut self) -> Result<(), Error> {
        self.ipv4.renew(&mut self.socket)?;
        self.ipv6.renew(&mut self.socket)
    }
}

impl Table {
    fn new(family: Family) -> Self {
        Self { family, holds: Holds::Unknown, chains: BTreeSet::new(), names: None }
    }

    /// Removes what an earlier daemon may have left. A kernel without this family refuses, and has nothing.
    fn make_sure_of_nothing(&mut self, socket: &mut Socket) {
        if matches!(self.holds, Holds::Unknown) {
            let mut batch = socket.batch_for(self.family);
            batch.remove_table(TABLE);
            let _ = socket.commit(batch);
            self.holds = Holds::NoTable;
        }
    }

    fn compare(&self, socket: &mut Socket, faults: &mut Vec<String>) -> std::io::Result<()> {
        // Before the first change the table is an earlier daemon's.
        let Holds::Services(known) = &self.holds else { return Ok(()) };
        let (mut vips, mut backends) = (list::Elements::new(), list::Elements::new());
        let mut empty = list::Elements::new();
        for (address, behind) in known {
            let Some((balancing, slots)) = behind.slots() else {
                empty.insert(octets(*address), list::Target::Data(Vec::new()));
                continue;
            };
            vips.insert(octets(*address), list::Target::Chain(balancing.chain()));
            for (slot, task) in (0u32..).zip(slots) {
                backends.insert(slot_key(*address, slot), list::Target::Data(octets(task)));
            }
        }
        let found = list::rules(socket, self.family, TABLE)?;
        let chains = self.chains.iter().map(|balancing| balancing.chain());
        let names = self.names.map(|_| NAMES.to_owned());
        for chain in chains.chain([OUTPUT, REFUSE, REFUSED].map(str::to_owned)).chain(names) {
            if !found.contains_key(&chain) {
                faults.push(format!("chain {chain} has no rules"));
            }
        }
        for (map, wanted) in [("vips", vips), ("backends", backends), (EMPTY, empty)] {
            let found = list::elements(socket, self.family, TABLE, map)?;
            list::compare(map, &wanted, &found, faults);
        }
        Ok(())
    }

    /// Makes the table anew, if there is to be one.
    fn renew(&mut self, socket: &mut Socket) -> Result<(), Error> {
        match std::mem::take(&mut self.holds) {
            Holds::Services(known) => self.rebuild(socket, known),
            other => {
                self.holds = other;
                Ok(())
            }
        }
    }

    fn balance(&mut self, socket: &mut Socket, services: Services) -> Result<(), Error> {
        let Holds::Services(known) = std::mem::take(&mut self.holds) else {
            let led = services.into_iter().map(|(it, backends)| (it, Led::to(backends, None)));
            return self.rebuild(socket, led.collect());
        };
        let changes = Update::Whole(services).changes(&known);
        self.change(socket, known, changes)
    }

    fn change_known(&mut self, socket: &mut Socket, changes: Changes) -> Result<bool, Error> {
        if changes.is_empty() {
            return Ok(true);
        }
        let Holds::Services(known) = &mut self.holds else { return Ok(false) };
        let known = std::mem::take(known);
        self.change(socket, known, changes)?;
        Ok(true)
    }

    fn rebuild(&mut self, socket: &mut Socket, led: BTreeMap<IpAddr, Led>) -> Result<(), Error> {
        let mut batch = socket.batch_for(self.family);
        batch.remove_table(TABLE);
        batch.add_table(TABLE);
        let (address, bytes) = (self.family.address_type(), self.family.bytes());
        for (name, key, key_bytes, data_type, data_bytes) in [
            ("vips", &[address][..], bytes, VERDICT, 0),
            ("backends", &[address, MARK][..], bytes + 4, address, bytes),
        ] {
            let key_type = concatenation(key);
            batch.add_map(TABLE, &MapSpec { name, key_type, key_bytes, data_type, data_bytes });
        }
        let hook = Hook { kind: "nat", hook: Hook::OUTPUT, priority: -100 };
        batch.add_chain(TABLE, OUTPUT, Some(hook));
        if self.names.is_some() {
            add_names_chain(&mut batch);
        }
        self.add_output_rules(&mut batch);
        batch.add_set(TABLE, EMPTY, address, bytes);
        self.add_refusing_rules(&mut batch);
        self.chains.clear();
        self.commit(socket, batch)?;
        let all = led.into_iter().map(|(address, led)| (address, Some(led)));
        self.write(socket, BTreeMap::new(), all)
    }

    fn add_output_rules(&self, batch: &mut Batch) {
        if let Some(names) = self.names {
            batch.add_rule(TABLE, OUTPUT, &lead_conversation(names.tcp));
            batch.add_rule(TABLE, NAMES, &lead_question(names.udp));
            batch.add_rule(TABLE, NAMES, &lead_answer(names.udp));
        }
        let destination =
            Expression::destination_address_of(self.family, expression::FIRST_REGISTER);
        batch.add_rule(TABLE, OUTPUT, &[destination, Expression::look_up_verdict("vips")]);
    }

    /// Chains for translation cannot refuse: the connection that the refusal belongs to is not there yet.
    fn add_refusing_rules(&self, batch: &mut Batch) {
        let hook = Hook { kind: "filter", hook: Hook::OUTPUT, priority: 0 };
        batch.add_chain(TABLE, REFUSED, None);
        batch.add_chain(TABLE, REFUSE, Some(hook));
        for rule in expression::refuse(self.family) {
            batch.add_rule(TABLE, REFUSED, &rule);
        }
        let to_nobody = [
            Expression::destination_address_of(self.family, expression::FIRST_REGISTER),
            Expression::Member { set: EMPTY, is_member: true },
            Expression::Goto { chain: REFUSED },
        ];
        batch.add_rule(TABLE, REFUSE, &to_nobody);
    }

    fn change(
        &mut self,
        socket: &mut Socket,
        known: BTreeMap<IpAddr, Led>,
        changes: Changes,
    ) -> Result<(), Error> {
        let led = |(address, new): (IpAddr, Option<Backends>)| {
            (address, new.map(|new| Led::to(new, known.get(&address))))
        };
        let changes: Vec<_> = changes.into_iter().map(led).collect();
        self.write(socket, known, changes)
    }

    fn write(
        &mut self,
        socket: &mut Socket,
        mut known: BTreeMap<IpAddr, Led>,
        changes: impl IntoIterator<Item = (IpAddr, Option<Led>)>,
    ) -> Result<(), Error> {
        let mut batch = socket.batch_for(self.family);
        let mut elements = 0;
        for (address, new) in changes {
            let old = known.remove(&address);
            elements += self.replace(&mut batch, address, old.as_ref(), new.as_ref());
            known.extend(new.map(|new| (address, new)));
            if elements > ELEMENTS_PER_BATCH_MAX {
                self.commit(socket, batch)?;
                batch = socket.batch_for(self.family);
                elements = 0;
            }
        }
        if !batch.is_empty() {
            self.commit(socket, batch)?;
        }
        self.holds = Holds::Services(known);
        Ok(())
    }

    /// Answers with how many elements that changes.
    fn replace(
        &mut self,
        batch: &mut Batch,
        address: IpAddr,
        old: Option<&Led>,
        new: Option<&Led>,
    ) -> usize {
        let key = octets(address);
        let (old, new) = (old.map(Led::slots), new.map(Led::slots));
        if old == Some(None) {
            batch.delete_element(TABLE, EMPTY, &key);
        }
        if new == Some(None) {
            batch.add_member(TABLE, EMPTY, &key);
        }
        let (old, new) = (old.flatten(), new.flatten());
        let chain = |of: &Option<(Balancing, Vec<IpAddr>)>| of.as_ref().map(|(chain, _)| *chain);
        let (from, to) = (chain(&old), chain(&new));
        let (old, new) = (old.unzip().1.unwrap_or_default(), new.unzip().1.unwrap_or_default());
        if from != to && from.is_some() {
            batch.delete_element(TABLE, "vips", &key);
        }
        let mut elements = 2;
        for (slot, _) in (0u32..).zip(&old).filter(|(at, it)| slot_of(&new, *at) != Some(it)) {
            batch.delete_element(TABLE, "backends", &slot_key(address, slot));
            elements += 1;
        }
        for (slot, task) in (0u32..).zip(&new).filter(|(at, it)| slot_of(&old, *at) != Some(it)) {
            batch.add_element(TABLE, "backends", &slot_key(address, slot), &octets(*task));
            elements += 1;
        }
        if let Some(to) = to.filter(|_| from != to) {
            if self.chains.insert(to) {
                self.add_chain(batch, to);
            }
            batch.add_goto(TABLE, "vips", &key, &to.chain());
        }
        elements
    }

    fn add_chain(&self, batch: &mut Batch, balancing: Balancing) {
        let (family, first) = (self.family, expression::FIRST_REGISTER);
        let behind = first + family.registers();
        let choice = match balancing {
            Balancing::Random(modulus) => vec![Expression::Random { modulus, register: behind }],
            Balancing::ByClient(modulus) => expression::client_number(family, modulus, behind),
        };
        let rule = [
            vec![Expression::destination_address_of(family, first)],
            choice,
            vec![Expression::look_up("backends"), Expression::DestinationNatAddress(family)],
        ];
        batch.add_chain(TABLE, &balancing.chain(), None);
        batch.add_rule(TABLE, &balancing.chain(), &rule.concat());
    }

    fn commit(&mut self, socket: &mut Socket, batch: Batch) -> Result<(), Error> {
        let committed = socket.commit(batch);
        if committed.is_err() {
            // Whatever is there now, the next change begins anew.
            (self.holds, self.chains) = (Holds::Unknown, BTreeSet::new());
        }
        committed.map_err(Error::kernel("change a container's nftables table"))
    }
}

fn slot_of(slots: &[IpAddr], slot: u32) -> Option<&IpAddr> {
    slots.get(usize::try_from(slot).ok()?)
}

/// Slot numbers are marks: in the host's order.
fn slot_key(address: IpAddr, slot: u32) -> Vec<u8> {
    [&octets(address)[..], &slot.to_ne_bytes()].concat()
}

fn add_names_chain(batch: &mut Batch) {
    let hook = Hook { kind: "filter", hook: Hook::OUTPUT, priority: RAW };
    batch.add_chain(TABLE, NAMES, Some(hook));
}

fn is(value: &[u8]) -> Expression {
    let register = expression::FIRST_REGISTER;
    Expression::Compare { register, equal: true, value: value.to_vec() }
}

fn load(register: u32, value: &[u8]) -> Expression {
    Expression::Load { register, value: value.to_vec() }
}

fn lead_conversation(port: u16) -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    vec![
        Expression::destination_address(first),
        is(&NAMES_ADDRESS.octets()),
        Expression::protocol(first),
        is(&[TCP]),
        Expression::destination_port(first),
        is(&NAMES_PORT.to_be_bytes()),
        load(first, &NAMES_ADDRESS.octets()),
        load(first + 1, &port.to_be_bytes()),
        Expression::DestinationNat(Family::Ipv4),
    ]
}

fn lead_question(port: u16) -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    vec![
        Expression::destination_address(first),
        is(&NAMES_ADDRESS.octets()),
        Expression::protocol(first),
        is(&[UDP]),
        Expression::destination_port(first),
        is(&NAMES_PORT.to_be_bytes()),
        load(first, &port.to_be_bytes()),
        Expression::SetDestinationPort { register: first },
        Expression::Untracked,
    ]
}

fn lead_answer(port: u16) -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    vec![
        Expression::source_address_of(Family::Ipv4, first),
        is(&NAMES_ADDRESS.octets()),
        Expression::protocol(first),
        is(&[UDP]),
        Expression::source_port(first),
        is(&port.to_be_bytes()),
        load(first, &NAMES_PORT.to_be_bytes()),
        Expression::SetSourcePort { register: first },
        Expression::Untracked,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|last| IpAddr::from([10, 0, 1, *last])).collect()
    }

    #[test]
    fn who_stays_behind_a_virtual_address_keeps_its_slot() {
        for (before, now, after) in [
            (&[1, 2, 3][..], &[1, 2, 3][..], &[1, 2, 3][..]),
            (&[2, 3, 4], &[1, 3, 4], &[1, 3, 4]),
            (&[4, 2, 3], &[2, 3], &[3, 2]),
            (&[1, 2, 3], &[0, 1, 2, 3], &[1, 2, 3, 0]),
            (&[1, 2, 3, 4], &[2], &[2]),
            (&[1, 2], &[], &[]),
            (&[], &[1], &[1]),
        ] {
            let slots = kept(&tasks(before), &tasks(now).into_iter().collect());
            assert_eq!(slots, tasks(after), "{before:?} -> {now:?}");
            assert!(Led::AtRandom(slots) == tasks(now).into_iter().collect::<Backends>());
        }
    }
}

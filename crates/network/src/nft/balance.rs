//! A container's own table: virtual addresses of services, and where its questions for names go.
//!
//! ```text
//! table ip skep {                                                      # in the container's namespace
//!   map vips     { type ipv4_addr : verdict }                          # 10.0.1.9 : goto n3
//!   map backends { type ipv4_addr . mark : ipv4_addr }                 # 10.0.1.9 . 0 : 10.0.1.12
//!   chain n3     { dnat to ip daddr . numgen random mod 3 map @backends }
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

use super::expression::{self, Expression};
use super::message::{Batch, Family, Hook, MapSpec};
use super::socket::Socket;
use super::{ELEMENTS_PER_BATCH_MAX, IPV4, IPV6, MARK, VERDICT, concatenation, list};
use crate::{Error, Update, namespace};

const TABLE: &str = "skep";
const OUTPUT: &str = "output";
const NAMES: &str = "names";
/// Before connections are followed.
const RAW: i32 = -300;

/// Where containers ask for names.
pub(crate) const NAMES_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const NAMES_PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

type Services = BTreeMap<IpAddr, BTreeSet<IpAddr>>;
type Changes = BTreeMap<IpAddr, Option<BTreeSet<IpAddr>>>;

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
    chains: BTreeSet<u32>,
    names: Option<NamePorts>,
}

#[derive(Debug, Default)]
enum Holds {
    /// An earlier daemon may have left a table.
    #[default]
    Unknown,
    NoTable,
    Services(Services),
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
        for (address, tasks) in known.iter().filter(|(_, tasks)| !tasks.is_empty()) {
            let chain = list::Target::Chain(format!("n{}", tasks.len()));
            vips.insert(octets(*address), chain);
            for (slot, task) in (0u32..).zip(tasks) {
                backends.insert(slot_key(*address, slot), list::Target::Data(octets(*task)));
            }
        }
        let found = list::rules(socket, self.family, TABLE)?;
        let chains = self.chains.iter().map(|count| format!("n{count}"));
        let names = self.names.map(|_| NAMES.to_owned());
        for chain in chains.chain([OUTPUT.to_owned()]).chain(names) {
            if !found.contains_key(&chain) {
                faults.push(format!("chain {chain} has no rules"));
            }
        }
        for (map, wanted) in [("vips", vips), ("backends", backends)] {
            let found = list::elements(socket, self.family, TABLE, map)?;
            list::compare(map, &wanted, &found, faults);
        }
        Ok(())
    }

    /// Makes the table anew, if there is to be one.
    fn renew(&mut self, socket: &mut Socket) -> Result<(), Error> {
        match std::mem::take(&mut self.holds) {
            Holds::Services(services) => self.rebuild(socket, services),
            other => {
                self.holds = other;
                Ok(())
            }
        }
    }

    fn balance(&mut self, socket: &mut Socket, services: Services) -> Result<(), Error> {
        let Holds::Services(known) = std::mem::take(&mut self.holds) else {
            return self.rebuild(socket, services);
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

    fn rebuild(&mut self, socket: &mut Socket, services: Services) -> Result<(), Error> {
        let mut batch = socket.batch_for(self.family);
        batch.remove_table(TABLE);
        batch.add_table(TABLE);
        let (address, bytes) = match self.family {
            Family::Ipv4 => (IPV4, 4),
            Family::Ipv6 => (IPV6, 16),
        };
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
        self.chains.clear();
        self.commit(socket, batch)?;
        let changes = Update::Whole(services).changes(&Services::new());
        self.change(socket, Services::new(), changes)
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

    fn change(
        &mut self,
        socket: &mut Socket,
        mut known: Services,
        changes: Changes,
    ) -> Result<(), Error> {
        let mut batch = socket.batch_for(self.family);
        let mut elements = 0;
        for (address, new) in changes {
            let old = known.remove(&address);
            elements += old.iter().chain(&new).map(BTreeSet::len).sum::<usize>() + 2;
            if let Some(old) = old {
                withdraw(&mut batch, address, &old);
            }
            if let Some(new) = new {
                self.offer(&mut batch, address, &new);
                known.insert(address, new);
            }
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

    fn offer(&mut self, batch: &mut Batch, address: IpAddr, backends: &BTreeSet<IpAddr>) {
        let count = u32::try_from(backends.len()).expect("far fewer backends than 2^32");
        if count == 0 {
            return;
        }
        let chain = format!("n{count}");
        if self.chains.insert(count) {
            batch.add_chain(TABLE, &chain, None);
            let first = expression::FIRST_REGISTER;
            let behind = match self.family {
                Family::Ipv4 => first + 1,
                Family::Ipv6 => first + 4,
            };
            batch.add_rule(
                TABLE,
                &chain,
                &[
                    Expression::destination_address_of(self.family, first),
                    Expression::Random { modulus: count, register: behind },
                    Expression::look_up("backends"),
                    Expression::DestinationNatAddress(self.family),
                ],
            );
        }
        for (slot, backend) in (0u32..).zip(backends) {
            batch.add_element(TABLE, "backends", &slot_key(address, slot), &octets(*backend));
        }
        batch.add_goto(TABLE, "vips", &octets(address), &chain);
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

fn withdraw(batch: &mut Batch, address: IpAddr, backends: &BTreeSet<IpAddr>) {
    if backends.is_empty() {
        return;
    }
    batch.delete_element(TABLE, "vips", &octets(address));
    for (slot, _) in (0u32..).zip(backends) {
        batch.delete_element(TABLE, "backends", &slot_key(address, slot));
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
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
        Expression::DestinationNat,
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
        Expression::source_address(first),
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

//! A container's own table: virtual addresses of services, and where its questions for names go.
//!
//! ```text
//! table ip skep {                                                      # in the container's namespace
//!   map vips     { type ipv4_addr : verdict }                          # 10.0.1.9 : goto n3
//!   map backends { type ipv4_addr . mark : ipv4_addr }                 # 10.0.1.9 . 0 : 10.0.1.12
//!   chain n3     { dnat to ip daddr . numgen random mod 3 map @backends }
//!   chain output { type nat hook output; 127.0.0.11:53 dnat to 127.0.0.11:PORT; ip daddr vmap @vips }
//! }
//! ```
//! The container itself picks a backend as it connects, so the backend sees who it was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use super::expression::{self, Expression};
use super::message::{Batch, Hook, MapSpec};
use super::socket::Socket;
use super::{ELEMENTS_PER_BATCH_MAX, IPV4, MARK, VERDICT, concatenation, list};
use crate::{Error, namespace};

const TABLE: &str = "skep";
const OUTPUT: &str = "output";

/// Where containers ask for names.
pub(crate) const NAMES_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const NAMES_PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

type Services = BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>>;

/// Ports of 127.0.0.11 on which names are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamePorts {
    pub(crate) udp: u16,
    pub(crate) tcp: u16,
}

/// The table of one container.
#[derive(Debug)]
pub(crate) struct Balancer {
    socket: Socket,
    /// What the table holds; unknown before the first change, as an earlier daemon may have left one.
    known: Option<Services>,
    chains: BTreeSet<u32>,
    names: Option<NamePorts>,
}

impl Balancer {
    /// For the namespace at `netns`. A table that is there stays as it is for now.
    pub(crate) fn open(netns: &Path) -> Result<Self, Error> {
        let socket = namespace::within(netns, || {
            Socket::open().map_err(Error::kernel("open an nftables socket"))
        })?;
        Ok(Self { socket, known: None, chains: BTreeSet::new(), names: None })
    }

    /// Balances over these services and no others. Connections that are under way keep their backend.
    pub(crate) fn balance(&mut self, services: Services) -> Result<(), Error> {
        let Some(known) = self.known.take() else { return self.rebuild(services) };
        let result = self.change(&known, &services);
        self.known = result.is_ok().then_some(services);
        result
    }

    /// Leads questions for names to these ports. The services stay as they are, also those of an earlier daemon.
    pub(crate) fn answer_names(&mut self, names: NamePorts) -> Result<(), Error> {
        self.names = Some(names);
        let mut batch = self.socket.batch();
        batch.flush_chain(TABLE, OUTPUT);
        self.add_output_rules(&mut batch);
        self.commit(batch)
    }

    /// How the kernel's table differs from what was last asked for.
    pub(crate) fn faults(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = self.compare(&mut faults) {
            faults.push(error.to_string());
        }
        faults
    }

    /// Makes the table anew.
    pub(crate) fn renew(&mut self) -> Result<(), Error> {
        match self.known.take() {
            Some(services) => self.rebuild(services),
            None => Ok(()),
        }
    }

    fn compare(&mut self, faults: &mut Vec<String>) -> std::io::Result<()> {
        // Before the first change the table is an earlier daemon's.
        let Some(known) = &self.known else { return Ok(()) };
        let (mut vips, mut backends) = (list::Elements::new(), list::Elements::new());
        for (address, tasks) in known.iter().filter(|(_, tasks)| !tasks.is_empty()) {
            let chain = list::Target::Chain(format!("n{}", tasks.len()));
            vips.insert(address.octets().to_vec(), chain);
            for (slot, task) in (0u32..).zip(tasks) {
                let data = list::Target::Data(task.octets().to_vec());
                backends.insert(slot_key(*address, slot), data);
            }
        }
        let found = list::rules(&mut self.socket, TABLE)?;
        let chains = self.chains.iter().map(|count| format!("n{count}"));
        for chain in chains.chain([OUTPUT.to_owned()]) {
            if !found.contains_key(&chain) {
                faults.push(format!("chain {chain} has no rules"));
            }
        }
        for (map, wanted) in [("vips", vips), ("backends", backends)] {
            let found = list::elements(&mut self.socket, TABLE, map)?;
            list::compare(map, &wanted, &found, faults);
        }
        Ok(())
    }

    fn rebuild(&mut self, services: Services) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        batch.add_table(TABLE);
        batch.delete_table(TABLE);
        batch.add_table(TABLE);
        for (name, key, data_type, data_bytes) in
            [("vips", &[IPV4][..], VERDICT, 0), ("backends", &[IPV4, MARK][..], IPV4, 4)]
        {
            let (key_type, key_bytes) = (concatenation(key), 4 * key.len());
            batch.add_map(TABLE, &MapSpec { name, key_type, key_bytes, data_type, data_bytes });
        }
        let hook = Hook { kind: "nat", hook: Hook::OUTPUT, priority: -100 };
        batch.add_chain(TABLE, OUTPUT, Some(hook));
        self.add_output_rules(&mut batch);
        self.chains.clear();
        self.commit(batch)?;
        let result = self.change(&Services::new(), &services);
        self.known = result.is_ok().then_some(services);
        result
    }

    fn add_output_rules(&self, batch: &mut Batch) {
        if let Some(names) = self.names {
            for (protocol, port) in [(UDP, names.udp), (TCP, names.tcp)] {
                batch.add_rule(TABLE, OUTPUT, &lead_names(protocol, port));
            }
        }
        let first = expression::FIRST_REGISTER;
        let look_up = [Expression::destination_address(first), Expression::look_up_verdict("vips")];
        batch.add_rule(TABLE, OUTPUT, &look_up);
    }

    fn change(&mut self, known: &Services, services: &Services) -> Result<(), Error> {
        let differs = |address: &Ipv4Addr| known.get(address) != services.get(address);
        let touched: BTreeSet<_> = known.keys().chain(services.keys()).copied().collect();
        let mut batch = self.socket.batch();
        let mut elements = 0;
        for address in touched.into_iter().filter(differs) {
            let (old, new) = (known.get(&address), services.get(&address));
            elements += old.map_or(0, BTreeSet::len) + new.map_or(0, BTreeSet::len) + 2;
            if let Some(old) = old {
                withdraw(&mut batch, address, old);
            }
            if let Some(new) = new {
                self.offer(&mut batch, address, new);
            }
            if elements > ELEMENTS_PER_BATCH_MAX {
                self.commit(batch)?;
                batch = self.socket.batch();
                elements = 0;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.commit(batch) }
    }

    fn offer(&mut self, batch: &mut Batch, address: Ipv4Addr, backends: &BTreeSet<Ipv4Addr>) {
        let count = u32::try_from(backends.len()).expect("far fewer backends than 2^32");
        if count == 0 {
            return;
        }
        let chain = format!("n{count}");
        if self.chains.insert(count) {
            batch.add_chain(TABLE, &chain, None);
            let first = expression::FIRST_REGISTER;
            batch.add_rule(
                TABLE,
                &chain,
                &[
                    Expression::destination_address(first),
                    Expression::Random { modulus: count, register: first + 1 },
                    Expression::look_up("backends"),
                    Expression::DestinationNatAddress,
                ],
            );
        }
        for (slot, backend) in (0u32..).zip(backends) {
            batch.add_element(TABLE, "backends", &slot_key(address, slot), &backend.octets());
        }
        batch.add_goto(TABLE, "vips", &address.octets(), &chain);
    }

    fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        let committed = self.socket.commit(batch);
        if committed.is_err() {
            // Whatever is there now, the next change begins anew.
            (self.known, self.chains) = (None, BTreeSet::new());
        }
        committed.map_err(Error::kernel("change a container's nftables table"))
    }
}

fn withdraw(batch: &mut Batch, address: Ipv4Addr, backends: &BTreeSet<Ipv4Addr>) {
    if backends.is_empty() {
        return;
    }
    batch.delete_element(TABLE, "vips", &address.octets());
    for (slot, _) in (0u32..).zip(backends) {
        batch.delete_element(TABLE, "backends", &slot_key(address, slot));
    }
}

/// Slot numbers are marks: in the host's order.
fn slot_key(address: Ipv4Addr, slot: u32) -> Vec<u8> {
    [&address.octets()[..], &slot.to_ne_bytes()].concat()
}

fn lead_names(protocol: u8, port: u16) -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    let is =
        |value: &[u8]| Expression::Compare { register: first, equal: true, value: value.to_vec() };
    vec![
        Expression::protocol(first),
        is(&[protocol]),
        Expression::destination_address(first),
        is(&NAMES_ADDRESS.octets()),
        Expression::destination_port(first),
        is(&NAMES_PORT.to_be_bytes()),
        Expression::Load { register: first, value: NAMES_ADDRESS.octets().to_vec() },
        Expression::Load { register: first + 1, value: port.to_be_bytes().to_vec() },
        Expression::DestinationNat,
    ]
}

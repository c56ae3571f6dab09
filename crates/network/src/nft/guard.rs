//! Holds containers to the addresses they were given, at the bridge ports they are plugged into.
//!
//! ```text
//! table bridge skep-<name> {
//!   set ports { type ifname }
//!   set whole { type ifname . ether_addr . ipv4_addr }
//!   set whole6 { type ifname . ether_addr . ipv6_addr }
//!   set macs  { type ifname . ether_addr }
//!   set ipv4  { type ifname . ipv4_addr }
//!   set ipv6  { type ifname . ipv6_addr }
//!   chain prerouting { iifname @ports goto guarded }
//!   set alone { type ifname }; set own { type ifname . ifname }
//!   chain apart      { hook forward; iifname . oifname @own accept; iifname @alone drop; oifname @alone drop }
//!   chain guarded    { @whole accept; not icmpv6 @whole6 accept; ether saddr, arp senders, ip and ip6 sources must be members; no advertised routers, no VLAN tags }
//! }
//! ```
//! A container's own address may be used from its own port only: nobody speaks for a neighbour or for the gateway. Nearly
//! all packets are right in all parts, so one look at `whole` or `whole6` lets them through. Who is alone reaches the
//! bridge and nobody behind its other ports; overlays have nobody of that kind, and no such chain.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::concatenation;
use super::expression::{self, Expression, accept_goto, link_bytes};
use super::list::{self, Elements, Target};
use super::message::{Batch, Hook, LINK_NAME as IFNAME, NFPROTO_BRIDGE};
use super::socket::Socket;
use crate::{Error, namespace};

/// The kernel's numbers for data types that `nft list` knows by name (nft userspace, datatype.h).
const ETHER: u32 = 9;
const IPV4: u32 = 7;
const IPV6: u32 = 8;
/// Bytes of keys: each part is padded to whole registers.
const IFNAME_BYTES: usize = 16;
const MAC_BYTES: usize = 8;

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Ethernet types (linux/if_ether.h).
const ARP: u16 = 0x0806;
const IP: u16 = 0x0800;
const IP6: u16 = 0x86dd;
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];

/// ICMPv6 messages that change where neighbours send: router advertisement and redirect.
const ICMPV6: u8 = 58;
const ICMPV6_FORBIDDEN: [u8; 2] = [134, 137];
const ICMPV6_ADVERTISEMENT: u8 = 136;

/// Before bridges look at a frame.
const PRIORITY: i32 = -300;

/// Who is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) mac: [u8; 6],
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether no frame passes between it and another port.
    pub(crate) is_alone: bool,
}

/// The guard of the bridges in one network namespace.
#[derive(Debug)]
pub(crate) struct Guard {
    name: String,
    socket: Socket,
    tenants: BTreeMap<String, Tenant>,
    is_made: bool,
    /// Whether some may be alone.
    parts: bool,
}

impl Guard {
    /// Of the namespace this thread is in. A table that is there stays as it is until the first change.
    pub(crate) fn open(name: &str) -> Result<Self, Error> {
        let socket = Socket::open().map_err(Error::kernel("open an nftables socket"))?;
        let (name, tenants) = (format!("skep-{name}"), BTreeMap::new());
        Ok(Self { name, socket, tenants, is_made: false, parts: true })
    }

    /// Of the overlay's namespace at `path`.
    pub(crate) fn within(path: &Path) -> Result<Self, Error> {
        Ok(Self { parts: false, ..namespace::within(path, || Self::open("guard"))? })
    }

    /// Watches these ports and no others.
    pub(crate) fn set(&mut self, tenants: BTreeMap<String, Tenant>) -> Result<(), Error> {
        self.tenants = tenants;
        self.rebuild()
    }

    /// Watches one more port, before anything can come through it.
    pub(crate) fn admit(&mut self, port: &str, tenant: Tenant) -> Result<(), Error> {
        let known = self.tenants.insert(port.to_owned(), tenant.clone());
        if !self.is_made || known.is_some() {
            return self.rebuild();
        }
        let mut batch = self.socket.batch().of_family(NFPROTO_BRIDGE);
        self.add_tenant(&mut batch, port, &tenant);
        match self.socket.commit(batch) {
            Ok(()) => Ok(()),
            // Somebody has removed the table.
            Err(_) => self.rebuild(),
        }
    }

    /// The port is gone.
    pub(crate) fn dismiss(&mut self, port: &str) -> Result<(), Error> {
        let Some(tenant) = self.tenants.remove(port) else { return Ok(()) };
        if !self.is_made {
            return Ok(());
        }
        let mut batch = self.socket.batch().of_family(NFPROTO_BRIDGE);
        for (set, key) in members(port, &tenant) {
            batch.delete_element(&self.name, set, &key);
        }
        match self.socket.commit(batch) {
            Ok(()) => Ok(()),
            Err(_) => self.rebuild(),
        }
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        let mut batch = self.socket.batch().of_family(NFPROTO_BRIDGE);
        batch.remove_table(&self.name);
        self.is_made = false;
        self.socket.commit_to(&self.name, batch)
    }

    /// How the kernel's table differs from what it is to be; with `mends`, it is made anew.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn audit(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        if !self.is_made {
            return Ok(Vec::new());
        }
        let mut faults = Vec::new();
        if let Err(error) = self.compare(&mut faults) {
            faults.push(error.to_string());
        }
        if mends && !faults.is_empty() {
            self.rebuild()?;
        }
        Ok(faults
            .iter()
            .map(|fault| format!("nftables table bridge {}: {fault}", self.name))
            .collect())
    }

    fn compare(&mut self, faults: &mut Vec<String>) -> std::io::Result<()> {
        let found = list::rules_of(&mut self.socket, NFPROTO_BRIDGE, &self.name)?;
        let apart = self.parts.then(|| ("apart", apart().len()));
        for (chain, count) in
            [("prerouting", 1), ("guarded", rules().len())].into_iter().chain(apart)
        {
            if found.get(chain) != Some(&count) {
                faults.push(format!("chain {chain} has not its {count} rules"));
            }
        }
        let mut sets: BTreeMap<&str, Elements> = BTreeMap::new();
        for (port, tenant) in &self.tenants {
            for (set, key) in members(port, tenant) {
                sets.entry(set).or_default().insert(key, Target::Data(Vec::new()));
            }
        }
        for set in ["ports", "whole", "whole6", "macs", "ipv4", "ipv6", "alone", "own"] {
            let found = list::elements_of(&mut self.socket, NFPROTO_BRIDGE, &self.name, set)?;
            list::compare(set, &sets.remove(set).unwrap_or_default(), &found, faults);
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Result<(), Error> {
        let mut batch = self.socket.batch().of_family(NFPROTO_BRIDGE);
        batch.remove_table(&self.name);
        batch.add_table(&self.name);
        for (set, key_type, key_bytes) in [
            ("ports", IFNAME, IFNAME_BYTES),
            ("alone", IFNAME, IFNAME_BYTES),
            ("own", concatenation(&[IFNAME, IFNAME]), 2 * IFNAME_BYTES),
            ("whole", concatenation(&[IFNAME, ETHER, IPV4]), IFNAME_BYTES + MAC_BYTES + 4),
            ("whole6", concatenation(&[IFNAME, ETHER, IPV6]), IFNAME_BYTES + MAC_BYTES + 16),
            ("macs", concatenation(&[IFNAME, ETHER]), IFNAME_BYTES + MAC_BYTES),
            ("ipv4", concatenation(&[IFNAME, IPV4]), IFNAME_BYTES + 4),
            ("ipv6", concatenation(&[IFNAME, IPV6]), IFNAME_BYTES + 16),
        ] {
            batch.add_set(&self.name, set, key_type, key_bytes);
        }
        self.add_rules(&mut batch);
        for (port, tenant) in &self.tenants {
            self.add_tenant(&mut batch, port, tenant);
        }
        self.is_made = true;
        self.socket.commit_to(&self.name, batch)
    }

    fn add_tenant(&self, batch: &mut Batch, port: &str, tenant: &Tenant) {
        for (set, key) in members(port, tenant) {
            batch.add_member(&self.name, set, &key);
        }
    }

    fn add_rules(&self, batch: &mut Batch) {
        let table = &self.name;
        let hook = Hook { kind: "filter", hook: Hook::PREROUTING, priority: PRIORITY };
        batch.add_chain(table, "guarded", None);
        batch.add_chain(table, "prerouting", Some(hook));
        let first = expression::FIRST_REGISTER;
        let is_port = Expression::Member { set: "ports", is_member: true };
        batch.add_rule(
            table,
            "prerouting",
            &[vec![expression::load_input_link(first), is_port], accept_goto("guarded")].concat(),
        );
        for rule in rules() {
            batch.add_rule(table, "guarded", &rule);
        }
        if self.parts {
            let hook = Hook { kind: "filter", hook: Hook::FORWARD, priority: PRIORITY };
            batch.add_chain(table, "apart", Some(hook));
            for rule in apart() {
                batch.add_rule(table, "apart", &rule);
            }
        }
    }
}

/// What passes between ports, rule by rule. A frame goes back to where it came from where a container asks for its own
/// published port.
fn apart() -> [Vec<Expression>; 3] {
    let first = expression::FIRST_REGISTER;
    let (input, output) = (expression::load_input_link, expression::load_output_link);
    let is = |set| Expression::Member { set, is_member: true };
    [
        vec![input(first), output(first + 4), is("own"), Expression::Accept],
        vec![input(first), is("alone"), Expression::Drop],
        vec![output(first), is("alone"), Expression::Drop],
    ]
}

/// What is dropped, rule by rule.
fn rules() -> Vec<Vec<Expression>> {
    let first = expression::FIRST_REGISTER;
    let field =
        |base, offset, bytes, register| Expression::Payload { base, offset, bytes, register };
    let stranger = |set, base, offset, bytes| {
        vec![
            expression::load_input_link(first),
            field(base, offset, bytes, first + 4),
            Expression::Member { set, is_member: false },
            Expression::Drop,
        ]
    };
    let is =
        |value: &[u8]| Expression::Compare { register: first, equal: true, value: value.to_vec() };
    let only =
        |ethertype, rule: Vec<Expression>| [expression::protocol_is(ethertype), rule].concat();
    // A tag stands where the type is, so what is tagged is not taken for a packet here.
    let is_whole = |set, offset, bytes| {
        vec![
            expression::load_input_link(first),
            field(LINK_HEADER, 6, 6, first + 4),
            field(NETWORK_HEADER, offset, bytes, first + 6),
            Expression::Member { set, is_member: true },
            Expression::Accept,
        ]
    };
    let is_typed =
        |ethertype: u16| vec![field(LINK_HEADER, 12, 2, first), is(&ethertype.to_be_bytes())];
    let is_no_icmp = vec![
        Expression::protocol(first),
        Expression::Compare { register: first, equal: false, value: vec![ICMPV6] },
    ];
    let mut rules = vec![
        [is_typed(IP), is_whole("whole", 12, 4)].concat(),
        [is_typed(IP6), is_no_icmp, is_whole("whole6", 8, 16)].concat(),
    ];
    // What is in a tagged frame would be looked for in the wrong place.
    for tag in VLAN_TAGS {
        rules.push([is_typed(tag), vec![Expression::Drop]].concat());
    }
    rules.push(stranger("macs", LINK_HEADER, 6, 6));
    rules.push(only(ARP, stranger("macs", NETWORK_HEADER, 8, 6)));
    rules.push(only(ARP, stranger("ipv4", NETWORK_HEADER, 14, 4)));
    rules.push(only(IP, stranger("ipv4", NETWORK_HEADER, 12, 4)));
    for message in ICMPV6_FORBIDDEN {
        let refused = vec![
            expression::Expression::protocol(first),
            is(&[ICMPV6]),
            field(TRANSPORT_HEADER, 0, 1, first),
            is(&[message]),
            Expression::Drop,
        ];
        rules.push(only(IP6, refused));
    }
    rules.extend(advertised(first).into_iter().map(|rule| only(IP6, rule)));
    // Addresses of the link itself (fe80::/10) follow from the hardware address, which is checked.
    let link_local = vec![
        field(NETWORK_HEADER, 8, 2, first),
        Expression::Mask { register: first, mask: vec![0xff, 0xc0] },
        is(&[0xfe, 0x80]),
        Expression::Accept,
    ];
    rules.push(only(IP6, link_local));
    rules.push(only(IP6, stranger("ipv6", NETWORK_HEADER, 8, 16)));
    rules
}

/// What a neighbour says that it has must be its own too, not only the address it says it from.
fn advertised(first: u32) -> [Vec<Expression>; 2] {
    let is =
        |value: &[u8]| Expression::Compare { register: first, equal: true, value: value.to_vec() };
    let target = |bytes, register| Expression::Payload {
        base: TRANSPORT_HEADER,
        offset: 8,
        bytes,
        register,
    };
    let message =
        Expression::Payload { base: TRANSPORT_HEADER, offset: 0, bytes: 1, register: first };
    let begin = || {
        let protocol = Expression::protocol(first);
        vec![protocol, is(&[ICMPV6]), message.clone(), is(&[ICMPV6_ADVERTISEMENT])]
    };
    let link_local = vec![
        target(2, first),
        Expression::Mask { register: first, mask: vec![0xff, 0xc0] },
        is(&[0xfe, 0x80]),
        Expression::Accept,
    ];
    let strange = vec![
        expression::load_input_link(first),
        target(16, first + 4),
        Expression::Member { set: "ipv6", is_member: false },
        Expression::Drop,
    ];
    [[begin(), link_local].concat(), [begin(), strange].concat()]
}

/// The members of each set that stand for one port. The unspecified address is anybody's who has none yet.
fn members(port: &str, tenant: &Tenant) -> Vec<(&'static str, Vec<u8>)> {
    let port = link_bytes(port);
    let key = |rest: &[u8]| [&port[..], rest].concat();
    let mut mac = tenant.mac.to_vec();
    mac.resize(MAC_BYTES, 0);
    let mut members = vec![
        ("ports", port.clone()),
        ("macs", key(&mac)),
        ("ipv4", key(&Ipv4Addr::UNSPECIFIED.octets())),
        ("ipv6", key(&Ipv6Addr::UNSPECIFIED.octets())),
    ];
    if tenant.is_alone {
        members.extend([("alone", port.clone()), ("own", key(&port))]);
    }
    for address in &tenant.addresses {
        match address {
            IpAddr::V4(address) => {
                members.push(("ipv4", key(&address.octets())));
                members.push(("whole", [key(&mac), address.octets().to_vec()].concat()));
            }
            IpAddr::V6(address) => {
                members.push(("ipv6", key(&address.octets())));
                members.push(("whole6", [key(&mac), address.octets().to_vec()].concat()));
            }
        }
    }
    members
}

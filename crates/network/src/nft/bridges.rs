//! The table that keeps networks of this host apart, and leads out of them.
//!
//! ```text
//! table ip skep-<instance>-nets {
//!   set same     { type ifname . ifname }                       # br-1 . br-1: within one network
//!   set internal, bridges, made { type ifname }                 # made: those that users asked for
//!   chain forward {
//!     iifname . oifname @same accept
//!     iifname @internal drop; oifname @internal drop
//!     ct state established,related accept; ct status dnat accept
//!     iifname @bridges goto leaving; oifname @made drop         # leaving: oifname @bridges drop; udp dport @data drop
//!   }
//!   chain input { iifname @bridges udp dport @data drop
//!                 iifname @internal ct state established,related accept; iifname @internal drop }
//!   chain postrouting { … masquerade }
//! }
//! ```
//! It is made anew with every change: there are few networks, and one transaction shows no gap. Where the host speaks IPv6,
//! there is one more for that, with a set of those bridges whose containers have addresses only to answer by:
//!
//! ```text
//!     iifname @closed reject; oifname @closed drop                # before leaving
//! ```
//!
//! `data` are the UDP ports to which nodes send what their containers say in networks of the swarm. Whoever could send there
//! from within a container would speak in networks that it is not in, on any node: it has a node's address by then.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use super::expression::{self, Expression, accept_goto, link_bytes};
use super::message::{Batch, Family, Hook, LINK_NAME as IFNAME};
use super::socket::Socket;
use super::{INET_SERVICE, concatenation};
use crate::{DATA_PORT, Error, ipv6};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

const IFNAME_BYTES: usize = 16;

/// Before others' filters: what is dropped here stays dropped, and what is accepted here they may still drop.
const BEFORE_FILTERS: i32 = -1;

/// What the table must know of one bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) link: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) is_internal: bool,
    /// Whether packets to the world get the host's address.
    pub(crate) is_masqueraded: bool,
}

impl Fence {
    fn subnet_of(&self, family: Family) -> IpNet {
        match family {
            Family::Ipv4 => self.subnet.into(),
            Family::Ipv6 => ipv6::of_subnet(self.subnet).into(),
        }
    }

    /// Whether containers have addresses of this family only to answer by.
    fn is_closed(family: Family) -> bool {
        family == Family::Ipv6
    }
}

/// The tables of one daemon.
#[derive(Debug)]
pub(crate) struct Fences {
    name: String,
    socket: Socket,
    families: Vec<Family>,
    /// The bridge that every node has: kept apart from the others, and otherwise another table's.
    default_link: String,
    data_ports: BTreeSet<u16>,
}

impl Fences {
    pub(crate) fn open(instance: &str, default_link: &str) -> Result<Self, Error> {
        let socket = Socket::open().map_err(Error::kernel("open an nftables socket"))?;
        let name = format!("skep-{instance}-nets");
        let spoken = [Family::Ipv4, Family::Ipv6].into_iter();
        let families = spoken.filter(|it| *it == Family::Ipv4 || ipv6::is_spoken()).collect();
        let (default_link, data_ports) = (default_link.to_owned(), BTreeSet::from([DATA_PORT]));
        Ok(Self { name, socket, families, default_link, data_ports })
    }

    /// The tables, as `nft` names them: family and name.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.families.iter().map(|family| (family.name(), &self.name[..]))
    }

    /// Keeps containers off another UDP port of nodes, from the next [`Fences::set`] on; false where it does already.
    pub(crate) fn hide(&mut self, port: u16) -> bool {
        self.data_ports.insert(port)
    }

    /// Makes the tables what these bridges need.
    pub(crate) fn set(&mut self, fences: &[Fence]) -> Result<(), Error> {
        let has_internal = fences.iter().any(|fence| fence.is_internal);
        for family in self.families.clone() {
            let mut batch = self.socket.batch_for(family);
            batch.remove_table(&self.name);
            batch.add_table(&self.name);
            self.add_sets(&mut batch, family, fences);
            self.add_forward(&mut batch, family, has_internal);
            self.add_input(&mut batch, has_internal);
            self.add_masquerade(&mut batch, family, fences);
            self.socket.commit_to(&self.name, batch)?;
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        for family in self.families.clone() {
            let mut batch = self.socket.batch_for(family);
            batch.remove_table(&self.name);
            self.socket.commit_to(&self.name, batch)?;
        }
        Ok(())
    }

    fn add_sets(&self, batch: &mut Batch, family: Family, fences: &[Fence]) {
        batch.add_set(&self.name, "same", concatenation(&[IFNAME, IFNAME]), 2 * IFNAME_BYTES);
        for set in ["internal", "bridges", "made", "closed"] {
            batch.add_set(&self.name, set, IFNAME, IFNAME_BYTES);
        }
        batch.add_set(&self.name, "data", INET_SERVICE, 2);
        for port in &self.data_ports {
            batch.add_member(&self.name, "data", &port.to_be_bytes());
        }
        let default = link_bytes(&self.default_link);
        batch.add_member(&self.name, "same", &[&default[..], &default].concat());
        batch.add_member(&self.name, "bridges", &default);
        if Fence::is_closed(family) {
            batch.add_member(&self.name, "closed", &default);
        }
        for fence in fences {
            let link = link_bytes(&fence.link);
            batch.add_member(&self.name, "same", &[&link[..], &link].concat());
            batch.add_member(&self.name, "bridges", &link);
            batch.add_member(&self.name, "made", &link);
            if fence.is_internal {
                batch.add_member(&self.name, "internal", &link);
            }
            if Fence::is_closed(family) {
                batch.add_member(&self.name, "closed", &link);
            }
        }
    }

    fn add_forward(&self, batch: &mut Batch, family: Family, has_internal: bool) {
        let table = &self.name;
        let first = expression::FIRST_REGISTER;
        let hook = Hook { kind: "filter", hook: Hook::FORWARD, priority: BEFORE_FILTERS };
        batch.add_chain(table, "leaving", None);
        batch.add_chain(table, "forward", Some(hook));
        let (input, output) = (expression::load_input_link, expression::load_output_link);
        let is = |set| Expression::Member { set, is_member: true };
        let mut rules = vec![
            // Nearly every packet, and the cheapest to tell: what may not be is not let through at its beginning.
            [expression::is_known_connection(), vec![Expression::Accept]].concat(),
            vec![input(first), output(first + 4), is("same"), Expression::Accept],
        ];
        if has_internal {
            rules.push(vec![input(first), is("internal"), Expression::Drop]);
            rules.push(vec![output(first), is("internal"), Expression::Drop]);
        }
        rules.extend([
            // A published port is for everybody.
            [expression::is_destination_nat(), vec![Expression::Accept]].concat(),
            [vec![input(first), is("bridges")], accept_goto("leaving")].concat(),
            // From outside only what is published is reached.
            vec![output(first), is("made"), Expression::Drop],
        ]);
        let closed = [
            // At once, so that whoever tries goes on with IPv4.
            vec![input(first), is("closed"), Expression::Reject(expression::Refusal::NoRoute)],
            vec![output(first), is("closed"), Expression::Drop],
        ];
        let (open, last) = rules.split_at(rules.len() - 2);
        let closed = closed.iter().filter(|_| family == Family::Ipv6);
        for rule in open.iter().chain(closed).chain(last) {
            batch.add_rule(table, "forward", rule);
        }
        batch.add_rule(table, "leaving", &[output(first), is("bridges"), Expression::Drop]);
        batch.add_rule(table, "leaving", &to_data_port());
    }

    /// Nothing on this host is reached from an internal network but what it has asked itself.
    fn add_input(&self, batch: &mut Batch, has_internal: bool) {
        let table = &self.name;
        let first = expression::FIRST_REGISTER;
        let hook = Hook { kind: "filter", hook: Hook::INPUT, priority: BEFORE_FILTERS };
        batch.add_chain(table, "input", Some(hook));
        let bridges = Expression::Member { set: "bridges", is_member: true };
        let from_bridges = vec![expression::load_input_link(first), bridges];
        batch.add_rule(table, "input", &[from_bridges, to_data_port()].concat());
        if !has_internal {
            return;
        }
        batch.add_rule(
            table,
            "input",
            &[expression::is_known_connection(), vec![Expression::Accept]].concat(),
        );
        let internal = Expression::Member { set: "internal", is_member: true };
        batch.add_rule(
            table,
            "input",
            &[expression::load_input_link(first), internal, Expression::Drop],
        );
    }

    fn add_masquerade(&self, batch: &mut Batch, family: Family, fences: &[Fence]) {
        let table = &self.name;
        let hook = Hook { kind: "nat", hook: Hook::POSTROUTING, priority: 100 };
        batch.add_chain(table, "postrouting", Some(hook));
        for fence in fences.iter().filter(|fence| !fence.is_internal) {
            let from_here = expression::source_in(fence.subnet_of(family));
            let to_here = expression::output_link(&fence.link, true);
            let masquerade = vec![Expression::Masquerade];
            if fence.is_masqueraded && !Fence::is_closed(family) {
                let elsewhere = expression::output_link(&fence.link, false);
                let rule = [from_here.clone(), elsewhere, masquerade.clone()].concat();
                batch.add_rule(table, "postrouting", &rule);
            }
            // From the host's own loopback, and from a container to itself or a neighbour by a published port: the answer
            // must come back this way. IPv6 leaves loopback by another way.
            if family == Family::Ipv4 {
                let local = expression::source_in(family.loopback());
                let rule = [local, to_here.clone(), masquerade.clone()].concat();
                batch.add_rule(table, "postrouting", &rule);
            }
            let by_port = expression::is_destination_nat();
            let rule = [from_here, to_here, by_port, masquerade].concat();
            batch.add_rule(table, "postrouting", &rule);
        }
    }
}

/// Drops what goes to a node's data port.
fn to_data_port() -> Vec<Expression> {
    let first = expression::FIRST_REGISTER;
    vec![
        Expression::protocol(first),
        Expression::Compare { register: first, equal: true, value: vec![UDP] },
        Expression::destination_port(first),
        Expression::Member { set: "data", is_member: true },
        Expression::Drop,
    ]
}

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
//!     iifname @bridges goto leaving; oifname @made drop         # leaving: oifname @bridges drop
//!   }
//!   chain input { iifname @internal ct state established,related accept; iifname @internal drop }
//!   chain postrouting { … masquerade }
//! }
//! ```
//! It is made anew with every change: there are few networks, and one transaction shows no gap.

use ipnet::Ipv4Net;

use super::concatenation;
use super::expression::{self, Expression, accept_goto, link_bytes, mask_of};
use super::message::{Batch, Hook, LINK_NAME as IFNAME};
use super::socket::Socket;
use crate::Error;

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

/// The table of one daemon.
#[derive(Debug)]
pub(crate) struct Fences {
    name: String,
    socket: Socket,
    /// The bridge that every node has: kept apart from the others, and otherwise another table's.
    default_link: String,
}

impl Fences {
    pub(crate) fn open(instance: &str, default_link: &str) -> Result<Self, Error> {
        let socket = Socket::open().map_err(Error::kernel("open an nftables socket"))?;
        let name = format!("skep-{instance}-nets");
        Ok(Self { name, socket, default_link: default_link.to_owned() })
    }

    /// The table's name, of family `ip`.
    pub(crate) fn table(&self) -> &str {
        &self.name
    }

    /// Makes the table what these bridges need.
    pub(crate) fn set(&mut self, fences: &[Fence]) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        batch.remove_table(&self.name);
        batch.add_table(&self.name);
        self.add_sets(&mut batch, fences);
        let has_internal = fences.iter().any(|fence| fence.is_internal);
        self.add_forward(&mut batch, has_internal);
        self.add_input(&mut batch, has_internal);
        self.add_masquerade(&mut batch, fences);
        self.socket.commit_to(&self.name, batch)
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        let mut batch = self.socket.batch();
        batch.remove_table(&self.name);
        self.socket.commit_to(&self.name, batch)
    }

    fn add_sets(&self, batch: &mut Batch, fences: &[Fence]) {
        batch.add_set(&self.name, "same", concatenation(&[IFNAME, IFNAME]), 2 * IFNAME_BYTES);
        for set in ["internal", "bridges", "made"] {
            batch.add_set(&self.name, set, IFNAME, IFNAME_BYTES);
        }
        let default = link_bytes(&self.default_link);
        batch.add_member(&self.name, "same", &[&default[..], &default].concat());
        batch.add_member(&self.name, "bridges", &default);
        for fence in fences {
            let link = link_bytes(&fence.link);
            batch.add_member(&self.name, "same", &[&link[..], &link].concat());
            batch.add_member(&self.name, "bridges", &link);
            batch.add_member(&self.name, "made", &link);
            if fence.is_internal {
                batch.add_member(&self.name, "internal", &link);
            }
        }
    }

    fn add_forward(&self, batch: &mut Batch, has_internal: bool) {
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
        for rule in rules {
            batch.add_rule(table, "forward", &rule);
        }
        batch.add_rule(table, "leaving", &[output(first), is("bridges"), Expression::Drop]);
    }

    /// Nothing on this host is reached from an internal network but what it has asked itself.
    fn add_input(&self, batch: &mut Batch, has_internal: bool) {
        let table = &self.name;
        let first = expression::FIRST_REGISTER;
        let hook = Hook { kind: "filter", hook: Hook::INPUT, priority: BEFORE_FILTERS };
        batch.add_chain(table, "input", Some(hook));
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

    fn add_masquerade(&self, batch: &mut Batch, fences: &[Fence]) {
        let table = &self.name;
        let hook = Hook { kind: "nat", hook: Hook::POSTROUTING, priority: 100 };
        batch.add_chain(table, "postrouting", Some(hook));
        for fence in fences.iter().filter(|fence| !fence.is_internal) {
            let (network, mask) = (fence.subnet.network().octets(), mask_of(fence.subnet));
            let from_here = expression::source_in(network, mask);
            let to_here = expression::output_link(&fence.link, true);
            let masquerade = vec![Expression::Masquerade];
            if fence.is_masqueraded {
                let elsewhere = expression::output_link(&fence.link, false);
                let rule = [from_here.clone(), elsewhere, masquerade.clone()].concat();
                batch.add_rule(table, "postrouting", &rule);
            }
            // From the host's own 127.0.0.1, and from a container to itself or a neighbour by a published port: the
            // answer must come back this way.
            let local = expression::source_in([127, 0, 0, 0], [255, 0, 0, 0]);
            let rule = [local, to_here.clone(), masquerade.clone()].concat();
            batch.add_rule(table, "postrouting", &rule);
            let by_port = expression::is_destination_nat();
            let rule = [from_here, to_here, by_port, masquerade].concat();
            batch.add_rule(table, "postrouting", &rule);
        }
    }
}

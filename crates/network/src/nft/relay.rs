//! Leads connections over IPv6 that no process of a container awaits to relays, in the container's namespace.
//!
//! ```text
//! table ip6 skep-relay {
//!   map relays       { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service }
//!   chain prerouting { iifname != "lo" goto unawaited }
//!   chain unawaited  { socket transparent != 2 accept; dnat to ip6 daddr . l4proto . th dport map @relays }
//! }
//! ```
//! Only the kernel knows at each moment who listens: it looks for the socket that a first packet would come to, and the rule
//! ends there if there is one (whether it is transparent is not what is asked). So a process that begins to listen on IPv6
//! has its connections from then on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use super::expression::{self, Expression, octets};
use super::list::{self, Elements, Target};
use super::message::{Batch, Family, Hook, MapSpec};
use super::socket::Socket;
use super::{INET_PROTO, INET_SERVICE, IPV6, concatenation, port_bytes, socket_bytes};
use crate::ports::Protocol;
use crate::{Error, namespace};

const TABLE: &str = "skep-relay";
const RELAYS: &str = "relays";
const PREROUTING: &str = "prerouting";
const UNAWAITED: &str = "unawaited";

/// Where connections come to.
pub(crate) type Awaited = (Ipv6Addr, Protocol, u16);

/// The table of one container: for each place, the port of its relay at the same address.
#[derive(Debug)]
pub(crate) struct RelayTable {
    socket: Socket,
    relays: BTreeMap<Awaited, u16>,
}

impl RelayTable {
    /// For the namespace at `netns`. A table that is there stays as it is for now.
    pub(crate) fn open(netns: &Path) -> Result<Self, Error> {
        namespace::within(netns, Self::here)
    }

    /// For the namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, Error> {
        let socket = Socket::open().map_err(Error::kernel("open an nftables socket"))?;
        Ok(Self { socket, relays: BTreeMap::new() })
    }

    /// Leads to these relays and no others.
    ///
    /// # Errors
    /// What the kernel refuses: one without `nft_socket` refuses all of it.
    pub(crate) fn set(&mut self, relays: BTreeMap<Awaited, u16>) -> Result<(), Error> {
        let mut batch = self.socket.batch_for(Family::Ipv6);
        batch.remove_table(TABLE);
        batch.add_table(TABLE);
        add_frame(&mut batch);
        for (place, port) in &relays {
            batch.add_element(TABLE, RELAYS, &key(place), &socket_bytes(place.0.into(), *port));
        }
        self.relays = relays;
        self.socket.commit_to(TABLE, batch)
    }

    /// Says once more what was last said.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn renew(&mut self) -> Result<(), Error> {
        let relays = std::mem::take(&mut self.relays);
        self.set(relays)
    }

    /// How the kernel's table differs from what was last asked for.
    pub(crate) fn faults(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = self.compare(&mut faults) {
            faults.push(error.to_string());
        }
        faults.iter().map(|fault| format!("nftables table ip6 {TABLE}: {fault}")).collect()
    }

    fn compare(&mut self, faults: &mut Vec<String>) -> std::io::Result<()> {
        let rules = list::rules(&mut self.socket, Family::Ipv6, TABLE)?;
        for (chain, count) in [(PREROUTING, 1), (UNAWAITED, 2)] {
            if rules.get(chain) != Some(&count) {
                faults.push(format!("chain {chain} has not its {count} rules"));
            }
        }
        let wanted = self
            .relays
            .iter()
            .map(|(place, port)| (key(place), Target::Data(socket_bytes(place.0.into(), *port))));
        let found = list::elements(&mut self.socket, Family::Ipv6, TABLE, RELAYS)?;
        list::compare(RELAYS, &wanted.collect::<Elements>(), &found, faults);
        Ok(())
    }
}

fn add_frame(batch: &mut Batch) {
    let (first, family) = (expression::FIRST_REGISTER, Family::Ipv6);
    batch.add_map(
        TABLE,
        &MapSpec {
            name: RELAYS,
            key_type: concatenation(&[IPV6, INET_PROTO, INET_SERVICE]),
            key_bytes: family.bytes() + 8,
            data_type: concatenation(&[IPV6, INET_SERVICE]),
            data_bytes: family.bytes() + 4,
        },
    );
    batch.add_chain(TABLE, UNAWAITED, None);
    let hook = Hook { kind: "nat", hook: Hook::PREROUTING, priority: -100 };
    batch.add_chain(TABLE, PREROUTING, Some(hook));
    let from_outside =
        [expression::input_link_is_not("lo"), expression::accept_goto(UNAWAITED)].concat();
    batch.add_rule(TABLE, PREROUTING, &from_outside);
    let is_awaited = [expression::has_socket(), vec![Expression::Accept]].concat();
    batch.add_rule(TABLE, UNAWAITED, &is_awaited);
    let to_relay = [
        Expression::destination_address_of(family, first),
        Expression::protocol(first + 4),
        Expression::destination_port(first + 5),
        Expression::look_up(RELAYS),
        Expression::DestinationNat(family),
    ];
    batch.add_rule(TABLE, UNAWAITED, &to_relay);
}

fn key((address, protocol, port): &Awaited) -> Vec<u8> {
    [octets(IpAddr::V6(*address)), port_bytes(*protocol, *port).to_vec()].concat()
}

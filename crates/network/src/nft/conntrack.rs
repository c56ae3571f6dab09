//! Forgets connections that were led to addresses nobody has any more (linux/netfilter/nfnetlink_conntrack.h).
//!
//! Those of TCP end by themselves; a client that goes on sending datagrams from one port would be led to a dead address
//! for ever.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::expression::{TCP, octets};
use super::message::{Family, attribute};
use super::socket::Socket;
use crate::Error;

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;

const CT_GET_STATS: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The source address is to be compared (`CTA_FILTER_FLAG(CTA_IP_SRC)`).
const FILTER_BY_SOURCE: u32 = 1;
const NESTED: u16 = 0x8000;

/// More addresses than that are looked for in one list of everything.
const LISTS_MAX: usize = 16;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const ATTRIBUTE_MASK: u16 = 0x3fff;

/// Which of them are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// All but connections of TCP, which end by themselves: one may live on with a task it was passed on to.
    Datagrams,
    All,
}

/// Forgets what would be answered from one of these addresses.
///
/// # Errors
/// When the kernel does not list them.
pub(crate) fn forget(addresses: &BTreeSet<IpAddr>, flows: Flows) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    forget_now(addresses, flows).map_err(Error::kernel("forget connections to tasks that are gone"))
}

fn forget_now(addresses: &BTreeSet<IpAddr>, flows: Flows) -> io::Result<()> {
    let mut socket = Socket::open()?;
    // The kernel looks through the connections of all namespaces for those of one.
    if !has_connections(&mut socket)? {
        return Ok(());
    }
    for (family, question) in questions(addresses) {
        let listed = socket.request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, &question)?;
        let wanted = listed.iter().filter(|it| flows == Flows::All || !is_tcp(it));
        for body in wanted.filter_map(|message| body_for(message, family, addresses)) {
            match socket.request(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, &body) {
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                answer => drop(answer?),
            }
        }
    }
    Ok(())
}

/// Who answers the connections of the present namespace.
///
/// # Errors
/// When the kernel does not list them.
pub(crate) fn answering() -> Result<BTreeSet<IpAddr>, Error> {
    let listed = || -> io::Result<BTreeSet<IpAddr>> {
        let mut socket = Socket::open()?;
        let mut found = BTreeSet::new();
        if !has_connections(&mut socket)? {
            return Ok(found);
        }
        for family in [Family::Ipv4, Family::Ipv6] {
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let messages = socket.request(CT_GET, flags, &header(family))?;
            found.extend(messages.iter().filter_map(|message| answering_one(message, family)));
        }
        Ok(found)
    };
    listed().map_err(Error::kernel("list connections"))
}

/// Whether there are any connections in the socket's namespace.
fn has_connections(socket: &mut Socket) -> io::Result<bool> {
    let told = socket.request(CT_GET_STATS, NLM_F_REQUEST | NLM_F_ACK, &header(Family::Ipv4))?;
    let entries = told.iter().filter_map(|message| {
        Attributes(message.get(4..)?).find(|(kind, _)| *kind == CTA_STATS_GLOBAL_ENTRIES)
    });
    Ok(entries.into_iter().any(|(_, count)| count.iter().any(|byte| *byte != 0)))
}

/// What is to be asked for to find all that these addresses answer.
fn questions(addresses: &BTreeSet<IpAddr>) -> Vec<(Family, Vec<u8>)> {
    let of_ipv4 = || addresses.iter().filter(|address| address.is_ipv4());
    let mut questions: Vec<_> = match of_ipv4().count() {
        ..=LISTS_MAX => of_ipv4().map(|it| (Family::Ipv4, answered_by(*it))).collect(),
        _ => vec![(Family::Ipv4, header(Family::Ipv4))],
    };
    // Asked for one address of IPv6, kernels up to this day tell of all others.
    if addresses.iter().any(IpAddr::is_ipv6) {
        questions.push((Family::Ipv6, header(Family::Ipv6)));
    }
    questions
}

/// Asks for the connections that one address of IPv4 answers. Kernels before 5.8 tell of all.
fn answered_by(address: IpAddr) -> Vec<u8> {
    let (mut source, mut ip, mut flags) = (Vec::new(), Vec::new(), Vec::new());
    attribute(&mut source, CTA_IP_V4_SRC, &octets(address));
    attribute(&mut ip, CTA_TUPLE_IP | NESTED, &source);
    attribute(&mut flags, CTA_FILTER_REPLY_FLAGS, &FILTER_BY_SOURCE.to_ne_bytes());
    let mut question = header(Family::Ipv4);
    attribute(&mut question, CTA_TUPLE_REPLY | NESTED, &ip);
    attribute(&mut question, CTA_FILTER | NESTED, &flags);
    question
}

fn source_kind(family: Family) -> u16 {
    match family {
        Family::Ipv4 => CTA_IP_V4_SRC,
        Family::Ipv6 => CTA_IP_V6_SRC,
    }
}

/// `nfgenmsg`: family, version, resource.
fn header(family: Family) -> Vec<u8> {
    vec![family.number(), 0, 0, 0]
}

/// What names the connection that a message tells of, if it leads to one of the addresses.
fn body_for(message: &[u8], family: Family, addresses: &BTreeSet<IpAddr>) -> Option<Vec<u8>> {
    if !addresses.contains(&answering_one(message, family)?) {
        return None;
    }
    let mut body = header(family);
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        if let Some(data) = part(message.get(4..)?, kind) {
            let nested = if kind == CTA_TUPLE_ORIG { NESTED } else { 0 };
            attribute(&mut body, kind | nested, data);
        }
    }
    Some(body)
}

fn is_tcp(message: &[u8]) -> bool {
    let tuple = message.get(4..).and_then(|parts| part(parts, CTA_TUPLE_ORIG));
    let protocol = tuple.and_then(|tuple| part(part(tuple, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM));
    protocol == Some(&[TCP])
}

/// Who answers the connection that a message tells of.
fn answering_one(message: &[u8], family: Family) -> Option<IpAddr> {
    let tuple = part(message.get(4..)?, CTA_TUPLE_REPLY)?;
    let answering = part(part(tuple, CTA_TUPLE_IP)?, source_kind(family))?;
    match family {
        Family::Ipv4 => Some(IpAddr::from(<[u8; 4]>::try_from(answering).ok()?)),
        Family::Ipv6 => Some(IpAddr::from(<[u8; 16]>::try_from(answering).ok()?)),
    }
}

fn part(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(bytes).find(|(it, _)| *it == kind).map(|(_, data)| data)
}

/// Kinds and data of attributes that follow each other. Ends where they are not whole.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & ATTRIBUTE_MASK;
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4]) -> Vec<u8> {
        let (mut address, mut ip) = (Vec::new(), Vec::new());
        attribute(&mut address, CTA_IP_V4_SRC, &source);
        attribute(&mut ip, CTA_TUPLE_IP | NESTED, &address);
        ip
    }

    #[test]
    fn a_connection_is_named_by_where_it_came_from_and_found_by_who_answers() {
        let family = Family::Ipv4;
        let mut message = header(family);
        attribute(&mut message, CTA_TUPLE_ORIG | NESTED, &tuple([10, 99, 0, 9]));
        attribute(&mut message, CTA_TUPLE_REPLY | NESTED, &tuple([10, 255, 0, 7]));
        attribute(&mut message, CTA_ID, &[1, 2, 3, 4]);
        let mut named = header(family);
        attribute(&mut named, CTA_TUPLE_ORIG | NESTED, &tuple([10, 99, 0, 9]));
        attribute(&mut named, CTA_ID, &[1, 2, 3, 4]);
        for (address, expected) in [([10, 255, 0, 7], Some(named)), ([10, 99, 0, 9], None)] {
            assert_eq!(body_for(&message, family, &[IpAddr::from(address)].into()), expected);
        }
        let gone = [IpAddr::from([10, 255, 0, 7])].into();
        assert_eq!(body_for(&message[..30], family, &gone), None);
    }
}

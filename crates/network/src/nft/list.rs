//! Reads tables back: what the kernel has, to be compared with what it was told.

use std::collections::BTreeMap;
use std::io;

use super::message::{Family, text};
use super::socket::Socket;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_UNSPEC: u8 = 0;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSETELEM: u16 = 13;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `struct nfgenmsg`, before the attributes of each message.
const GENERIC_HEADER_BYTES: usize = 4;

/// What a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Data(Vec<u8>),
    Chain(String),
}

pub(super) type Elements = BTreeMap<Vec<u8>, Target>;

/// A chain that packets of the host pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// As `nft` names it: `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// `NF_INET_*`: 2 for packets that are passed on.
    pub hook: u32,
    /// Whether what no rule decides is dropped.
    pub drops: bool,
}

/// The elements of a map of a table.
pub(super) fn elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    map: &str,
) -> io::Result<Elements> {
    elements_of(socket, family.number(), table, map)
}

/// [`elements`] of a table of any family, by its number.
pub(super) fn elements_of(
    socket: &mut Socket,
    family: u8,
    table: &str,
    map: &str,
) -> io::Result<Elements> {
    let mut body = header(family);
    text(&mut body, 1, table);
    text(&mut body, 2, map);
    let mut elements = Elements::new();
    for answer in dump(socket, GETSETELEM, &body)? {
        for (_, list) in parts(&answer).filter(|(kind, _)| *kind == 3) {
            elements.extend(attributes(list).filter_map(|(_, element)| element_of(element)));
        }
    }
    Ok(elements)
}

/// How many rules each chain of a table has; chains without rules are left out.
pub(super) fn rules(
    socket: &mut Socket,
    family: Family,
    table: &str,
) -> io::Result<BTreeMap<String, usize>> {
    rules_of(socket, family.number(), table)
}

/// [`rules`] of a table of any family, by its number.
pub(super) fn rules_of(
    socket: &mut Socket,
    family: u8,
    table: &str,
) -> io::Result<BTreeMap<String, usize>> {
    let mut body = header(family);
    text(&mut body, 1, table);
    let mut rules = BTreeMap::new();
    for answer in dump(socket, GETRULE, &body)? {
        let named = |wanted| parts(&answer).find(|(kind, _)| *kind == wanted).map(|it| word(it.1));
        if named(1).as_deref() == Some(table) {
            *rules.entry(named(2).unwrap_or_default()).or_default() += 1;
        }
    }
    Ok(rules)
}

/// What all counters in the rules of a table have counted, in packets.
pub(super) fn packets(socket: &mut Socket, family: u8, table: &str) -> io::Result<u64> {
    let mut body = header(family);
    text(&mut body, 1, table);
    let mut count = 0;
    for answer in dump(socket, GETRULE, &body)? {
        let expressions = parts(&answer).filter(|(kind, _)| *kind == 4);
        let expressions = expressions.flat_map(|(_, list)| attributes(list).map(|it| it.1));
        count += expressions.filter_map(counted).sum::<u64>();
    }
    Ok(count)
}

/// The packets of an expression that is a counter.
fn counted(expression: &[u8]) -> Option<u64> {
    let part = |of, wanted| attributes(of).find(|(kind, _)| *kind == wanted).map(|it| it.1);
    if word(part(expression, 1)?) != "counter" {
        return None;
    }
    let packets = part(part(expression, 2)?, 2)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

/// All chains of the present namespace that packets pass, whoever made them.
pub(super) fn base_chains(socket: &mut Socket) -> io::Result<Vec<BaseChain>> {
    let answers = dump(socket, GETCHAIN, &header(NFPROTO_UNSPEC))?;
    Ok(answers.iter().filter_map(|answer| base_chain(answer)).collect())
}

fn base_chain(answer: &[u8]) -> Option<BaseChain> {
    let mut chain = BaseChain {
        family: family_name(*answer.first()?),
        table: String::new(),
        name: String::new(),
        hook: 0,
        drops: false,
    };
    let mut is_base = false;
    for (kind, value) in parts(answer) {
        match kind {
            1 => chain.table = word(value),
            3 => chain.name = word(value),
            4 => {
                is_base = true;
                let (_, hook) = attributes(value).find(|(kind, _)| *kind == 1)?;
                chain.hook = u32::from_be_bytes(hook.try_into().ok()?);
            }
            5 => chain.drops = value == 0_u32.to_be_bytes(),
            _ => {}
        }
    }
    is_base.then_some(chain)
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

fn element_of(element: &[u8]) -> Option<(Vec<u8>, Target)> {
    let part = |wanted| attributes(element).find(|(kind, _)| *kind == wanted).map(|it| it.1);
    let key = attributes(part(1)?).find(|(kind, _)| *kind == 1)?.1.to_vec();
    // A set's elements lead nowhere.
    let Some(data) = part(2) else { return Some((key, Target::Data(Vec::new()))) };
    let (kind, value) = attributes(data).next()?;
    let target = match kind {
        1 => Target::Data(value.to_vec()),
        _ => Target::Chain(word(attributes(value).find(|(kind, _)| *kind == 2)?.1)),
    };
    Some((key, target))
}

fn dump(socket: &mut Socket, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    socket.request(NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | NLM_F_DUMP, body)
}

fn header(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn word(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// The attributes of an answer.
pub(super) fn parts(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(answer.get(GENERIC_HEADER_BYTES..).unwrap_or_default())
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 4] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK, value))
    })
}

/// Says how `found` differs from `wanted`, in words about the map.
pub(super) fn compare(map: &str, wanted: &Elements, found: &Elements, faults: &mut Vec<String>) {
    let missing = wanted.iter().filter(|(key, target)| found.get(*key) != Some(target)).count();
    let strange = found.keys().filter(|key| !wanted.contains_key(*key)).count();
    if missing > 0 {
        faults.push(format!("map {map} lacks {missing} of {} elements", wanted.len()));
    }
    if strange > 0 {
        faults.push(format!("map {map} has {strange} elements that nobody wants"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::message::{nested, number};

    #[test]
    fn a_chain_with_a_policy_is_read() {
        let mut answer = vec![2, 0, 0, 0];
        text(&mut answer, 1, "filter");
        text(&mut answer, 3, "FORWARD");
        nested(&mut answer, 4, |bytes| {
            number(bytes, 1, 2);
            number(bytes, 2, 0);
        });
        number(&mut answer, 5, 0);
        let (table, name) = ("filter".to_owned(), "FORWARD".to_owned());
        let chain = BaseChain { family: "ip", table, name, hook: 2, drops: true };
        assert_eq!(base_chain(&answer), Some(chain));
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_counted() {
        let data = |byte: u8| (vec![byte], Target::Data(vec![byte]));
        let (wanted, found) = ([data(1), data(2)].into(), [data(2), data(3), data(4)].into());
        let mut faults = Vec::new();
        compare("vips", &wanted, &found, &mut faults);
        let expected =
            ["map vips lacks 1 of 2 elements", "map vips has 2 elements that nobody wants"];
        assert_eq!(faults, expected);
    }
}

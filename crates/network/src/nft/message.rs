//! nf_tables messages: one batch is one transaction (linux/netfilter/nf_tables.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::expression::{self, Expression};
use super::{IPV4, IPV6};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;
const DELRULE: u8 = 8;
const NEWSET: u8 = 9;
const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NFT_SET_MAP: u32 = 8;

/// The number of the type of names of links (nft userspace, datatype.h).
pub(super) const LINK_NAME: u32 = 41;

/// Tells `nft list` how to read keys that are texts: a note of type 0, four bytes, 1 for the host's order (libnftnl, udata.h).
#[cfg(target_endian = "little")]
const KEYS_IN_HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];
#[cfg(target_endian = "big")]
const KEYS_IN_HOST_ORDER: [u8; 6] = [0, 4, 0, 0, 0, 1];

/// The family of tables for both versions of IP (`NFPROTO_INET`).
pub(super) const NFPROTO_INET: u8 = 1;

/// The family of tables of bridges (`NFPROTO_BRIDGE`).
pub(super) const NFPROTO_BRIDGE: u8 = 7;

/// Which packets a table sees (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// As `nft` names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    /// The addresses by which a host speaks to itself.
    pub(super) fn loopback(self) -> IpNet {
        match self {
            Self::Ipv4 => IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8),
            Self::Ipv6 => IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
        }
    }

    /// The type of its addresses.
    pub(super) fn address_type(self) -> u32 {
        match self {
            Self::Ipv4 => IPV4,
            Self::Ipv6 => IPV6,
        }
    }

    /// Registers of 32 bits that an address takes.
    pub(super) fn registers(self) -> u32 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 4,
        }
    }

    /// Bytes of an address.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
}

impl Hook {
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const INPUT: u32 = 1;
    pub(super) const FORWARD: u32 = 2;
    pub(super) const OUTPUT: u32 = 3;
    pub(super) const POSTROUTING: u32 = 4;
}

/// A map to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapSpec {
    pub(super) name: &'static str,
    pub(super) key_type: u32,
    pub(super) key_bytes: usize,
    pub(super) data_type: u32,
    /// 0 for verdicts, which have no length.
    pub(super) data_bytes: usize,
}

/// Messages that the kernel carries out all together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    first: u32,
    maps: u32,
    family: u8,
}

pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, data: &[u8]) {
    let length = u16::try_from(4 + data.len()).expect("attributes are short");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

pub(super) fn text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(bytes, kind, &[text.as_bytes(), &[0]].concat());
}

pub(super) fn number(bytes: &mut Vec<u8>, kind: u16, number: u32) {
    attribute(bytes, kind, &number.to_be_bytes());
}

pub(super) fn nested(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    fill(bytes);
    let length = u16::try_from(bytes.len() - start).expect("attributes are short");
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
}

impl Batch {
    pub(super) fn new(sequence: u32, family: Family) -> Self {
        let bytes = Vec::with_capacity(4096);
        let family = family.number();
        let mut batch = Self { bytes, family, sequence, first: sequence, maps: 0 };
        batch.message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        batch
    }

    /// For tables of another family than IPv4.
    pub(super) fn of_family(mut self, family: u8) -> Self {
        self.family = family;
        self
    }

    /// Whether nothing was put into the batch.
    pub(super) fn is_empty(&self) -> bool {
        self.sequence == self.first + 1
    }

    pub(super) fn add_table(&mut self, table: &str) {
        self.nftables(NEWTABLE, NLM_F_CREATE, |bytes| text(bytes, 1, table));
    }

    /// Leaves nothing of a table. It is added first, so that it is there to be deleted even if somebody has flushed it.
    pub(super) fn remove_table(&mut self, table: &str) {
        self.add_table(table);
        self.nftables(DELTABLE, 0, |bytes| text(bytes, 1, table));
    }

    pub(super) fn add_chain(&mut self, table: &str, chain: &str, hook: Option<Hook>) {
        self.nftables(NEWCHAIN, NLM_F_CREATE, |bytes| {
            text(bytes, 1, table);
            text(bytes, 3, chain);
            let Some(Hook { kind, hook, priority }) = hook else { return };
            nested(bytes, 4, |bytes| {
                number(bytes, 1, hook);
                attribute(bytes, 2, &priority.to_be_bytes());
            });
            text(bytes, 7, kind);
        });
    }

    pub(super) fn add_rule(&mut self, table: &str, chain: &str, expressions: &[Expression]) {
        self.nftables(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |bytes| {
            text(bytes, 1, table);
            text(bytes, 2, chain);
            nested(bytes, 4, |bytes| {
                for one in expressions {
                    nested(bytes, 1, |bytes| expression::encode(bytes, one));
                }
            });
        });
    }

    /// Removes all rules of a chain.
    pub(super) fn flush_chain(&mut self, table: &str, chain: &str) {
        self.nftables(DELRULE, 0, |bytes| {
            text(bytes, 1, table);
            text(bytes, 2, chain);
        });
    }

    pub(super) fn add_map(&mut self, table: &str, map: &MapSpec) {
        self.maps += 1;
        let id = self.maps;
        let length = |bytes: usize| u32::try_from(bytes).expect("keys are short");
        self.nftables(NEWSET, NLM_F_CREATE, |bytes| {
            text(bytes, 1, table);
            text(bytes, 2, map.name);
            number(bytes, 3, NFT_SET_MAP);
            number(bytes, 4, map.key_type);
            number(bytes, 5, length(map.key_bytes));
            number(bytes, 6, map.data_type);
            if map.data_bytes > 0 {
                number(bytes, 7, length(map.data_bytes));
            }
            number(bytes, 10, id);
        });
    }

    /// Makes a set of keys.
    pub(super) fn add_set(&mut self, table: &str, set: &str, key_type: u32, key_bytes: usize) {
        self.maps += 1;
        let id = self.maps;
        self.nftables(NEWSET, NLM_F_CREATE, |bytes| {
            text(bytes, 1, table);
            text(bytes, 2, set);
            number(bytes, 3, 0);
            number(bytes, 4, key_type);
            number(bytes, 5, u32::try_from(key_bytes).expect("keys are short"));
            number(bytes, 10, id);
            if key_type == LINK_NAME {
                attribute(bytes, 13, &KEYS_IN_HOST_ORDER);
            }
        });
    }

    pub(super) fn add_member(&mut self, table: &str, set: &str, key: &[u8]) {
        self.element(NEWSETELEM, NLM_F_CREATE, table, set, |bytes| {
            nested(bytes, 1, |bytes| attribute(bytes, 1, key));
        });
    }

    pub(super) fn add_element(&mut self, table: &str, map: &str, key: &[u8], data: &[u8]) {
        self.element(NEWSETELEM, NLM_F_CREATE, table, map, |bytes| {
            nested(bytes, 1, |bytes| attribute(bytes, 1, key));
            nested(bytes, 2, |bytes| attribute(bytes, 1, data));
        });
    }

    pub(super) fn add_goto(&mut self, table: &str, map: &str, key: &[u8], chain: &str) {
        self.element(NEWSETELEM, NLM_F_CREATE, table, map, |bytes| {
            nested(bytes, 1, |bytes| attribute(bytes, 1, key));
            nested(bytes, 2, |bytes| expression::encode_goto(bytes, chain));
        });
    }

    pub(super) fn delete_element(&mut self, table: &str, map: &str, key: &[u8]) {
        self.element(DELSETELEM, 0, table, map, |bytes| {
            nested(bytes, 1, |bytes| attribute(bytes, 1, key));
        });
    }

    /// The bytes to send, the sequence number of the first message, and the next free one.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32, u32) {
        self.message(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        (self.bytes, self.first, self.sequence)
    }

    fn element(
        &mut self,
        kind: u8,
        flags: u16,
        table: &str,
        map: &str,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        self.nftables(kind, flags, |bytes| {
            text(bytes, 1, table);
            text(bytes, 2, map);
            nested(bytes, 3, |bytes| nested(bytes, 1, fill));
        });
    }

    fn nftables(&mut self, kind: u8, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | u16::from(kind);
        self.message(kind, flags, self.family, 0, fill);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).expect("messages are short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.sequence += 1;
    }
}

//! Parts of rules, as the kernel's virtual machine takes them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::message::{Family, attribute, nested, number, text};

/// The first of the 32-bit registers (`NFT_REG32_00`). Neighbours together hold a concatenation.
pub(super) const FIRST_REGISTER: u32 = 8;

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_PROTOCOL: u32 = 1;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_IIFTYPE: u32 = 8;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 1 << 3;
/// `NF_CT_STATE_BIT` of established and related.
const CT_STATE_KNOWN: u32 = 1 << 1 | 1 << 2;
/// `IP_CT_DIR_REPLY`.
const CT_DIRECTION_REPLY: u8 = 1;
const CT_DIRECTION_ORIGINAL: u8 = 0;
const CT_DST_IP6: u32 = 22;
/// `NFT_PAYLOAD_L4CSUM_PSEUDOHDR`.
const CHECKSUM_OF_ADDRESSES: u32 = 1;
/// `ARPHRD_ETHER`.
const LINK_IS_ETHERNET: u16 = 1;
pub(super) const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FIN: u8 = 1;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;
const TCP_ACK: u8 = 16;
const TCP_OPTION_MAXSEG: u8 = 2;
const RT_TCPMSS: u32 = 3;
/// `IPS_DST_NAT` of nf_conntrack_common.h.
const CT_STATUS_DNAT: u32 = 1 << 5;
/// `IPS_CONFIRMED`: a packet of the connection has passed before.
const CT_STATUS_CONFIRMED: u32 = 1 << 3;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
/// `RTN_LOCAL`: the address is one of this host's.
const ADDRESS_LOCAL: u32 = 2;
/// `NFT_REJECT_ICMP_UNREACH`.
const REJECT_BY_ICMP: u32 = 0;
/// `ICMPV6_NOROUTE`.
const ICMPV6_NO_ROUTE: u8 = 0;
/// `ICMP_PORT_UNREACH` and `ICMPV6_PORT_UNREACH`.
const ICMP_NO_PORT: u8 = 3;
const ICMPV6_NO_PORT: u8 = 4;
/// `NFT_REJECT_TCP_RST`.
const REJECT_BY_RESET: u32 = 1;
/// `NFT_SOCKET_TRANSPARENT`.
const SOCKET_TRANSPARENT: u32 = 0;
const HASH_SEED: u32 = 0x736b_6570;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
/// `NFT_GOTO`, a negative number.
const VERDICT_GOTO: i32 = -4;
const IFNAMSIZ: usize = 16;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    Payload {
        base: u32,
        offset: u32,
        bytes: u32,
        register: u32,
    },
    /// Writes over a part of the packet's network header, and puts the checksum behind it right.
    SetNetworkHeader {
        offset: u32,
        bytes: u32,
        register: u32,
    },
    Meta {
        key: u32,
        register: u32,
    },
    /// Loads something of the connection.
    Conntrack {
        key: u32,
        register: u32,
    },
    /// Loads something of the connection's first packet.
    ConntrackOriginal {
        key: u32,
        register: u32,
    },
    /// Gives the connection a mark.
    SetConntrackMark {
        register: u32,
    },
    /// Gives the packet a mark.
    SetMark {
        register: u32,
    },
    /// The largest TCP segment that fits the packet's way.
    PathSegment {
        register: u32,
    },
    /// Turns a number of two bytes into the network's order.
    ToNetworkOrder {
        register: u32,
    },
    /// Writes the option that names the largest segment, unless a smaller one is there.
    SetSegment {
        register: u32,
    },
    FibDestinationType {
        register: u32,
    },
    /// Loads whether the socket that the packet would come to is transparent; the rule ends where there is none.
    SocketIsTransparent {
        register: u32,
    },
    Mask {
        register: u32,
        mask: Vec<u8>,
    },
    /// Leaves the bits of `keep`, and sets those of `set`.
    Bits {
        register: u32,
        keep: u32,
        set: u32,
    },
    Compare {
        register: u32,
        equal: bool,
        value: Vec<u8>,
    },
    Random {
        modulus: u32,
        register: u32,
    },
    /// A number made of the bytes that begin in a register.
    Hash {
        from: u32,
        bytes: usize,
        modulus: u32,
        register: u32,
    },
    LookUp {
        map: &'static str,
        into: u32,
    },
    /// Goes on with the rule if the key in the first registers is a member, or is none where `is_member` is false.
    Member {
        set: &'static str,
        is_member: bool,
    },
    Goto {
        chain: &'static str,
    },
    Drop,
    Accept,
    /// Counts what comes this far.
    Counter,
    /// The packet is no part of a connection that the kernel follows.
    Untracked,
    /// Tells the sender that it will get no answer.
    Reject(Refusal),
    /// Puts the bytes into the register.
    Load {
        register: u32,
        value: Vec<u8>,
    },
    /// Writes a port of UDP into the packet.
    SetSourcePort {
        register: u32,
    },
    SetDestinationPort {
        register: u32,
    },
    /// To the address and port that stand one after the other from the first register on.
    DestinationNat(Family),
    /// To the address that begins in the first register, the port as it is.
    DestinationNatAddress(Family),
    /// Under the address that begins in the first register.
    SourceNatAddress(Family),
    Masquerade,
}

/// How a sender is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// ICMP of IPv6: there is no way to the address.
    NoRoute,
    /// ICMP: nobody has the port.
    NoPort(Family),
    /// TCP's own.
    Reset,
}

impl Expression {
    pub(super) fn destination_address(register: u32) -> Self {
        Self::destination_address_of(Family::Ipv4, register)
    }

    /// An address of IPv6 takes four registers.
    pub(super) fn destination_address_of(family: Family, register: u32) -> Self {
        let (offset, bytes) = match family {
            Family::Ipv4 => (16, 4),
            Family::Ipv6 => (24, 16),
        };
        Self::Payload { base: NETWORK_HEADER, offset, bytes, register }
    }

    /// An address of IPv6 takes four registers.
    pub(super) fn source_address_of(family: Family, register: u32) -> Self {
        let (offset, bytes) = match family {
            Family::Ipv4 => (12, 4),
            Family::Ipv6 => (8, 16),
        };
        Self::Payload { base: NETWORK_HEADER, offset, bytes, register }
    }

    pub(super) fn source_port(register: u32) -> Self {
        Self::Payload { base: TRANSPORT_HEADER, offset: 0, bytes: 2, register }
    }

    pub(super) fn destination_port(register: u32) -> Self {
        Self::Payload { base: TRANSPORT_HEADER, offset: 2, bytes: 2, register }
    }

    pub(super) fn protocol(register: u32) -> Self {
        Self::Meta { key: META_L4PROTO, register }
    }

    /// Jumps where the map says, with the key in the first registers.
    pub(super) fn look_up_verdict(map: &'static str) -> Self {
        // Register 0 is the verdict.
        Self::LookUp { map, into: 0 }
    }

    /// Loads what the map says into the first registers, with the key there before.
    pub(super) fn look_up(map: &'static str) -> Self {
        Self::LookUp { map, into: FIRST_REGISTER }
    }
}

pub(super) fn accept_goto(chain: &'static str) -> Vec<Expression> {
    vec![Expression::Goto { chain }]
}

/// The destination is an address of this host.
pub(super) fn destination_is_local() -> Vec<Expression> {
    let value = ADDRESS_LOCAL.to_ne_bytes().to_vec();
    vec![
        Expression::FibDestinationType { register: FIRST_REGISTER },
        Expression::Compare { register: FIRST_REGISTER, equal: true, value },
    ]
}

/// A process awaits the packet: there is a socket that it would come to.
pub(super) fn has_socket() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::SocketIsTransparent { register },
        // It is 0 or 1: both will do.
        Expression::Compare { register, equal: false, value: vec![2] },
    ]
}

pub(super) fn source_in(subnet: impl Into<IpNet>) -> Vec<Expression> {
    let subnet = subnet.into();
    let register = FIRST_REGISTER;
    address_in(Expression::source_address_of(Family::of(subnet.addr()), register), subnet)
}

pub(super) fn destination_in(subnet: impl Into<IpNet>) -> Vec<Expression> {
    let subnet = subnet.into();
    let register = FIRST_REGISTER;
    address_in(Expression::destination_address_of(Family::of(subnet.addr()), register), subnet)
}

fn address_in(address: Expression, subnet: IpNet) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        address,
        Expression::Mask { register, mask: octets(subnet.netmask()) },
        Expression::Compare { register, equal: true, value: octets(subnet.network()) },
    ]
}

/// An address as registers and sets hold it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Loads the hardware address that a packet came from.
pub(super) fn source_hardware() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Meta { key: META_IIFTYPE, register },
        equals(&LINK_IS_ETHERNET.to_ne_bytes()),
        Expression::Payload { base: LINK_HEADER, offset: 6, bytes: 6, register },
    ]
}

/// The first packet of a connection.
pub(super) fn is_new() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Conntrack { key: CT_STATE, register },
        Expression::Mask { register, mask: CT_STATE_NEW.to_ne_bytes().to_vec() },
        Expression::Compare { register, equal: false, value: vec![0; 4] },
    ]
}

/// Goes the other way than the connection's first packet.
pub(super) fn is_answer() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![Expression::Conntrack { key: CT_DIRECTION, register }, equals(&[CT_DIRECTION_REPLY])]
}

/// The connection's first packet went to this address.
pub(super) fn original_destination_is(address: Ipv6Addr) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![Expression::ConntrackOriginal { key: CT_DST_IP6, register }, equals(&address.octets())]
}

/// Writes the address over the packet's source.
pub(super) fn set_source(address: Ipv6Addr) -> Vec<Expression> {
    set_address(Expression::source_address_of, address)
}

/// Writes the address over the packet's destination.
pub(super) fn set_destination(address: Ipv6Addr) -> Vec<Expression> {
    set_address(Expression::destination_address_of, address)
}

fn set_address(place: fn(Family, u32) -> Expression, address: Ipv6Addr) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    let Expression::Payload { offset, bytes, .. } = place(Family::Ipv6, register) else {
        unreachable!("addresses are parts of packets");
    };
    let value = address.octets().to_vec();
    vec![
        Expression::Load { register, value },
        Expression::SetNetworkHeader { offset, bytes, register },
    ]
}

/// Loads the connection's mark, as far as `mask` goes.
pub(super) fn connection_mark(mask: u32) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Conntrack { key: CT_MARK, register },
        Expression::Bits { register, keep: mask, set: 0 },
    ]
}

/// Marks the connection, and leaves the bits outside of `mask` as they are.
pub(super) fn mark_connection(mask: u32, mark: u32) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Conntrack { key: CT_MARK, register },
        Expression::Bits { register, keep: !mask, set: mark },
        Expression::SetConntrackMark { register },
    ]
}

/// Marks the packet, and leaves the bits outside of `mask` as they are.
pub(super) fn mark_packet(mask: u32, mark: u32) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Meta { key: META_MARK, register },
        Expression::Bits { register, keep: !mask, set: mark },
        Expression::SetMark { register },
    ]
}

/// Tells both ends of a TCP connection that begins here of no larger segments than the way out takes.
pub(super) fn clamp_segments() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::protocol(register),
        equals(&[TCP]),
        Expression::Payload { base: TRANSPORT_HEADER, offset: 13, bytes: 1, register },
        Expression::Mask { register, mask: vec![TCP_SYN | TCP_RST] },
        equals(&[TCP_SYN]),
        Expression::PathSegment { register },
        Expression::ToNetworkOrder { register },
        Expression::SetSegment { register },
    ]
}

/// Asks for a connection of TCP.
pub(super) fn opens_connection() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::protocol(register),
        equals(&[TCP]),
        Expression::Payload { base: TRANSPORT_HEADER, offset: 13, bytes: 1, register },
        Expression::Mask { register, mask: vec![TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK] },
        equals(&[TCP_SYN]),
    ]
}

/// The first datagram of UDP of its flow.
pub(super) fn begins_flow() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    let is_udp = vec![Expression::protocol(register), equals(&[UDP])];
    let is_first = vec![
        Expression::Conntrack { key: CT_STATUS, register },
        Expression::Mask { register, mask: CT_STATUS_CONFIRMED.to_ne_bytes().to_vec() },
        equals(&[0; 4]),
    ];
    [is_udp, is_new(), is_first].concat()
}

/// UDP to a port of the set is followed as a connection no more.
pub(super) fn untrack_datagrams(set: &'static str) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::protocol(register),
        equals(&[UDP]),
        Expression::destination_port(register),
        Expression::Member { set, is_member: true },
        Expression::Untracked,
    ]
}

/// Loads a number below `modulus` that follows from the client's address. The registers behind it are used too.
pub(super) fn client_number(family: Family, modulus: u32, register: u32) -> Vec<Expression> {
    let from = register + 1;
    vec![
        Expression::source_address_of(family, from),
        Expression::Hash { from, bytes: family.bytes(), modulus, register },
    ]
}

/// Refuses what comes, in the way its protocol understands: two rules.
pub(super) fn refuse(family: Family) -> [Vec<Expression>; 2] {
    let is_tcp = vec![Expression::protocol(FIRST_REGISTER), equals(&[TCP])];
    let reset = [is_tcp, vec![Expression::Reject(Refusal::Reset)]].concat();
    [reset, vec![Expression::Reject(Refusal::NoPort(family))]]
}

fn equals(value: &[u8]) -> Expression {
    Expression::Compare { register: FIRST_REGISTER, equal: true, value: value.to_vec() }
}

pub(super) fn input_link(name: &str) -> Vec<Expression> {
    link(META_IIFNAME, name, true)
}

pub(super) fn output_link(name: &str, equal: bool) -> Vec<Expression> {
    link(META_OIFNAME, name, equal)
}

pub(super) fn input_link_is_not(name: &str) -> Vec<Expression> {
    link(META_IIFNAME, name, false)
}

fn link(key: u32, name: &str, equal: bool) -> Vec<Expression> {
    vec![
        Expression::Meta { key, register: FIRST_REGISTER },
        Expression::Compare { register: FIRST_REGISTER, equal, value: link_bytes(name) },
    ]
}

/// A link's name as registers and sets hold it: four registers.
pub(super) fn link_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

/// The name of the link that a packet came by.
pub(super) fn load_input_link(register: u32) -> Expression {
    Expression::Meta { key: META_IIFNAME, register }
}

/// The name of the link that a packet leaves by.
pub(super) fn load_output_link(register: u32) -> Expression {
    Expression::Meta { key: META_OIFNAME, register }
}

/// What the packet is, by the number of its Ethernet type.
pub(super) fn protocol_is(ethertype: u16) -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Meta { key: META_PROTOCOL, register },
        Expression::Compare { register, equal: true, value: ethertype.to_be_bytes().to_vec() },
    ]
}

/// The packet belongs to a connection that was let through before.
pub(super) fn is_known_connection() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Conntrack { key: CT_STATE, register },
        Expression::Mask { register, mask: CT_STATE_KNOWN.to_ne_bytes().to_vec() },
        Expression::Compare { register, equal: false, value: vec![0; 4] },
    ]
}

/// The connection was led somewhere else than where it went.
pub(super) fn is_destination_nat() -> Vec<Expression> {
    let register = FIRST_REGISTER;
    vec![
        Expression::Conntrack { key: CT_STATUS, register },
        Expression::Mask { register, mask: CT_STATUS_DNAT.to_ne_bytes().to_vec() },
        Expression::Compare { register, equal: false, value: vec![0; 4] },
    ]
}

fn value(bytes: &mut Vec<u8>, kind: u16, data: &[u8]) {
    nested(bytes, kind, |bytes| attribute(bytes, 1, data));
}

fn verdict(bytes: &mut Vec<u8>, code: &[u8], chain: Option<&str>) {
    nested(bytes, 2, |bytes| {
        attribute(bytes, 1, code);
        if let Some(chain) = chain {
            text(bytes, 2, chain);
        }
    });
}

/// The data of a map element that jumps.
pub(super) fn encode_goto(bytes: &mut Vec<u8>, chain: &str) {
    verdict(bytes, &VERDICT_GOTO.to_be_bytes(), Some(chain));
}

pub(super) fn encode(bytes: &mut Vec<u8>, expression: &Expression) {
    text(bytes, 1, name(expression));
    nested(bytes, 2, |bytes| encode_body(bytes, expression));
}

fn name(expression: &Expression) -> &'static str {
    match expression {
        Expression::Payload { .. }
        | Expression::SetNetworkHeader { .. }
        | Expression::SetSourcePort { .. }
        | Expression::SetDestinationPort { .. } => "payload",
        Expression::Meta { .. } | Expression::SetMark { .. } => "meta",
        Expression::Conntrack { .. }
        | Expression::ConntrackOriginal { .. }
        | Expression::SetConntrackMark { .. } => "ct",
        Expression::PathSegment { .. } => "rt",
        Expression::ToNetworkOrder { .. } => "byteorder",
        Expression::SetSegment { .. } => "exthdr",
        Expression::FibDestinationType { .. } => "fib",
        Expression::SocketIsTransparent { .. } => "socket",
        Expression::Mask { .. } | Expression::Bits { .. } => "bitwise",
        Expression::Compare { .. } => "cmp",
        Expression::Random { .. } => "numgen",
        Expression::Hash { .. } => "hash",
        Expression::LookUp { .. } | Expression::Member { .. } => "lookup",
        Expression::Goto { .. }
        | Expression::Drop
        | Expression::Accept
        | Expression::Load { .. } => "immediate",
        Expression::Reject(_) => "reject",
        Expression::DestinationNat(_)
        | Expression::DestinationNatAddress(_)
        | Expression::SourceNatAddress(_) => "nat",
        Expression::Masquerade => "masq",
        Expression::Counter => "counter",
        Expression::Untracked => "notrack",
    }
}

fn numbers(bytes: &mut Vec<u8>, values: &[(u16, u32)]) {
    for (kind, value) in values {
        number(bytes, *kind, *value);
    }
}

fn decide(bytes: &mut Vec<u8>, code: u32) {
    // Register 0 is the verdict.
    number(bytes, 1, 0);
    nested(bytes, 2, |bytes| verdict(bytes, &code.to_be_bytes(), None));
}

fn encode_body(bytes: &mut Vec<u8>, expression: &Expression) {
    match expression {
        Expression::Payload { base, offset, bytes: length, register } => {
            numbers(bytes, &[(1, *register), (2, *base), (3, *offset), (4, *length)]);
        }
        Expression::Meta { key, register } => numbers(bytes, &[(1, *register), (2, *key)]),
        Expression::Conntrack { key, register } => numbers(bytes, &[(1, *register), (2, *key)]),
        Expression::ConntrackOriginal { key, register } => {
            numbers(bytes, &[(1, *register), (2, *key)]);
            attribute(bytes, 3, &[CT_DIRECTION_ORIGINAL]);
        }
        Expression::PathSegment { register } => {
            numbers(bytes, &[(1, *register), (2, RT_TCPMSS)]);
        }
        Expression::ToNetworkOrder { register } => {
            // Operation 1 is to the network's order; two bytes, in units of two.
            numbers(bytes, &[(1, *register), (2, *register), (3, 1), (4, 2), (5, 2)]);
        }
        Expression::FibDestinationType { register } => {
            numbers(bytes, &[(1, *register), (2, FIB_RESULT_ADDRTYPE), (3, FIB_F_DADDR)]);
        }
        Expression::SocketIsTransparent { register } => {
            numbers(bytes, &[(1, SOCKET_TRANSPARENT), (2, *register)]);
        }
        Expression::Mask { register, mask } => {
            let length = u32::try_from(mask.len()).expect("masks are short");
            numbers(bytes, &[(1, *register), (2, *register), (3, length)]);
            value(bytes, 4, mask);
            value(bytes, 5, &vec![0; mask.len()]);
        }
        Expression::Bits { register, keep, set } => {
            numbers(bytes, &[(1, *register), (2, *register), (3, 4)]);
            value(bytes, 4, &keep.to_ne_bytes());
            value(bytes, 5, &set.to_ne_bytes());
        }
        Expression::Compare { register, equal, value: expected } => {
            numbers(bytes, &[(1, *register), (2, u32::from(!equal))]);
            value(bytes, 3, expected);
        }
        Expression::Random { modulus, register } => {
            // Type 1 is random, type 0 counts up and is not fair between ports that share a chain.
            numbers(bytes, &[(1, *register), (2, *modulus), (3, 1), (4, 0)]);
        }
        Expression::Hash { from, bytes: length, modulus, register } => {
            let length = u32::try_from(*length).expect("a register's worth");
            // Type 0 is Jenkins'. The seed is every node's: a client is to have the same number everywhere.
            let how = [(4, *modulus), (5, HASH_SEED), (7, 0)];
            numbers(bytes, &[(1, *from), (2, *register), (3, length)]);
            numbers(bytes, &how);
        }
        Expression::LookUp { map, into } => {
            text(bytes, 1, map);
            numbers(bytes, &[(2, FIRST_REGISTER), (3, *into)]);
        }
        Expression::Member { set, is_member } => {
            text(bytes, 1, set);
            // The flag turns the question round (NFT_LOOKUP_F_INV).
            numbers(bytes, &[(2, FIRST_REGISTER), (5, u32::from(!is_member))]);
        }
        Expression::Load { register, value: loaded } => {
            number(bytes, 1, *register);
            value(bytes, 2, loaded);
        }
        deed => encode_deed(bytes, deed),
    }
}

/// Those that load nothing: they change something, or decide.
fn encode_deed(bytes: &mut Vec<u8>, expression: &Expression) {
    match expression {
        Expression::SetSourcePort { register } => set_port(bytes, 0, *register),
        Expression::SetDestinationPort { register } => set_port(bytes, 2, *register),
        Expression::SetNetworkHeader { offset, bytes: length, register } => {
            // No checksum of its own (0), but those of TCP and UDP have the addresses in them.
            let place = [(2, NETWORK_HEADER), (3, *offset), (4, *length), (5, *register)];
            numbers(bytes, &place);
            numbers(bytes, &[(6, 0), (7, 0), (8, CHECKSUM_OF_ADDRESSES)]);
        }
        Expression::SetConntrackMark { register } => {
            numbers(bytes, &[(2, CT_MARK), (4, *register)]);
        }
        Expression::SetMark { register } => numbers(bytes, &[(2, META_MARK), (3, *register)]),
        Expression::SetSegment { register } => {
            attribute(bytes, 2, &[TCP_OPTION_MAXSEG]);
            // Two bytes behind kind and length; operation 1 is TCP's options.
            numbers(bytes, &[(3, 2), (4, 2), (6, 1), (7, *register)]);
        }
        Expression::Goto { chain } => {
            number(bytes, 1, 0);
            nested(bytes, 2, |bytes| encode_goto(bytes, chain));
        }
        Expression::Drop => decide(bytes, VERDICT_DROP),
        Expression::Accept => decide(bytes, VERDICT_ACCEPT),
        Expression::Reject(refusal) => encode_refusal(bytes, *refusal),
        // Address and port stand in neighbouring registers.
        Expression::DestinationNat(family) => {
            nat(bytes, NAT_DESTINATION, *family);
            number(bytes, 5, FIRST_REGISTER + family.registers());
        }
        Expression::DestinationNatAddress(family) => nat(bytes, NAT_DESTINATION, *family),
        Expression::SourceNatAddress(family) => nat(bytes, NAT_SOURCE, *family),
        // Masquerade, Untracked, Counter: the name says it all.
        _ => {}
    }
}

/// Two bytes of UDP's header, whose sum stands at 6; type 1 of sums is the internet's.
fn set_port(bytes: &mut Vec<u8>, offset: u32, register: u32) {
    numbers(bytes, &[(2, TRANSPORT_HEADER), (3, offset), (4, 2), (5, register), (6, 1), (7, 6)]);
}

fn encode_refusal(bytes: &mut Vec<u8>, refusal: Refusal) {
    let code = match refusal {
        Refusal::NoRoute => ICMPV6_NO_ROUTE,
        Refusal::NoPort(Family::Ipv4) => ICMP_NO_PORT,
        Refusal::NoPort(Family::Ipv6) => ICMPV6_NO_PORT,
        Refusal::Reset => return number(bytes, 1, REJECT_BY_RESET),
    };
    number(bytes, 1, REJECT_BY_ICMP);
    attribute(bytes, 2, &[code]);
}

/// To the address that begins in the first register.
fn nat(bytes: &mut Vec<u8>, kind: u32, family: Family) {
    numbers(bytes, &[(1, kind), (2, family.number().into()), (3, FIRST_REGISTER)]);
}

//! Frames as a container could write them byte by byte, true or not.
#![allow(unsafe_code, reason = "rustix has no addresses of packet sockets")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

use crate::within;

/// A hardware address.
pub type Mac = [u8; 6];

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOPS: u8 = 255;
/// Nobody's, so that whatever arrives is left alone.
const PORT: u16 = 5_999;

/// What stands between two hardware addresses.
#[derive(Clone, Debug)]
pub struct Packet {
    kind: u16,
    bytes: Vec<u8>,
}

impl Packet {
    /// A UDP datagram to nobody's port.
    pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, word: &str) -> Self {
        let datagram = datagram(word);
        let length = u16::try_from(20 + datagram.len()).expect("short");
        let mut bytes = vec![0x45, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        let sum = sum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(datagram);
        Self { kind: IPV4, bytes }
    }

    /// A UDP datagram to nobody's port.
    pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, word: &str) -> Self {
        Self::over_ipv6(from, to, UDP, datagram(word))
    }

    /// Tells that this node is a router.
    pub fn router_advertisement(from: Ipv6Addr, to: Ipv6Addr, word: &str) -> Self {
        let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08];
        message.extend([0; 8]);
        message.extend(word.bytes());
        Self::over_ipv6(from, to, ICMPV6, message)
    }

    /// Tells that `claimed` is to be had at this node.
    pub fn neighbour_advertisement(
        from: Ipv6Addr,
        to: Ipv6Addr,
        claimed: Ipv6Addr,
        word: &str,
    ) -> Self {
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(claimed.octets());
        message.extend(word.bytes());
        Self::over_ipv6(from, to, ICMPV6, message)
    }

    fn over_ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, mut message: Vec<u8>) -> Self {
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        let ends = [from.octets(), to.octets()].concat();
        let pseudo = [&ends[..], &[0, 0], &length, &[0, 0, 0, next], &message].concat();
        let (sum, place) = (sum(&pseudo), if next == UDP { 6 } else { 2 });
        message[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length);
        bytes.extend([next, HOPS]);
        bytes.extend(ends);
        bytes.extend(message);
        Self { kind: IPV6, bytes }
    }

    /// Tells that `claimed` is to be had at `mac`.
    pub fn arp_reply(mac: Mac, claimed: Ipv4Addr, to: (Mac, Ipv4Addr), word: &str) -> Self {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 2];
        bytes.extend(mac);
        bytes.extend(claimed.octets());
        bytes.extend(to.0);
        bytes.extend(to.1.octets());
        // Short frames are padded; nobody says with what.
        bytes.extend(word.bytes());
        Self { kind: ARP, bytes }
    }

    /// The frame that carries it.
    pub fn between(&self, from: Mac, to: Mac) -> Vec<u8> {
        [&to[..], &from, &self.kind.to_be_bytes(), &self.bytes].concat()
    }
}

/// Sends a frame by a link of a network namespace, as it is.
pub fn send_frame(namespace: &Path, link: &str, frame: &[u8]) {
    within(namespace, || {
        let kind = SocketType::RAW;
        let socket = socket_with(AddressFamily::PACKET, kind, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("opens");
        let index = name_to_index(&socket, link).expect("the link is there");
        sendto(&socket, frame, SendFlags::empty(), &Link(index)).expect("sends");
    });
}

/// The address of everybody behind a link (`struct sockaddr_ll`).
struct Link(u32);

// SAFETY: the pointer is to an array that lives through the call, and the length is the array's.
unsafe impl SocketAddrArg for Link {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let mut bytes = [0_u8; 20];
        bytes[..2].copy_from_slice(&AddressFamily::PACKET.as_raw().to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.0.to_ne_bytes());
        f(bytes.as_ptr().cast(), 20)
    }
}

fn datagram(word: &str) -> Vec<u8> {
    let length = u16::try_from(8 + word.len()).expect("short").to_be_bytes();
    let [high, low] = PORT.to_be_bytes();
    let mut bytes = vec![high, low, high, low, length[0], length[1], 0, 0];
    bytes.extend(word.bytes());
    bytes
}

/// Of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |it| u32::from(*it));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded above")
}

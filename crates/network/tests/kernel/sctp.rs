//! SCTP by hand, as far as connections are led: kernels in tests need not have it themselves.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto,
    socket_with,
};

use crate::hosts::{PORT, inside};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Kind, flags, length, tag, window, streams, number.
const CHUNK_BYTES: u8 = 20;
const COMMON_BYTES: usize = 12;

/// What an end sees of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) to: u16,
    kind: u8,
    tag: u32,
    is_whole: bool,
}

fn open() -> OwnedFd {
    let (family, kind) = (AddressFamily::INET, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::SCTP));
    let socket = socket.expect("needs root");
    let patience = Some(Duration::from_secs(3));
    set_socket_timeout(&socket, Timeout::Recv, patience).expect("sets");
    socket
}

/// Answers each beginning of an association, for as long as the test runs, with the caller's address as its tag.
pub(crate) fn serve(netns: &Path) {
    let socket = inside(netns, open);
    set_socket_timeout(&socket, Timeout::Recv, None).expect("sets");
    std::thread::spawn(move || {
        while let Ok(begun) = receive(&socket) {
            if begun.kind == INIT && begun.to == PORT && begun.is_whole {
                let seen = begun.from.0.to_bits();
                let _ = send(&socket, begun.from, begun.to, INIT_ACK, (begun.tag, seen));
            }
        }
    });
}

/// Begins an association from a port; answers with who answered, and the address that was seen.
pub(crate) fn ask(to: (Ipv4Addr, u16), port: u16) -> Option<((Ipv4Addr, u16), Ipv4Addr)> {
    let socket = open();
    send(&socket, to, port, INIT, (0, 7)).ok()?;
    loop {
        let answer = receive(&socket).ok()?;
        if answer.to == port && answer.kind == INIT_ACK && answer.is_whole {
            return Some((answer.from, Ipv4Addr::from_bits(answer.tag)));
        }
    }
}

/// `tags` are of the packet, and what its chunk tells.
fn send(
    socket: &OwnedFd,
    to: (Ipv4Addr, u16),
    from: u16,
    kind: u8,
    tags: (u32, u32),
) -> io::Result<()> {
    let mut packet = [from.to_be_bytes(), to.1.to_be_bytes()].concat();
    packet.extend(tags.0.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0, 0, CHUNK_BYTES]);
    packet.extend(tags.1.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..COMMON_BYTES].copy_from_slice(&sum.to_le_bytes());
    let to = SocketAddr::new(IpAddr::V4(to.0), 0);
    sendto(socket, &packet, SendFlags::empty(), &to)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<Packet> {
    let mut bytes = [0; 2048];
    let (_, length, _) = recvfrom(socket, &mut bytes[..], RecvFlags::empty())?;
    let header = usize::from(bytes[0] & 0xf) * 4;
    let source = [bytes[12], bytes[13], bytes[14], bytes[15]];
    let packet = &bytes[header..length];
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| packet[at + byte]));
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let mut blank = packet.to_vec();
    blank[8..COMMON_BYTES].fill(0);
    Ok(Packet {
        from: (source.into(), port(0)),
        to: port(2),
        kind: packet[COMMON_BYTES],
        tag: word(COMMON_BYTES + 4),
        is_whole: crc32c(&blank).to_le_bytes() == packet[8..COMMON_BYTES],
    })
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    let add = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum));
    !bytes.iter().fold(u32::MAX, add)
}

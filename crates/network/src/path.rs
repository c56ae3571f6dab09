//! How long packets to another node may be, where a link on the way takes less than this node's own.
//!
//! Echo requests are sent that no router may take apart. A router that cannot pass one on says what it takes, which the
//! kernel remembers and goes by; where routers are silent, lengths are tried until one is answered.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, Timeout, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto,
    recv, send, socket_with,
};

use crate::mtu::{self, LEAST};

/// How often a length is tried before it is taken as too long: packets get lost.
const TRIES: u16 = 3;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// A node that does not answer this does not answer at all, in bytes of the whole packet.
const SHORT: u32 = 128;

/// How many routers on the way may each take less than the one before.
const NARROWER_MAX: usize = 8;

/// Bytes between what passes and what does not that are not worth another try.
const CLOSE: u32 = 8;

/// Of IPv4, which raw sockets leave on what they receive, as of IPv6, which they do not.
const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;
/// Type, code, sum, identifier, number.
const ECHO_HEADER: usize = 8;

/// What a way takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Of the longest packet that arrives whole.
    pub bytes: u32,
    /// Whether this node's own link takes more.
    pub is_narrow: bool,
}

/// How long packets to another node may be, and whether that is less than this node's link takes; nothing where it cannot be
/// found out. Takes some seconds in the worst case.
///
/// # Errors
/// Where this node cannot send to it at all.
pub fn find(local: Option<IpAddr>, node: IpAddr) -> io::Result<Option<Path>> {
    let most = mtu::between_nodes(local);
    let found = longest(local, node, most)?;
    Ok(found.map(|bytes| Path { bytes, is_narrow: bytes < most }))
}

/// Bytes of the longest packet that reaches `node` whole, `most` at most. Nothing where that cannot be found out: a node
/// that answers no echo, behind routers that say nothing.
///
/// # Errors
/// Where this node cannot send to it at all.
fn longest(local: Option<IpAddr>, node: IpAddr, most: u32) -> io::Result<Option<u32>> {
    let mut echo = Echo::open(local, node)?;
    let mut asked = most;
    for _ in 0..NARROWER_MAX {
        if echo.passes(asked)? {
            return Ok(Some(asked));
        }
        let told = echo.told()?.max(LEAST);
        if told >= asked {
            break;
        }
        asked = told;
    }
    if !echo.passes(SHORT)? {
        // What a router said holds; silence says nothing.
        return Ok((asked < most).then_some(asked));
    }
    let (mut passes, mut fails) = (LEAST, asked);
    while fails > passes + CLOSE {
        let middle = passes.midpoint(fails);
        match echo.passes(middle)? {
            true => passes = middle,
            false => fails = middle,
        }
    }
    Ok(Some(passes))
}

/// A socket for echo requests to one node.
struct Echo {
    socket: OwnedFd,
    node: IpAddr,
    is_v4: bool,
    /// Tells our requests from those of others on this host.
    id: u16,
    number: u16,
}

impl Echo {
    fn open(local: Option<IpAddr>, node: IpAddr) -> io::Result<Self> {
        let is_v4 = node.is_ipv4();
        let (family, protocol) = match is_v4 {
            true => (AddressFamily::INET, ipproto::ICMP),
            false => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let protocol: Option<Protocol> = Some(protocol);
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        match is_v4 {
            true => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            false => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        if let Some(local) = local.filter(|local| local.is_ipv4() == is_v4) {
            bind(&socket, &SocketAddr::new(local, 0))?;
        }
        connect(&socket, &SocketAddr::new(node, 0))?;
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { socket, node, is_v4, id: u16::from_ne_bytes(id), number: 0 })
    }

    /// Whether a packet of this length is answered.
    fn passes(&mut self, bytes: u32) -> io::Result<bool> {
        for _ in 0..TRIES {
            self.number = self.number.wrapping_add(1);
            let request = self.request(bytes);
            // An error of an earlier packet is told here too, once.
            let sent = send(&self.socket, &request, SendFlags::empty())
                .or_else(|_| send(&self.socket, &request, SendFlags::empty()));
            match sent {
                Ok(_) if self.is_answered()? => return Ok(true),
                Ok(_) => {}
                // Our own link takes less than we thought, or a router has just said so.
                Err(rustix::io::Errno::MSGSIZE) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if self.told()? < bytes {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn is_answered(&self) -> io::Result<bool> {
        let end = Instant::now() + PATIENCE;
        let mut answer = [0; 64];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|it| !it.is_zero())
        {
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))?;
            match recv(&self.socket, &mut answer[..], RecvFlags::empty()) {
                Ok((length, _)) if self.is_reply(&answer[..length]) => return Ok(true),
                Ok(_) => {}
                // Told of the packet: there will be no answer to it.
                Err(rustix::io::Errno::MSGSIZE) => return Ok(false),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// What the kernel knows of the way.
    fn told(&self) -> io::Result<u32> {
        if self.is_v4 {
            return Ok(ip_mtu(&self.socket)?);
        }
        // A raw socket of IPv6 goes on telling of the way as it was when it was connected.
        connect(&self.socket, &SocketAddr::new(self.node, 0))?;
        Ok(ipv6_mtu(&self.socket)?)
    }

    fn request(&self, bytes: u32) -> Vec<u8> {
        let header = if self.is_v4 { HEADER_V4 } else { HEADER_V6 };
        let length = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(header);
        let mut request = vec![0; length.clamp(ECHO_HEADER, usize::from(u16::MAX))];
        request[0] = if self.is_v4 { 8 } else { 128 };
        request[4..6].copy_from_slice(&self.id.to_be_bytes());
        request[6..8].copy_from_slice(&self.number.to_be_bytes());
        if self.is_v4 {
            let sum = sum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        request
    }

    fn is_reply(&self, packet: &[u8]) -> bool {
        let start = match (self.is_v4, packet.first()) {
            (true, Some(first)) => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let Some(header) = packet.get(start..start + ECHO_HEADER) else { return false };
        let reply = if self.is_v4 { 0 } else { 129 };
        header[0] == reply
            && header[4..6] == self.id.to_be_bytes()
            && header[6..8] == self.number.to_be_bytes()
    }
}

/// Of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded above")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_this_host_is_reached_by_packets_of_any_length() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(longest(None, loopback, 1_500).unwrap(), Some(1_500));
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x220d);
        assert_eq!(sum(&[0xff]), 0x00ff);
    }
}

//! From the network to the device: what a peer has sealed, and comes from that peer's address, or nothing.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use boringtun::noise::{Packet, Tunn, TunnResult};
use rustix::io::Errno;

use crate::batch::DATAGRAM_MAX;
use crate::join::Join;
use crate::peers::{Link, LinkState, Peers};
use crate::sys;

/// What the kernel may have joined.
const JOINED_BYTES_MAX: usize = 65_536;

/// First byte of a packet that tells an overloaded peer's wish, and that anybody could have sent.
const COOKIE_REPLY: u8 = 3;

/// Works until the socket or the device is gone.
pub(crate) fn run(
    device: &OwnedFd,
    socket: &OwnedFd,
    peers: &Arc<Peers>,
) -> rustix::io::Result<()> {
    let mut joined = vec![0; JOINED_BYTES_MAX];
    let (buffer, join) = (vec![0; DATAGRAM_MAX], Join::new());
    let mut opening = Opening { device, socket, peers, buffer, join };
    loop {
        match sys::receive(socket, &mut joined) {
            Ok(received) => {
                for datagram in joined[..received.length].chunks(received.segment) {
                    opening.open(datagram, received.from)?;
                }
                opening.join.flush(device)?;
            }
            // What the network says of datagrams sent before.
            Err(Errno::INTR | Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH) => {}
            Err(errno) => return Err(errno),
        }
    }
}

struct Opening<'a> {
    device: &'a OwnedFd,
    socket: &'a OwnedFd,
    peers: &'a Peers,
    buffer: Vec<u8>,
    join: Join,
}

impl Opening<'_> {
    fn open(&mut self, datagram: &[u8], from: SocketAddr) -> rustix::io::Result<()> {
        let Some(link) = self.sender(datagram, from) else { return Ok(()) };
        let mut state = link.lock();
        let opened = state.noise.decapsulate(Some(from.ip()), datagram, &mut self.buffer);
        match opened {
            TunnResult::WriteToTunnelV6(packet, source) => {
                let is_theirs = source == link.address;
                let length = packet.len();
                state.endpoint = from;
                drop(state);
                if is_theirs { self.join.push(self.device, &self.buffer[..length]) } else { Ok(()) }
            }
            TunnResult::WriteToNetwork(answer) => {
                let _ = sys::send_segments(self.socket, answer, answer.len(), from);
                if datagram.first() != Some(&COOKIE_REPLY) && !is_cookie_reply(answer) {
                    state.endpoint = from;
                    self.send_waiting(&mut state);
                }
                Ok(())
            }
            TunnResult::Done => {
                if datagram.first() != Some(&COOKIE_REPLY) {
                    state.endpoint = from;
                }
                Ok(())
            }
            // IPv4 is nobody's address here.
            TunnResult::WriteToTunnelV4(..) | TunnResult::Err(_) => Ok(()),
        }
    }

    /// Whose datagram this claims to be.
    fn sender(&mut self, datagram: &[u8], from: SocketAddr) -> Option<Arc<Link>> {
        match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => {
                // Before any arithmetic is spent on it.
                let limiter = &self.peers.limiter;
                match limiter.verify_packet(Some(from.ip()), datagram, &mut self.buffer) {
                    Ok(Packet::HandshakeInit(packet)) => self.peers.by_handshake(&packet),
                    Err(TunnResult::WriteToNetwork(cookie)) => {
                        let _ = sys::send_segments(self.socket, cookie, cookie.len(), from);
                        None
                    }
                    _ => None,
                }
            }
            Packet::HandshakeResponse(packet) => self.peers.by_receiver(packet.receiver_idx),
            Packet::PacketCookieReply(packet) => self.peers.by_receiver(packet.receiver_idx),
            Packet::PacketData(packet) => self.peers.by_receiver(packet.receiver_idx),
        }
    }

    /// Sends what waited for the session that has just begun.
    fn send_waiting(&mut self, state: &mut LinkState) {
        let to = state.endpoint;
        while let TunnResult::WriteToNetwork(datagram) =
            state.noise.decapsulate(None, &[], &mut self.buffer)
        {
            let _ = sys::send_segments(self.socket, datagram, datagram.len(), to);
        }
    }
}

fn is_cookie_reply(answer: &[u8]) -> bool {
    answer.first() == Some(&COOKIE_REPLY)
}

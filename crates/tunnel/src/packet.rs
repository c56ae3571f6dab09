//! One packet on a `SOCK_SEQPACKET` socket, never longer than agreed.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send as send_some};

use crate::protocol::PACKET_BYTES_MAX;

pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> rustix::io::Result<()> {
    if bytes.len() > PACKET_BYTES_MAX {
        return Err(Errno::MSGSIZE);
    }
    loop {
        match send_some(&socket, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one packet; empty at the end of the connection.
pub(crate) fn receive(socket: impl AsFd) -> rustix::io::Result<Vec<u8>> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    loop {
        match recv(&socket, &mut bytes[..], RecvFlags::TRUNC) {
            Err(Errno::INTR) => {}
            Ok((_, length)) if length > PACKET_BYTES_MAX => return Err(Errno::MSGSIZE),
            Ok((_, length)) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
            Err(errno) => return Err(errno),
        }
    }
}

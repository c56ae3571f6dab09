//! One packet with descriptors on a `SOCK_SEQPACKET` socket, never longer than agreed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};

use crate::protocol::{PACKET_BYTES_MAX, PACKET_FDS_MAX};

/// Sends one packet.
///
/// # Errors
/// `EMSGSIZE` above [`PACKET_BYTES_MAX`], `EAGAIN` when a non-blocking socket is full.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > PACKET_FDS_MAX {
        return Err(Errno::MSGSIZE);
    }
    match send_once(&socket, bytes, fds) {
        // The kernel's default buffer takes about 200 KiB.
        Err(Errno::MSGSIZE) => {
            sockopt::set_socket_send_buffer_size_force(&socket, 2 * PACKET_BYTES_MAX)?;
            send_once(&socket, bytes, fds)
        }
        other => other,
    }
}

fn send_once(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one packet; empty at the end of the connection.
///
/// # Errors
/// `EMSGSIZE` above [`PACKET_BYTES_MAX`], `EAGAIN` when a non-blocking socket has none.
pub(crate) fn receive(socket: impl AsFd) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; packet_length(&socket)?];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            // The other end closed before it read everything; what it sent comes first.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?.bytes,
        }
    };
    bytes.truncate(length);
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((bytes, fds))
}

/// Bytes to set aside for the packet that is next.
fn packet_length(socket: impl AsFd) -> rustix::io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    let length = loop {
        match rustix::net::recv(&socket, &mut [0u8; 1], flags) {
            // The other end closed before it read everything; what it sent comes first.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?.1,
        }
    };
    if length > PACKET_BYTES_MAX {
        return Err(Errno::MSGSIZE);
    }
    Ok(length.max(1))
}

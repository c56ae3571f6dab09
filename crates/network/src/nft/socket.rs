//! The netlink socket that transactions go through.
#![allow(
    unsafe_code,
    reason = "rustix has no netfilter netlink options; two setsockopt calls are made by hand"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::message::Batch;

const NETLINK_NETFILTER: i32 = 12;
const SOL_NETLINK: i32 = 270;
const NETLINK_CAP_ACK: i32 = 10;

/// Room for a whole transaction in the socket: 500 elements of a few hundred bytes, many times over.
const BUFFER_BYTES: i32 = 8 << 20;

#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_NETFILTER)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, sequence: 1 };
        // Errors then do not carry the whole batch back.
        socket.set_option(SOL_NETLINK, NETLINK_CAP_ACK, 1)?;
        socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER_BYTES)?;
        socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES)?;
        Ok(socket)
    }

    fn set_option(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        let (fd, pointer) = (self.fd.as_raw_fd(), (&raw const value).cast());
        let length = u32::try_from(size_of::<i32>()).expect("four bytes");
        // SAFETY: `pointer` and `length` describe `value`, which lives through the call.
        let result = unsafe { libc::setsockopt(fd, level, option, pointer, length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.sequence)
    }

    /// Carries the batch out. nfnetlink answers within `send`, so whatever it has to say is there afterwards.
    pub(super) fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let (bytes, first, next) = batch.finish();
        self.sequence = next;
        rustix::net::send(&self.fd, &bytes, rustix::net::SendFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        let mut failure = None;
        while let Ok((_, length)) =
            rustix::net::recv(&self.fd, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT)
        {
            failure = failure.or(first_error(&buffer[..length]));
        }
        match failure {
            None => Ok(()),
            Some((sequence, errno)) => {
                let error = io::Error::from_raw_os_error(errno);
                let message = sequence.saturating_sub(first);
                Err(io::Error::new(
                    error.kind(),
                    format!("message {message} of the batch: {error}"),
                ))
            }
        }
    }
}

/// Sequence number and error code of the first refusal in a datagram.
fn first_error(mut bytes: &[u8]) -> Option<(u32, i32)> {
    const NLMSG_ERROR: u16 = 2;
    while let Some(header) = bytes.first_chunk::<20>() {
        let length = u32::from_ne_bytes(*header.first_chunk()?);
        let kind = u16::from_ne_bytes(*header[4..].first_chunk()?);
        let sequence = u32::from_ne_bytes(*header[8..].first_chunk()?);
        let code = i32::from_ne_bytes(*header[16..].first_chunk()?);
        if kind == NLMSG_ERROR && code != 0 {
            return Some((sequence, -code));
        }
        let step = usize::try_from(length).ok()?.next_multiple_of(4).max(16);
        bytes = bytes.get(step..)?;
    }
    None
}

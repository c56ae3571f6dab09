//! The netlink socket that transactions go through.
#![allow(
    unsafe_code,
    reason = "rustix has no netfilter netlink options; two setsockopt calls are made by hand"
)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

use super::message::{Batch, Family};
use crate::Error;

const NETLINK_NETFILTER: i32 = 12;
const SOL_NETLINK: i32 = 270;
const NETLINK_CAP_ACK: i32 = 10;

/// Room for a whole transaction in the socket: 500 elements of a few hundred bytes, many times over.
const BUFFER_BYTES: i32 = 8 << 20;

/// The addresses of all sockets of this process: what is told of changes names who made them.
static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// The kernel's number for the socket.
    port: u32,
}

/// Whether the socket with that number is one of this process.
pub(super) fn is_own(port: u32) -> bool {
    OWN.lock().expect("nothing panics while it is held").contains(&port)
}

impl Drop for Socket {
    fn drop(&mut self) {
        OWN.lock().expect("nothing panics while it is held").remove(&self.port);
    }
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
        let port = bind_anywhere(&fd)?;
        OWN.lock().expect("nothing panics while it is held").insert(port);
        let socket = Self { fd, sequence: 1, port };
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

    /// A transaction on tables for IPv4.
    pub(super) fn batch(&self) -> Batch {
        self.batch_for(Family::Ipv4)
    }

    pub(super) fn batch_for(&self, family: Family) -> Batch {
        Batch::new(self.sequence, family)
    }

    /// Carries out a batch that is all about one table.
    pub(super) fn commit_to(&mut self, table: &str, batch: Batch) -> Result<(), Error> {
        let what = format!("change nftables table {table}");
        self.commit(batch).map_err(Error::kernel(what))
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

impl Socket {
    /// One message outside of transactions; answers with the bodies of what comes back, which begin with `nfgenmsg`.
    /// Its flags must ask for an answer: for a list, or for an acknowledgement.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> io::Result<Vec<Vec<u8>>> {
        let length = u32::try_from(16 + body.len()).expect("messages are short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        self.sequence = self.sequence.wrapping_add(1);
        rustix::net::send(&self.fd, &message, rustix::net::SendFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        let mut bodies = Vec::new();
        loop {
            let (_, length) =
                rustix::net::recv(&self.fd, &mut buffer[..], rustix::net::RecvFlags::empty())?;
            if take(&buffer[..length], &mut bodies)? {
                return Ok(bodies);
            }
        }
    }
}

/// Has the kernel give the socket a number; answers with it.
fn bind_anywhere(fd: &OwnedFd) -> io::Result<u32> {
    // SAFETY: an address of zeros is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = u16::try_from(libc::AF_NETLINK).expect("a small number");
    let mut length = u32::try_from(size_of::<libc::sockaddr_nl>()).expect("a small structure");
    let place = (&raw mut address).cast();
    // SAFETY: `place` and `length` describe `address`, which lives through both calls.
    let bound = unsafe {
        match libc::bind(fd.as_raw_fd(), place, length) {
            0 => libc::getsockname(fd.as_raw_fd(), place, &raw mut length),
            failed => failed,
        }
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(address.nl_pid) }
}

/// Takes the messages of one datagram; true when the answer is complete.
fn take(mut bytes: &[u8], bodies: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while let Some(header) = bytes.first_chunk::<16>() {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(16..length).unwrap_or_default();
        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        match kind {
            NLMSG_ERROR if code == 0 => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::from_raw_os_error(-code)),
            NLMSG_DONE => return Ok(true),
            _ => bodies.push(body.to_vec()),
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    Ok(false)
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

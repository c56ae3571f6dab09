//! Hears when somebody else takes tables, chains or rules of ours away, as `nft flush ruleset` does.
#![allow(unsafe_code, reason = "rustix joins no netlink groups; one bind call is made by hand")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, recv};

use super::list::parts;
use super::socket::is_own;

const NETLINK_NETFILTER: i32 = 12;
/// `1 << (NFNLGRP_NFTABLES - 1)`.
const NFTABLES_GROUP: u32 = 1 << 6;
const HEADER_BYTES: usize = 16;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// `NFT_MSG_*` that take away more than elements, which change all the time.
const REMOVALS: [u16; 4] = [2, 5, 8, 11];

/// What the kernel says of every change of the ruleset.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    /// Beginning of our tables' names.
    prefix: String,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    /// Something of ours may be gone.
    Removal,
}

impl Watch {
    /// In the present network namespace. A look ends after `patience` in any case.
    pub(crate) fn open(prefix: &str, patience: Duration) -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_NETFILTER)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an address of zeros is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = u16::try_from(libc::AF_NETLINK).expect("a small number");
        address.nl_groups = NFTABLES_GROUP;
        let length = u32::try_from(size_of::<libc::sockaddr_nl>()).expect("a small structure");
        // SAFETY: `address` lives through the call, and `length` is its own.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        set_socket_timeout(&fd, Timeout::Recv, Some(patience))?;
        Ok(Self { fd, prefix: prefix.to_owned() })
    }

    /// Waits for changes and takes all that are there.
    pub(crate) fn listen(&self) -> io::Result<Heard> {
        let mut buffer = vec![0; 64 << 10];
        let mut heard = Heard::Nothing;
        let mut flags = RecvFlags::empty();
        loop {
            match recv(&self.fd, &mut buffer[..], flags) {
                Ok((_, length)) if self.is_removal(&buffer[..length]) => heard = Heard::Removal,
                Ok(_) => {}
                // More was said than there was room for.
                Err(Errno::NOBUFS) => heard = Heard::Removal,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(heard),
                Err(errno) => return Err(errno.into()),
            }
            flags = RecvFlags::DONTWAIT;
        }
    }

    fn is_removal(&self, mut bytes: &[u8]) -> bool {
        while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(body) = bytes.get(HEADER_BYTES..length) else { return true };
            let is_ours = parts(body).next().is_some_and(|(kind, table)| {
                kind == 1 && table.starts_with(self.prefix.as_bytes())
            });
            let takes_away = kind >> 8 == NFNL_SUBSYS_NFTABLES && REMOVALS.contains(&(kind & 0xff));
            let by = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]);
            if is_ours && takes_away && !is_own(by) {
                return true;
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        false
    }
}

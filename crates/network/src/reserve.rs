//! Holds a published port on the host, so that no process can take it and none that has it is cut off.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::ports::{Front, Protocol};

/// A bound socket nobody ever reads: connections are led to containers before they reach it.
#[derive(Debug)]
pub(crate) struct Reservation {
    _socket: Option<OwnedFd>,
}

impl Reservation {
    /// # Errors
    /// When a process of the host has the port.
    pub(crate) fn new(front: Front) -> io::Result<Self> {
        let address = SocketAddr::new(front.address, front.port);
        let socket = match front.protocol {
            Protocol::Tcp => Some(hold_stream(address)?),
            Protocol::Udp => Some(hold(address, SocketType::DGRAM, false)?),
            // SCTP sockets need a kernel module that few hosts load; nobody else is likely to have the port.
            Protocol::Sctp => None,
        };
        Ok(Self { _socket: socket })
    }
}

/// Binds and does not listen: where there is nobody to lead to, connections are refused and do not wait.
fn hold_stream(address: SocketAddr) -> io::Result<OwnedFd> {
    // Connections of whoever had the port before, which are closed but not yet forgotten, are no obstacle. After that,
    // nobody else is to be allowed the same.
    let socket = hold(address, SocketType::STREAM, true)?;
    sockopt::set_socket_reuseaddr(&socket, false)?;
    Ok(socket)
}

/// Binds to one version of IP alone: the other one has a socket of its own.
fn hold(address: SocketAddr, kind: SocketType, reuses: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuses)?;
    bind(&socket, &address)?;
    Ok(socket)
}

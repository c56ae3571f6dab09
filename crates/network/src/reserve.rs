//! Holds a published port on the host, so that no process can take it and none that has it is cut off.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
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
        let address = SocketAddrV4::new(front.address.unwrap_or(Ipv4Addr::UNSPECIFIED), front.port);
        let socket = match front.protocol {
            Protocol::Tcp => Some(hold(address)?),
            Protocol::Udp => Some(OwnedFd::from(UdpSocket::bind(address)?)),
            // SCTP sockets need a kernel module that few hosts load; nobody else is likely to have the port.
            Protocol::Sctp => None,
        };
        Ok(Self { _socket: socket })
    }
}

/// Binds and does not listen: where there is nobody to lead to, connections are refused and do not wait.
fn hold(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connections of whoever had the port before, which are closed but not yet forgotten, are no obstacle. After that,
    // nobody else is to be allowed the same.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    sockopt::set_socket_reuseaddr(&socket, false)?;
    Ok(socket)
}

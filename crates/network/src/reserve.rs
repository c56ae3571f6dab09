//! Holds a published port on the host, so that no process can take it and none that has it is cut off.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

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
            Protocol::Tcp => Some(OwnedFd::from(TcpListener::bind(address)?)),
            Protocol::Udp => Some(OwnedFd::from(UdpSocket::bind(address)?)),
            // SCTP sockets need a kernel module that few hosts load; nobody else is likely to have the port.
            Protocol::Sctp => None,
        };
        Ok(Self { _socket: socket })
    }
}

//! What can go wrong between us and the kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no free address in {subnet}")]
    NoAddress { subnet: Ipv4Net },
    #[error("no free subnet for bridge {bridge}: name one with --bip")]
    NoSubnet { bridge: String },
    /// Docker's words.
    #[error("no available IPv4 addresses on this network's address pools: {name} ({id})")]
    NoAddressLeft { name: String, id: String },
    /// Docker's words.
    #[error("Address already in use")]
    AddressTaken { address: Ipv4Addr },
    /// Docker's words.
    #[error("Invalid address {address}: It does not belong to any of this network's subnets")]
    AddressOutside { address: Ipv4Addr },
    #[error("container {container} has no network namespace")]
    NoNamespace { container: String },
    #[error("more than {most} other nodes: their connections cannot be told apart")]
    TooManyNodes { most: u16 },
    #[error("network {id} is not on this node")]
    NoOverlay { id: String },
    #[error("this node has no tunnel for encrypted networks")]
    NoTunnel,
    #[error("encrypted networks are turned off on this node")]
    NoSealer,
    #[error(transparent)]
    Tunnel(#[from] ::tunnel::Error),
    #[error("container {container} was given no address")]
    NoAddressGiven { container: String },
    /// Docker's words.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken { address: IpAddr, port: u16 },
    /// A process of the host has it, or the host does not give it. Docker's words.
    #[error("listen {protocol} {address}: bind: {}", reason(source))]
    PortHeld {
        /// With the version of IP: `tcp4`.
        protocol: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The C library's words, as Docker prints them.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

impl Error {
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }

    pub(crate) fn file<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

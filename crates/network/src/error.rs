//! What can go wrong between us and the kernel.

use std::io;
use std::net::IpAddr;
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
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken { address: IpAddr, port: u16 },
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

//! Links, addresses, name service and load balancing of one node.
//!
//! A container's network namespace is made here, before the container, and outlives the daemon as a file
//! under the run directory.
#![allow(clippy::unused_async, reason = "signatures agreed first; bodies follow")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where this node's network lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// Distinguishes daemons that share a host: part of the bridge's and the table's names. At most 8 characters.
    pub instance: String,
    /// The bridge's name; at most 15 bytes (IFNAMSIZ).
    pub bridge: String,
    /// The bridge's subnet; without one the first free /16 of 172.17.0.0/12 is taken.
    pub subnet: Option<Ipv4Net>,
    /// Holds `netns/<container>`: files that keep the namespaces alive.
    pub run_dir: PathBuf,
    /// Holds leases.
    pub state_dir: PathBuf,
}

/// One container's attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// File that names the container's network namespace.
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub mac: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of this host and the containers that serve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// `None`: all addresses of the host.
    pub host_ip: Option<IpAddr>,
    pub published: u16,
    pub target: u16,
    pub backends: Vec<Ipv4Addr>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Kernel {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no free address in {subnet}")]
    NoAddress { subnet: Ipv4Net },
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken { address: IpAddr, port: u16 },
}

/// Local network of one node: one bridge, one nftables table.
#[derive(Debug)]
pub struct Network {
    config: Config,
    endpoints: BTreeMap<String, Endpoint>,
}

impl Network {
    /// Makes or takes over the bridge and the table, and reads the leases.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Ok(Self { config, endpoints: BTreeMap::new() })
    }

    /// Makes the namespace of `container` with a link to the bridge. Idempotent.
    pub async fn connect(&self, container: &str) -> Result<Endpoint, Error> {
        let _ = (&self.config, container);
        Err(Error::Kernel {
            what: "not built yet".into(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    /// A namespace without any link but loopback.
    pub async fn isolate(&self, container: &str) -> Result<PathBuf, Error> {
        let _ = container;
        Err(Error::Kernel {
            what: "not built yet".into(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    /// Removes namespace, link and lease. Idempotent.
    pub async fn disconnect(&self, container: &str) -> Result<(), Error> {
        let _ = container;
        Ok(())
    }

    pub fn endpoint(&self, container: &str) -> Option<Endpoint> {
        self.endpoints.get(container).cloned()
    }

    /// Replaces all ports of `owner` (a container or a service); an empty list removes them.
    ///
    /// # Errors
    /// [`Error::PortTaken`] when another owner or a process of the host has the port; nothing changes then.
    pub async fn publish(&self, owner: &str, ports: Vec<PublishedPort>) -> Result<(), Error> {
        let _ = (owner, ports);
        Ok(())
    }

    /// Removes bridge and table, when the node is taken down for good.
    pub async fn close(self) -> Result<(), Error> {
        Ok(())
    }
}

//! What was seen of a host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A host, as far as a node cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the kernel refuses to make, and with which words.
    pub missing: BTreeMap<String, String>,
    /// Whether the kernel has overlayfs.
    pub has_overlayfs: bool,
    /// Control group controllers that may be used.
    pub controllers: Vec<String>,
    /// Values beneath `/proc/sys`, by path; those that are not there are left out.
    pub sysctls: BTreeMap<String, String>,
    /// Chains of others that drop what this host passes on.
    pub walls: Vec<Wall>,
    /// Why the ruleset could not be read.
    pub unread_firewall: Option<String>,
    /// The host's links that have an IPv4 address.
    pub links: Vec<Link>,
    /// Ports of ours that a process which is not ours holds: as `4789/udp`.
    pub held_ports: Vec<String>,
    pub membership: Option<Membership>,
}

/// A chain that packets on their way through the host pass, and whose policy is to drop them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wall {
    pub family: String,
    pub table: String,
    pub chain: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub address: Ipv4Addr,
    /// Bytes.
    pub mtu: u32,
}

/// The node's place in a swarm, by its daemon's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub address: String,
    /// Managers that did not take a connection: address, and why.
    pub unreachable: Vec<(String, String)>,
    /// Nodes to which packets as long as this node's link takes do not arrive: address, and the bytes that do.
    pub narrow: Vec<(String, u32)>,
}

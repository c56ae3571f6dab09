//! Why a network cannot be made, removed, entered or left, in Docker's words.

use ipnet::IpNet;

use crate::error::ErrorKind;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("network {name} not found")]
    NotFound { name: String },
    #[error("network {name} is ambiguous ({count} matches found based on ID prefix)")]
    Ambiguous { name: String, count: usize },
    #[error("network name cannot be empty")]
    NoName,
    #[error("network with name {name} already exists")]
    NameTaken { name: String },
    // The space at the end is Docker's.
    #[error("operation is not permitted on predefined {name} network ")]
    Predefined { name: String },
    #[error("{name} is a pre-defined network and cannot be removed")]
    RemovePredefined { name: String },
    #[error("plugin \"{driver}\" not found")]
    Driver { driver: String },
    #[error("only one instance of \"{driver}\" network is allowed")]
    OnlyOne { driver: String },
    #[error("Ingress network can only be global scope network")]
    LocalIngress,
    #[error("cannot create a swarm scoped network when swarm is not active")]
    NoSwarm,
    #[error("IPv4 or IPv6 must be enabled")]
    NoFamily,
    #[error("failed to parse {option} value: {value} ({reason})")]
    Option { option: String, value: String, reason: String },
    #[error("invalid bridge name {link}: at most 15 characters, no slash or space")]
    LinkName { link: String },
    #[error(
        "cannot create network {id} ({link}): conflicts with network {other} ({link}): networks have same bridge name"
    )]
    LinkTaken { id: String, link: String, other: String },
    #[error("bridge driver doesn't support multiple subnets")]
    ManySubnets,
    #[error("Invalid subnet {text} : invalid CIDR address: {text}")]
    Subnet { text: String },
    #[error("invalid ip-range {text}: {reason}")]
    Range { text: String, reason: String },
    #[error("invalid auxiliary address {name}:{text}: it is no address of subnet {subnet}")]
    Auxiliary { name: String, text: String, subnet: IpNet },
    #[error("failed to allocate gateway ({text}): {reason}")]
    Gateway { text: String, reason: &'static str },
    #[error("Pool overlaps with other one on this address space")]
    Overlap,
    #[error(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )]
    PoolsUsedUp,
    #[error("configuration-only networks can only use the default driver and no other network")]
    ConfigOnly,
    #[error(
        "user-specified configurations are not supported if the network depends on a configuration network"
    )]
    ConfigFromAndOwn,
    #[error("configuration network \"{name}\" not found")]
    NoConfigFrom { name: String },
    #[error("cannot use network {name}: it only holds a configuration for others")]
    UseConfigOnly { name: String },
    #[error("configuration network \"{name}\" is in use")]
    ConfigInUse { name: String },
    #[error("error while removing network: network {name} has active endpoints ({endpoints})")]
    InUse { name: String, endpoints: String },
    #[error("this node has as many networks as it may have: {max}")]
    TooMany { max: usize },

    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyIn { container: String, network: String },
    #[error("{container} is already attached to network {network}")]
    AlreadyAttached { container: String, network: String },
    #[error("container {id} is not connected to {article}network {network}")]
    NotIn { id: String, article: &'static str, network: String },
    #[error("container cannot be disconnected from host network or connected to host network")]
    Host,
    #[error(
        "container sharing network namespace with another container or host cannot be connected to any other network"
    )]
    Shared,
    #[error(
        "container cannot be connected to multiple networks with one of the networks in private (none) mode"
    )]
    Private,
    #[error("user specified IP address is supported on user defined networks only")]
    AddressOnDefault,
    #[error(
        "user specified IP address is supported only when connecting to networks with user configured subnets"
    )]
    AddressWithoutSubnet,
    #[error("invalid IPv4 address: {text}")]
    Address { text: String },
    #[error("invalid MAC address: {text}")]
    Mac { text: String },
    #[error("Cannot link to a non running container: {target} AS {alias}")]
    LinkNotRunning { target: String, alias: String },
    #[error("Cannot link to {target}, as it does not belong to the default network")]
    LinkElsewhere { target: String },
    #[error("could not get container for {name}: No such container: {name}")]
    LinkMissing { name: String },
    /// What a manager says of an attachment, or why none could be asked.
    #[error("Could not attach to network {network}: {reason}")]
    Attach { network: String, reason: String, kind: ErrorKind },
    #[error("network {network} did not come to this node in time")]
    NotHere { network: String },
}

impl Refusal {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::Driver { .. } | Self::NoConfigFrom { .. } => {
                ErrorKind::NotFound
            }
            Self::NameTaken { .. } => ErrorKind::Conflict,
            Self::Predefined { .. }
            | Self::RemovePredefined { .. }
            | Self::OnlyOne { .. }
            | Self::LocalIngress
            | Self::LinkTaken { .. }
            | Self::ManySubnets
            | Self::Overlap
            | Self::PoolsUsedUp
            | Self::ConfigOnly
            | Self::ConfigFromAndOwn
            | Self::UseConfigOnly { .. }
            | Self::ConfigInUse { .. }
            | Self::InUse { .. }
            | Self::TooMany { .. }
            | Self::AlreadyIn { .. }
            | Self::AlreadyAttached { .. } => ErrorKind::Forbidden,
            Self::NotIn { .. } => ErrorKind::Internal,
            Self::NotHere { .. } => ErrorKind::Unavailable,
            Self::Attach { kind, .. } => *kind,
            _ => ErrorKind::Invalid,
        }
    }
}

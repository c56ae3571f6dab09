//! Cluster networks: what users ask for, and what they were given.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::endpoint::PortConfig;
use crate::{Annotations, Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp};

/// Which network a task joins, and under which names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Name or identifier of the network.
    pub target: String,
    pub aliases: Vec<String>,
    pub driver_options: BTreeMap<String, String>,
}

/// The driver of networks that go from node to node.
pub const OVERLAY: &str = "overlay";

/// A network as the user described it; the system never changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub annotations: Annotations,
    /// Empty means `overlay`.
    pub driver: String,
    pub driver_options: BTreeMap<String, String>,
    pub is_ipv6: bool,
    /// Nothing outside the network is reached from it.
    pub is_internal: bool,
    /// Containers that are no tasks may join.
    pub is_attachable: bool,
    /// The network of published ports.
    pub is_ingress: bool,
    /// Subnets asked for; empty leaves the choice to the allocator.
    pub subnets: Vec<SubnetSpec>,
    pub ipam_options: BTreeMap<String, String>,
    /// Of a network that each node has for itself: what it is called there that holds its configuration.
    pub config_from: String,
}

impl NetworkSpec {
    pub fn driver(&self) -> &str {
        if self.driver.is_empty() { OVERLAY } else { &self.driver }
    }

    /// Whether the address is somebody else's.
    pub fn reserves(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.reserved.values().any(|it| *it == address))
    }

    /// Whether each node has such a network for itself: nothing of it is behind the others, and no addresses are given by
    /// the cluster.
    pub fn is_of_each_node(&self) -> bool {
        self.driver() != OVERLAY
    }

    /// Whether nothing of it may be readable between nodes: `--opt encrypted`, with any value but `false`.
    pub fn is_encrypted(&self) -> bool {
        self.driver_options.get("encrypted").is_some_and(|value| value != "false")
    }
}

/// One subnet as the user wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubnetSpec {
    pub subnet: Option<IpNet>,
    /// Addresses are given from this part of it only.
    pub range: Option<IpNet>,
    pub gateway: Option<IpAddr>,
    /// Addresses that are somebody else's, by names that mean nothing.
    pub reserved: BTreeMap<String, IpAddr>,
}

/// One subnet as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub subnet: IpNet,
    pub range: Option<IpNet>,
    pub gateway: IpAddr,
}

/// A network of the cluster, or a node-local one that services may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    #[serde(default)]
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// Tells the networks apart on the wire; 24 bits. 0 where each node has the network for itself.
    pub vni: u32,
    /// At least one; none where each node has the network for itself.
    pub subnets: Vec<Subnet>,
}

impl Network {
    pub fn name(&self) -> &str {
        &self.spec.annotations.name
    }

    /// The MTU that was asked for by option.
    pub fn mtu(&self) -> Option<u32> {
        self.spec.driver_options.get("com.docker.network.driver.mtu")?.parse().ok()
    }
}

/// A task's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetwork {
    pub network: NetworkId,
    /// With prefix lengths: at most one of each family.
    pub addresses: Vec<IpNet>,
    pub aliases: Vec<String>,
}

/// A plain container's place in a network of the cluster: it is no task, and has an identifier as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerAttachment {
    pub id: TaskId,
    #[serde(default)]
    pub meta: Meta,
    pub node: NodeId,
    pub network: NetworkId,
    /// The container's identifier on its node.
    pub container: String,
    /// The container's name.
    pub name: String,
    pub aliases: Vec<String>,
    /// With prefix lengths: at most one of each family.
    pub addresses: Vec<IpNet>,
}

/// What a node must know of a network in which it has a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNetwork {
    pub id: NetworkId,
    pub name: String,
    pub vni: u32,
    pub subnets: Vec<Subnet>,
    pub mtu: Option<u32>,
    pub is_internal: bool,
    pub is_encrypted: bool,
    /// UDP port of overlays on every node.
    pub data_port: u16,
    /// The network of published ports, which every node is told of.
    #[serde(default)]
    pub is_ingress: bool,
    /// For those who look at the network on this node.
    #[serde(default)]
    pub spec: NetworkSpec,
    #[serde(default)]
    pub created_at: Timestamp,
}

/// What changed in one network, for the nodes that have tasks in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChange {
    pub network: NetworkId,
    /// Whether everything not named here is gone.
    pub is_full: bool,
    /// The network itself, when it is new to the node or was changed.
    pub definition: Option<NodeNetwork>,
    pub peers: Vec<Peer>,
    pub gone: Vec<TaskId>,
    pub services: Vec<NetworkService>,
    pub gone_services: Vec<ServiceId>,
    /// Of the ingress network only: the nodes that connections may come by.
    #[serde(default)]
    pub nodes: Vec<NodePlace>,
    #[serde(default)]
    pub gone_nodes: Vec<NodeId>,
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlace {
    pub node: NodeId,
    /// Where it takes the traffic of overlays.
    pub data_address: IpAddr,
    /// Its keys, the newest first; told where the ingress network is encrypted.
    #[serde(default)]
    pub tunnel_keys: Vec<TunnelKey>,
}

/// A task or an attached container in a network, wherever it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub task: TaskId,
    /// [`ServiceId::MIN`] for a plain container.
    pub service: ServiceId,
    /// The container's name.
    pub name: String,
    /// What else a plain container is found by.
    #[serde(default)]
    pub aliases: Vec<String>,
    pub node: NodeId,
    /// Where its node takes the traffic of overlays.
    pub data_address: Option<IpAddr>,
    /// Its node's keys, the newest first; told for encrypted networks alone.
    #[serde(default)]
    pub tunnel_keys: Vec<TunnelKey>,
    pub addresses: Vec<IpAddr>,
    /// Whether it takes connections: it runs, is healthy, and is not about to stop.
    pub is_serving: bool,
}

/// A key of WireGuard with which a node takes what encrypted networks send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKey {
    /// The public half.
    #[serde(with = "serde_bytes")]
    pub key: [u8; 32],
    /// UDP port on the node.
    pub port: u16,
}

/// How connections to a service are shared out among its tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balancing {
    /// Those from one address go to one task, as long as it is there.
    pub is_sticky: bool,
    /// They go to tasks of the node that they come by, where it has any.
    pub prefers_local: bool,
}

/// A label of a service that says how connections to it are shared out, and the only value that it may have.
const BALANCING_LABELS: [(&str, &str); 2] = [("skep.sticky", "client"), ("skep.prefer", "local")];

impl Balancing {
    /// What a service's labels ask for.
    ///
    /// # Errors
    /// A value that means nothing, in words for whoever wrote it.
    pub fn of(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let [is_sticky, prefers_local] =
            BALANCING_LABELS.map(|(label, value)| match labels.get(label) {
                None => Ok(false),
                Some(given) if given == value => Ok(true),
                Some(given) => Err(format!("label {label}={given}: only {label}={value} is known")),
            });
        Ok(Self { is_sticky: is_sticky?, prefers_local: prefers_local? })
    }
}

/// A service in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkService {
    pub service: ServiceId,
    pub name: String,
    pub aliases: Vec<String>,
    /// Empty for a service whose names lead to its tasks (DNSRR).
    pub virtual_ips: Vec<IpAddr>,
    /// In the ingress network: the ports on which every node answers.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    #[serde(default)]
    pub balancing: Balancing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_how_connections_are_shared_out() {
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(label, value)| ((*label).into(), (*value).into()));
            Balancing::of(&labels.collect())
        };
        let balancing = |is_sticky, prefers_local| Ok(Balancing { is_sticky, prefers_local });
        assert_eq!(of(&[("other", "client")]), balancing(false, false));
        assert_eq!(of(&[("skep.sticky", "client")]), balancing(true, false));
        let both = [("skep.sticky", "client"), ("skep.prefer", "local")];
        assert_eq!(of(&both), balancing(true, true));
        let strange = of(&[("skep.sticky", "cookie")]);
        let told = "label skep.sticky=cookie: only skep.sticky=client is known";
        assert_eq!(strange, Err(told.to_owned()));
    }
}

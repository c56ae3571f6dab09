//! Networks of the cluster.

use std::collections::BTreeMap;

use ipnet::IpNet;
use types::network::{Network, NetworkService, NetworkSpec, Peer, Subnet, SubnetSpec};
use types::{Annotations, ServiceId, endpoint};

use super::{Error, time, version};
use crate::network::{
    ConfigReference, Ipam, IpamConfig, NetworkCreateRequest, NetworkResource, NetworkTask,
    PeerInfo, ServiceInfo,
};
use crate::service::VirtualIp;
use crate::task::{DriverState, IpamState, NetworkAttachment, NetworkSpecState, NetworkState};

/// Digits of a node's identifier that stand for its name.
const PEER_DIGITS: usize = 12;

/// Docker's word for the numbers of an overlay on the wire.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// # Errors
/// Subnets, ranges and gateways that are no addresses.
pub fn spec_from_api(request: NetworkCreateRequest) -> Result<NetworkSpec, Error> {
    let ipam = request.ipam.unwrap_or_default();
    let subnets = ipam.config.unwrap_or_default().into_iter().map(subnet_from_api);
    Ok(NetworkSpec {
        annotations: Annotations { name: request.name, labels: request.labels.unwrap_or_default() },
        driver: request.driver,
        driver_options: request.options.unwrap_or_default(),
        is_ipv6: request.enable_ipv6.unwrap_or_default(),
        is_internal: request.internal,
        is_attachable: request.attachable,
        is_ingress: request.ingress,
        subnets: subnets.collect::<Result<_, _>>()?,
        ipam_options: ipam.options.unwrap_or_default(),
        config_from: request.config_from.map(|from| from.network).unwrap_or_default(),
    })
}

fn subnet_from_api(config: IpamConfig) -> Result<SubnetSpec, Error> {
    let invalid =
        |what: &'static str, value: &str| Error::Unknown { what, value: value.to_owned() };
    let net = |what, text: &str| -> Result<Option<IpNet>, Error> {
        match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| invalid(what, text)),
        }
    };
    Ok(SubnetSpec {
        subnet: net("subnet", &config.subnet)?,
        range: net("ip-range", &config.ip_range)?,
        gateway: match config.gateway.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid("gateway", text))?),
        },
        reserved: { config.auxiliary_addresses.iter() }
            .map(|(name, text)| {
                let address = text.parse().map_err(|_| invalid("aux-address", text))?;
                Ok((name.clone(), address))
            })
            .collect::<Result<_, _>>()?,
    })
}

/// The network as lists show it; who is in it is added by those who know.
pub fn network_to_api(network: &Network) -> NetworkResource {
    let spec = &network.spec;
    let is_of_each_node = spec.is_of_each_node();
    let has = |is_ipv4: bool| {
        network.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4() == is_ipv4)
    };
    let mut options = spec.driver_options.clone();
    if !is_of_each_node {
        options.insert(VNI_OPTION.to_owned(), network.vni.to_string());
    }
    let asked = spec.subnets.iter().map(asked_to_api);
    let given = network.subnets.iter().map(subnet_to_api);
    NetworkResource {
        name: network.name().to_owned(),
        id: network.id.to_string(),
        created: time(network.meta.created_at),
        scope: "swarm".to_owned(),
        driver: spec.driver().to_owned(),
        enable_ipv4: has(true) || is_of_each_node,
        enable_ipv6: has(false) || (is_of_each_node && spec.is_ipv6),
        ipam: Ipam {
            driver: "default".to_owned(),
            options: Some(spec.ipam_options.clone()).filter(|options| !options.is_empty()),
            config: Some(if is_of_each_node { asked.collect() } else { given.collect() }),
        },
        internal: spec.is_internal,
        attachable: spec.is_attachable,
        ingress: spec.is_ingress,
        options,
        config_from: ConfigReference { network: spec.config_from.clone() },
        labels: spec.annotations.labels.clone(),
        ..NetworkResource::default()
    }
}

/// A network that this node is to have for itself, as a user would ask for it.
pub fn request_of(spec: &NetworkSpec) -> NetworkCreateRequest {
    let config_from = spec.config_from.clone();
    NetworkCreateRequest {
        name: spec.annotations.name.clone(),
        driver: spec.driver().to_owned(),
        internal: spec.is_internal,
        attachable: spec.is_attachable,
        enable_ipv6: Some(spec.is_ipv6),
        ipam: Some(Ipam {
            driver: String::new(),
            options: Some(spec.ipam_options.clone()).filter(|options| !options.is_empty()),
            config: Some(spec.subnets.iter().map(asked_to_api).collect()),
        }),
        options: Some(spec.driver_options.clone()),
        labels: Some(spec.annotations.labels.clone()),
        config_from: Some(ConfigReference { network: config_from })
            .filter(|from| !from.network.is_empty()),
        ..NetworkCreateRequest::default()
    }
}

fn asked_to_api(subnet: &SubnetSpec) -> IpamConfig {
    IpamConfig {
        subnet: subnet.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
        ip_range: subnet.range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: subnet.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        auxiliary_addresses: { subnet.reserved.iter() }
            .map(|(name, address)| (name.clone(), address.to_string()))
            .collect(),
    }
}

fn subnet_to_api(subnet: &Subnet) -> IpamConfig {
    IpamConfig {
        subnet: subnet.subnet.to_string(),
        ip_range: subnet.range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: subnet.gateway.to_string(),
        ..IpamConfig::default()
    }
}

/// Adds who is in a network of the swarm: the nodes, and where `is_verbose` the services with their tasks.
pub fn add_members(
    resource: &mut NetworkResource,
    peers: &[Peer],
    services: &[NetworkService],
    ports: &BTreeMap<ServiceId, Vec<endpoint::PortConfig>>,
    is_verbose: bool,
) {
    let nodes: BTreeMap<_, _> =
        peers.iter().filter_map(|peer| Some((peer.node, peer.data_address?))).collect();
    resource.peers = nodes
        .into_iter()
        .map(|(node, address)| PeerInfo {
            name: node.to_string()[..PEER_DIGITS].to_owned(),
            ip: address.to_string(),
        })
        .collect();
    if !is_verbose {
        return;
    }
    for service in services {
        let published = ports.get(&service.service).into_iter().flatten();
        let published =
            published.map(|port| format!("Target: {}, Publish: {}", port.target, port.published));
        let shown = ServiceInfo {
            vip: service.virtual_ips.first().map_or("<nil>".to_owned(), ToString::to_string),
            ports: published.collect(),
            local_lb_index: 0,
            tasks: tasks_of(peers, service.service),
        };
        resource.services.insert(service.name.clone(), shown);
    }
    let containers = tasks_of(peers, ServiceId::MIN);
    if !containers.is_empty() {
        let vip = "<nil>".to_owned();
        let shown = ServiceInfo { vip, tasks: containers, ..ServiceInfo::default() };
        resource.services.insert(String::new(), shown);
    }
}

fn tasks_of(peers: &[Peer], service: ServiceId) -> Vec<NetworkTask> {
    let peers = peers.iter().filter(|peer| peer.service == service);
    let tasks = peers.map(|peer| NetworkTask {
        name: peer.name.clone(),
        endpoint_id: peer.task.to_string(),
        endpoint_ip: peer.addresses.first().map(ToString::to_string).unwrap_or_default(),
        info: peer
            .data_address
            .map(|address| ("Host IP".to_owned(), address.to_string()))
            .into_iter()
            .collect(),
    });
    tasks.collect()
}

/// A network as it stands in a task's attachments.
pub(super) fn attachment_to_api(network: &Network, addresses: &[IpNet]) -> NetworkAttachment {
    let spec = &network.spec;
    let driver = spec.driver();
    let ipam = |configs: Option<Vec<IpamConfig>>| IpamState {
        driver: DriverState { name: "default".to_owned(), options: None },
        configs,
    };
    let asked: Vec<_> = spec.subnets.iter().filter(|subnet| subnet.subnet.is_some()).collect();
    let given: Vec<_> = network.subnets.iter().map(subnet_to_api).collect();
    let options = Some(spec.driver_options.clone()).filter(|options| !options.is_empty());
    let vni = [(VNI_OPTION.to_owned(), network.vni.to_string())];
    let numbers = Some(vni.into()).filter(|_| !spec.is_of_each_node());
    NetworkAttachment {
        network: NetworkState {
            id: network.id.to_string(),
            version: version(&network.meta),
            created_at: time(network.meta.created_at),
            updated_at: time(network.meta.updated_at),
            spec: NetworkSpecState {
                name: network.name().to_owned(),
                labels: spec.annotations.labels.clone(),
                driver_configuration: DriverState { name: driver.to_owned(), options },
                internal: spec.is_internal,
                attachable: spec.is_attachable,
                ingress: spec.is_ingress,
                ipam_options: ipam((!asked.is_empty()).then(|| given.clone())),
                scope: "swarm".to_owned(),
            },
            driver_state: DriverState { name: driver.to_owned(), options: numbers },
            ipam_options: ipam(Some(given)),
        },
        addresses: addresses.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn virtual_ip_to_api(given: &endpoint::VirtualIp) -> VirtualIp {
    VirtualIp { network_id: given.network.to_string(), addr: given.address.to_string() }
}

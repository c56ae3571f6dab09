//! Networks of the cluster.

use ipnet::IpNet;
use types::network::{Network, NetworkSpec, Subnet, SubnetSpec};
use types::{Annotations, endpoint};

use super::{Error, time};
use crate::network::{Ipam, IpamConfig, NetworkCreateRequest, NetworkResource};
use crate::service::VirtualIp;

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
    })
}

/// The network as lists show it; who is in it is added by those who know.
pub fn network_to_api(network: &Network) -> NetworkResource {
    let spec = &network.spec;
    let has = |is_ipv4: bool| {
        network.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4() == is_ipv4)
    };
    let mut options = spec.driver_options.clone();
    options.insert(VNI_OPTION.to_owned(), network.vni.to_string());
    NetworkResource {
        name: network.name().to_owned(),
        id: network.id.to_string(),
        created: time(network.meta.created_at),
        scope: "swarm".to_owned(),
        driver: "overlay".to_owned(),
        enable_ipv4: has(true),
        enable_ipv6: has(false),
        ipam: Ipam {
            driver: "default".to_owned(),
            options: Some(spec.ipam_options.clone()).filter(|options| !options.is_empty()),
            config: Some(network.subnets.iter().map(subnet_to_api).collect()),
        },
        internal: spec.is_internal,
        attachable: spec.is_attachable,
        ingress: spec.is_ingress,
        options,
        labels: spec.annotations.labels.clone(),
        ..NetworkResource::default()
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

pub(super) fn virtual_ip_to_api(given: &endpoint::VirtualIp) -> VirtualIp {
    VirtualIp { network_id: given.network.to_string(), addr: given.address.to_string() }
}

//! Networks, and containers' places in them.

use std::collections::BTreeMap;

use crate::object::is_zero;
use crate::time::Time;

object! {
    /// Which networks a new container joins.
    pub struct NetworkingConfig {
        pub endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
    }

    pub struct EndpointSettings {
        #[serde(rename = "IPAMConfig")]
        pub ipam_config: Option<EndpointIpamConfig>,
        pub links: Option<Vec<String>>,
        pub aliases: Option<Vec<String>>,
        pub mac_address: String,
        pub driver_opts: Option<BTreeMap<String, String>>,
        pub gw_priority: i64,
        #[serde(rename = "NetworkID")]
        pub network_id: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u8,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u8,
        #[serde(rename = "DNSNames")]
        pub dns_names: Option<Vec<String>>,
    }

    pub struct EndpointIpamConfig {
        #[serde(rename = "IPv4Address", skip_serializing_if = "is_zero")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address", skip_serializing_if = "is_zero")]
        pub ipv6_address: String,
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "is_zero")]
        pub link_local_ips: Vec<String>,
    }

    /// One network, in lists and in `docker network inspect`.
    pub struct NetworkResource {
        pub name: String,
        pub id: String,
        pub created: Time,
        pub scope: String,
        pub driver: String,
        #[serde(rename = "EnableIPv4")]
        pub enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        pub ipam: Ipam,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_from: ConfigReference,
        pub config_only: bool,
        pub containers: BTreeMap<String, EndpointResource>,
        pub options: BTreeMap<String, String>,
        pub labels: BTreeMap<String, String>,
        /// Nodes with containers in a network of the swarm.
        #[serde(skip_serializing_if = "is_zero")]
        pub peers: Vec<PeerInfo>,
        /// With `--verbose`: the services in a network of the swarm; the empty name is that of plain containers.
        #[serde(skip_serializing_if = "is_zero")]
        pub services: BTreeMap<String, ServiceInfo>,
    }

    pub struct PeerInfo {
        pub name: String,
        #[serde(rename = "IP")]
        pub ip: String,
    }

    pub struct ServiceInfo {
        #[serde(rename = "VIP")]
        pub vip: String,
        pub ports: Vec<String>,
        #[serde(rename = "LocalLBIndex")]
        pub local_lb_index: i64,
        pub tasks: Vec<NetworkTask>,
    }

    pub struct NetworkTask {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        #[serde(rename = "EndpointIP")]
        pub endpoint_ip: String,
        pub info: BTreeMap<String, String>,
    }

    pub struct ConfigReference {
        pub network: String,
    }

    pub struct Ipam {
        pub driver: String,
        pub options: Option<BTreeMap<String, String>>,
        pub config: Option<Vec<IpamConfig>>,
    }

    pub struct IpamConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub subnet: String,
        #[serde(rename = "IPRange", skip_serializing_if = "is_zero")]
        pub ip_range: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub gateway: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub auxiliary_addresses: BTreeMap<String, String>,
    }

    /// A container in a network.
    pub struct EndpointResource {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub mac_address: String,
        #[serde(rename = "IPv4Address")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        pub ipv6_address: String,
    }

    /// The body of `POST /networks/create`.
    pub struct NetworkCreateRequest {
        pub name: String,
        pub check_duplicate: Option<bool>,
        pub driver: String,
        pub scope: String,
        #[serde(rename = "EnableIPv4")]
        pub enable_ipv4: Option<bool>,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: Option<bool>,
        #[serde(rename = "IPAM")]
        pub ipam: Option<Ipam>,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_only: bool,
        pub config_from: Option<ConfigReference>,
        pub options: Option<BTreeMap<String, String>>,
        pub labels: Option<BTreeMap<String, String>>,
    }

    pub struct NetworkCreateResponse {
        pub id: String,
        pub warning: String,
    }

    /// The body of `POST /networks/{id}/connect`.
    pub struct NetworkConnectRequest {
        pub container: String,
        pub endpoint_config: Option<EndpointSettings>,
    }

    /// The body of `POST /networks/{id}/disconnect`.
    pub struct NetworkDisconnectRequest {
        pub container: String,
        pub force: bool,
    }

    pub struct NetworksPruneResponse {
        pub networks_deleted: Option<Vec<String>>,
    }
}

//! Networks of this host as `docker network ls` and `inspect` show them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use docker_types::network::{ConfigReference, EndpointResource, Ipam, IpamConfig, NetworkResource};
use network::DEFAULT_NETWORK;

use super::{PREDEFINED, Record, endpoint_id, predefined_id};
use crate::engine::Engine;

/// What scripts look for where tasks have their way to the world.
pub const GATEWAY_NETWORK: &str = "docker_gwbridge";

type Endpoints = BTreeMap<String, EndpointResource>;

impl Engine {
    /// The networks of this host. One that is in a swarm has the one beside its tasks' networks too.
    pub fn networks(&self, is_in_swarm: bool) -> Vec<NetworkResource> {
        let mut all: Vec<_> = PREDEFINED.map(|name| self.predefined(name)).to_vec();
        let records = self.networks.all();
        // Those of the swarm are told by who knows them all.
        all.extend(records.iter().filter(|it| !it.is_of_swarm).map(|it| described(it)));
        if is_in_swarm && !all.iter().any(|network| network.name == GATEWAY_NETWORK) {
            all.push(self.gateway_network());
        }
        all
    }

    /// Who is in a network of this host or of the swarm, on this host.
    pub fn endpoints(&self, network: &NetworkResource) -> Endpoints {
        match network.name.as_str() {
            DEFAULT_NETWORK => self.default_endpoints(false),
            GATEWAY_NETWORK if network.id == predefined_id(GATEWAY_NETWORK) => {
                self.default_endpoints(true)
            }
            _ if network.driver == "overlay" => self.swarm_endpoints(&network.id),
            _ => self.local_endpoints(&network.id),
        }
    }

    /// Removes a network that a user made on this host.
    ///
    /// # Errors
    /// When containers are in it.
    pub async fn remove_network(&self, id: &str) -> Result<(), crate::Error> {
        let name_of = |container: &str| self.containers.name_of(container).unwrap_or_default();
        self.networks.remove(id, name_of).await
    }

    /// Adds what this host gave a network of the swarm that each node has for itself, where it has it.
    pub fn describe_own(&self, network: &mut NetworkResource) {
        let own = self.networks.all().into_iter().find(|record| record.id == network.id);
        if let Some(own) = own.filter(|own| own.is_of_swarm) {
            network.ipam = own.ipam.clone();
            network.enable_ipv6 = own.local.as_ref().is_some_and(|local| local.ipv6.is_some());
        }
    }

    fn predefined(&self, name: &str) -> NetworkResource {
        let driver = if name == "none" { "null" } else { name };
        let mut network = NetworkResource {
            name: name.to_owned(),
            id: predefined_id(name),
            created: self.containers.opened_at().into(),
            scope: "local".to_owned(),
            driver: driver.to_owned(),
            enable_ipv4: true,
            ipam: Ipam { driver: "default".to_owned(), options: None, config: Some(Vec::new()) },
            ..NetworkResource::default()
        };
        if name == DEFAULT_NETWORK {
            self.describe_default(&mut network);
            let options = [
                ("com.docker.network.bridge.default_bridge", "true"),
                ("com.docker.network.bridge.enable_icc", "true"),
                ("com.docker.network.bridge.enable_ip_masquerade", "true"),
                ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
                ("com.docker.network.driver.mtu", "1500"),
            ];
            network.options.extend(options.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        network
    }

    /// Tasks have their way to the world by the same bridge as plain containers: this says so.
    fn gateway_network(&self) -> NetworkResource {
        let mut network = NetworkResource {
            name: GATEWAY_NETWORK.to_owned(),
            id: predefined_id(GATEWAY_NETWORK),
            driver: "bridge".to_owned(),
            ..self.predefined("host")
        };
        self.describe_default(&mut network);
        let note = "tasks leave by the bridge of the network \"bridge\"; there is no other";
        network.labels.insert("skep.note".to_owned(), note.to_owned());
        network
    }

    fn describe_default(&self, network: &mut NetworkResource) {
        let subnet = self.network.subnet();
        let gateway = subnet.hosts().next().map(|gateway| gateway.to_string()).unwrap_or_default();
        let config = IpamConfig { subnet: subnet.to_string(), gateway, ..IpamConfig::default() };
        network.ipam.config = Some(vec![config]);
        let link = self.network.bridge().to_owned();
        network.options.insert("com.docker.network.bridge.name".to_owned(), link);
    }

    /// Containers on the default bridge: those that are in its network, or those that have it as their way out only.
    fn default_endpoints(&self, is_way_out: bool) -> Endpoints {
        let members = self.containers.on_default_bridge(is_way_out).into_iter();
        let describe = |(id, name): (String, String)| {
            let endpoint = self.network.endpoint(&id)?;
            let name = match is_way_out {
                true => format!("gateway_{}", crate::names::short(&id)),
                false => name,
            };
            let addresses = [(IpAddr::from(endpoint.address), endpoint.prefix_len)];
            let place = endpoint_id(&id, DEFAULT_NETWORK);
            Some((id, resource(name, place, endpoint.mac, &addresses)))
        };
        members.filter_map(describe).collect()
    }

    fn local_endpoints(&self, network: &str) -> Endpoints {
        let plugged = self.network.plugged().into_iter();
        let describe = |(id, plugs): (String, Vec<network::Plug>)| {
            let plug = plugs.into_iter().find(|plug| plug.network == network)?;
            let name = self.containers.name_of(&id)?;
            let addresses: Vec<_> = plug.addresses().collect();
            let place = endpoint_id(&id, network);
            Some((id, resource(name, place, plug.mac, &addresses)))
        };
        plugged.filter_map(describe).collect()
    }

    fn swarm_endpoints(&self, network: &str) -> Endpoints {
        let joined = self.network.joined().into_iter();
        let describe = |(id, joins): (String, Vec<network::Join>)| {
            let join = joins.into_iter().find(|join| join.overlay == network)?;
            let name = self.containers.name_of(&id)?;
            let addresses: Vec<_> =
                join.addresses.iter().map(|given| (given.addr(), given.prefix_len())).collect();
            let (place, mac) = (endpoint_id(&id, network), join.hardware_address());
            Some((id, resource(name, place, mac.unwrap_or_default(), &addresses)))
        };
        joined.filter_map(describe).collect()
    }
}

fn described(record: &Record) -> NetworkResource {
    NetworkResource {
        name: record.name.clone(),
        id: record.id.clone(),
        created: record.created.into(),
        scope: "local".to_owned(),
        driver: if record.local.is_some() { "bridge" } else { "null" }.to_owned(),
        enable_ipv4: true,
        enable_ipv6: record.local.as_ref().is_some_and(|local| local.ipv6.is_some()),
        ipam: record.ipam.clone(),
        internal: record.is_internal,
        attachable: record.is_attachable,
        config_from: ConfigReference { network: record.config_from.clone() },
        config_only: record.local.is_none(),
        options: record.options.clone(),
        labels: record.labels.clone(),
        ..NetworkResource::default()
    }
}

fn resource(
    name: String,
    endpoint_id: String,
    mac_address: String,
    addresses: &[(IpAddr, u8)],
) -> EndpointResource {
    let of_family = |is_ipv4: bool| {
        let found = addresses.iter().find(|(address, _)| address.is_ipv4() == is_ipv4);
        found.map(|(address, length)| format!("{address}/{length}")).unwrap_or_default()
    };
    EndpointResource {
        name,
        endpoint_id,
        mac_address,
        ipv4_address: of_family(true),
        ipv6_address: of_family(false),
    }
}

//! A container's places in networks: taken when it starts, given back when it ends, changed by users meanwhile.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use docker_types::network::EndpointSettings;
use ipnet::IpNet;
use network::{DEFAULT_NETWORK, Join, Plug, PlugIpv6, PlugRequest};

use super::Shared;
use super::container::Container;
use super::etc::{Attachments, Place};
use super::list::is_task;
use super::record::Record;
use super::spec::SharedNamespaces;
use crate::error::Error;
use crate::names;
use crate::networks::{self, Refusal};
use crate::swarm::{AttachRequest, Attached};

/// Modes that stand among a container's networks and are none.
const CLOSED: [&str; 2] = ["host", "none"];

/// Which network a name among a container's networks means.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The one that every node has.
    Default,
    Local(Arc<networks::Record>),
    /// A network of the swarm in which the managers have given this task its addresses.
    Given(Vec<IpNet>),
    /// A network of the swarm, to be asked for.
    Swarm,
}

/// Where a container's packets to the world leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WayOut {
    gateway: Ipv4Addr,
    /// The container's own address there, which published ports lead to.
    address: Ipv4Addr,
    ipv6: Option<PlugIpv6>,
    /// Where those answer that name no address of the host.
    binding: Option<IpAddr>,
}

impl WayOut {
    /// Where published ports lead to.
    fn addresses(&self) -> Vec<IpAddr> {
        let ipv6 = self.ipv6.map(|ipv6| ipv6.address.into());
        std::iter::once(self.address.into()).chain(ipv6).collect()
    }
}

/// Whether the container has a network namespace of its own.
pub(super) fn has_own_namespace(record: &Record) -> bool {
    let mode = record.host.network_mode.as_str();
    mode != "host" && !mode.starts_with("container:")
}

impl Shared {
    /// Gives a container its network. What is made stays until [`Shared::release_run`].
    pub(super) async fn set_up_network(
        &self,
        container: &Container,
        record: &Record,
    ) -> Result<(Place, SharedNamespaces), Error> {
        let mut shared = SharedNamespaces {
            pid_of: self.process_of(&record.host.pid_mode, "PID namespace")?,
            ipc_of: self.process_of(&record.host.ipc_mode, "IPC namespace")?,
            network: None,
        };
        let mode = record.host.network_mode.as_str();
        if mode == "host" {
            return Ok((Place::Host, shared));
        }
        if let Some(other) = mode.strip_prefix("container:") {
            let other = self.registry.find(other)?;
            let pid = other.status().pid;
            if !other.phase().is_up() {
                return Err(Error::JoinNotRunning { id: other.id.clone() });
            }
            shared.network = Some(PathBuf::from(format!("/proc/{pid}/ns/net")));
            return Ok((Place::Isolated, shared));
        }
        shared.network = Some(self.network.netns(&container.id));
        let is_closed = record.config.network_disabled || (mode == "none" && !is_task(record));
        if is_closed {
            self.network.isolate(&container.id).await.map_err(failed)?;
            return Ok((Place::Isolated, shared));
        }
        let place = self.enter_networks(container, record).await?;
        Ok((place, shared))
    }

    async fn enter_networks(&self, container: &Container, record: &Record) -> Result<Place, Error> {
        let memberships = self.memberships(record)?;
        let has_names = memberships.iter().any(|(_, _, kind)| !matches!(kind, Kind::Default));
        let servers = name_servers(record);
        let needs_namespace = memberships.is_empty() || mode_is_none(record);
        if needs_namespace || (has_names && !servers.is_empty()) {
            self.network.isolate(&container.id).await.map_err(failed)?;
        }
        if has_names && !servers.is_empty() {
            self.network.set_name_servers(&container.id, servers).await.map_err(failed)?;
        }
        let mut wants_way_out = is_task(record) && !mode_is_none(record);
        for (name, settings, kind) in &memberships {
            wants_way_out |= self.enter(container, record, name, settings, kind).await?;
        }
        // Published ports lead to a task by the bridge that every node has.
        let is_led_beside = is_task(record) && self.network.endpoint(&container.id).is_none();
        if wants_way_out && (is_led_beside || self.way_out(&container.id, record).is_none()) {
            self.network.lead_alone(&container.id).await.map_err(failed)?;
        }
        let way_out = self.way_out(&container.id, record);
        let is_led_already = memberships.len() == 1 && !has_names;
        if !is_led_already {
            self.lead_out(&container.id, way_out).await?;
        }
        if let Some(way_out) = way_out {
            let addresses = way_out.addresses();
            self.publish_ports(container, record, &addresses, way_out.binding).await?;
        }
        self.place(&container.id, record)
    }

    async fn lead_out(&self, id: &str, way_out: Option<WayOut>) -> Result<(), Error> {
        let gateway = way_out.map(|way_out| way_out.gateway);
        let of_ipv6 = way_out.and_then(|way_out| way_out.ipv6?.gateway);
        self.network.lead_out(id, gateway, of_ipv6).await.map_err(failed)
    }

    /// The networks a container is to be in, the one that it was made for first.
    fn memberships(&self, record: &Record) -> Result<Vec<(String, EndpointSettings, Kind)>, Error> {
        let mut all = Vec::new();
        for (name, settings) in &record.networks {
            if CLOSED.contains(&name.as_str()) {
                continue;
            }
            all.push((name.clone(), settings.clone(), self.kind_of(record, name, settings)?));
        }
        all.sort_by_key(|(name, _, _)| *name != record.host.network_mode);
        Ok(all)
    }

    /// # Errors
    /// A network that only holds a configuration for others.
    pub(super) fn kind_of(
        &self,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> Result<Kind, Error> {
        if name == DEFAULT_NETWORK || CLOSED.contains(&name) {
            return Ok(Kind::Default);
        }
        if is_task(record) && !settings.ip_address.is_empty() {
            return Ok(Kind::Given(addresses_of(settings)));
        }
        let by_id = match settings.network_id.as_str() {
            "" => None,
            id => self.networks.find(id)?,
        };
        let local = match by_id {
            Some(record) => Some(record),
            None => self.networks.find(name)?,
        };
        match local {
            Some(local) if local.local.is_none() => {
                Err(Refusal::UseConfigOnly { name: local.name.clone() }.into())
            }
            Some(local) if local.is_of_swarm && !is_task(record) => Ok(Kind::Swarm),
            Some(local) => Ok(Kind::Local(local)),
            None => Ok(Kind::Swarm),
        }
    }

    /// Puts a container into one network; true where it may reach the world from it and needs another way there.
    pub(super) async fn enter(
        &self,
        container: &Container,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
        kind: &Kind,
    ) -> Result<bool, Error> {
        let id = &container.id;
        let (network, driver, wants_way_out) = match kind {
            Kind::Default => {
                let mac = asked_mac(record, name, settings)?;
                self.network.connect_as(id, mac).await.map_err(failed)?;
                (networks::predefined_id(DEFAULT_NETWORK), "bridge", false)
            }
            Kind::Local(local) => {
                self.plug(id, record, name, settings, &local.id).await?;
                (local.id.clone(), "bridge", false)
            }
            Kind::Given(addresses) => {
                let network = settings.network_id.clone();
                self.join(id, network.clone(), addresses.clone()).await?;
                (network, "overlay", false)
            }
            Kind::Swarm => {
                let attached = self.attach(id, record, name, settings).await?;
                match self.own_of_swarm(&attached.network.id) {
                    true => (attached.network.id, "bridge", false),
                    false => (attached.network.id, "overlay", !attached.network.is_internal),
                }
            }
        };
        self.networks.moved("connect", &network, name, driver, id);
        Ok(wants_way_out)
    }

    /// Asks the managers for a place, and takes it.
    async fn attach(
        &self,
        id: &str,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> Result<Attached, Error> {
        let missing = || Refusal::NotFound { name: name.to_owned() };
        let swarm = self.swarm.soon().await.ok_or_else(missing)?;
        let mut names = names_of(record, settings);
        let own = names.remove(0);
        let request = AttachRequest {
            network: match settings.network_id.as_str() {
                "" => name.to_owned(),
                id => id.to_owned(),
            },
            network_name: name.to_owned(),
            container: id.to_owned(),
            name: own,
            aliases: names,
            address: asked_address(settings)?.map(IpAddr::V4),
        };
        let attached = swarm.attach(request).await?;
        let network = attached.network.id.clone();
        let entered = match self.own_of_swarm(&network) {
            true => self.plug(id, record, name, settings, &network).await,
            false => self.join(id, network.clone(), attached.addresses.clone()).await,
        };
        if let Err(error) = entered {
            swarm.detach(network, id.to_owned()).await;
            return Err(error);
        }
        Ok(attached)
    }

    /// Whether this host has a network of the swarm for itself.
    fn own_of_swarm(&self, network: &str) -> bool {
        self.networks.all().iter().any(|record| record.is_of_swarm && record.id == network)
    }

    async fn plug(
        &self,
        id: &str,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
        network: &str,
    ) -> Result<(), Error> {
        let request = PlugRequest {
            network: network.to_owned(),
            address: asked_address(settings)?,
            ipv6: asked_ipv6(settings)?,
            mac: asked_mac(record, name, settings)?,
            names: names_of(record, settings),
        };
        self.network.plug(id, request).await.map(drop).map_err(failed)
    }

    async fn join(&self, id: &str, overlay: String, addresses: Vec<IpNet>) -> Result<(), Error> {
        self.network.isolate(id).await.map_err(failed)?;
        self.network.join(id, Join { overlay, addresses }).await.map_err(failed)
    }

    /// What a container has of networks of the swarm, as it would ask for it again.
    pub(super) fn attached(&self, container: &Container, record: &Record) -> Vec<AttachRequest> {
        let joined = self.network.joined_of(&container.id).into_iter();
        let joined = joined.map(|join| (join.overlay, join.addresses.first().map(IpNet::addr)));
        let own = self.plugs_of_swarm(&container.id).into_iter().map(|network| (network, None));
        let request = |(network, address): (String, Option<IpAddr>)| {
            let settings = record
                .networks
                .iter()
                .find(|(name, settings)| self.overlay_of(&container.id, name, settings) == network);
            let (network_name, settings) = settings
                .map(|(name, settings)| (name.clone(), settings.clone()))
                .unwrap_or_default();
            let mut names = names_of(record, &settings);
            let name = names.remove(0);
            AttachRequest {
                network,
                network_name,
                container: container.id.clone(),
                name,
                aliases: names,
                address,
            }
        };
        joined.chain(own).map(request).collect()
    }

    /// The networks of the swarm which this host has for itself that a container is in.
    fn plugs_of_swarm(&self, id: &str) -> Vec<String> {
        let plugs = self.network.plugs(id).into_iter().map(|plug| plug.network);
        plugs.filter(|network| self.own_of_swarm(network)).collect()
    }

    /// The way to the world: the network with the highest priority, then the first by name. Where no network has one, the
    /// network that every node has.
    ///
    /// A task in networks of this host has that one beside them, and takes it unless theirs come first.
    fn way_out(&self, id: &str, record: &Record) -> Option<WayOut> {
        let plugs = self.network.plugs(id);
        let default = self.network.endpoint(id);
        let default = default.map(|it| WayOut {
            gateway: it.gateway,
            address: it.address,
            ipv6: None,
            binding: None,
        });
        let ways = record.networks.iter().filter_map(|(name, settings)| {
            let way = match name == DEFAULT_NETWORK {
                true => default?,
                false => {
                    let local = self.local_of(record, name, settings)?;
                    let plug = plugs.iter().find(|plug| plug.network == local.id)?;
                    let Plug { gateway, address, ipv6, .. } = *plug;
                    let way = WayOut { gateway, address, ipv6, binding: local.binding };
                    (!local.is_internal).then_some(way)?
                }
            };
            Some(((Reverse(settings.gw_priority), name.as_str()), way))
        });
        let beside = default.filter(|_| is_task(record)).map(|way| ((Reverse(0), ""), way));
        ways.chain(beside).min_by_key(|(order, _)| *order).map(|(_, way)| way).or(default)
    }

    /// The network of this host that a name means, whoever says who may be in it.
    fn local_of(
        &self,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> Option<Arc<networks::Record>> {
        match self.kind_of(record, name, settings).ok()? {
            Kind::Local(local) => Some(local),
            Kind::Swarm => {
                let of_swarm = |it: &Arc<networks::Record>| it.is_of_swarm;
                let named = self.networks.find(&settings.network_id).ok().flatten();
                named.or_else(|| self.networks.find(name).ok().flatten()).filter(of_swarm)
            }
            Kind::Default | Kind::Given(_) => None,
        }
    }

    pub(super) fn has_way_out(&self, id: &str, record: &Record) -> bool {
        self.way_out(id, record).is_some()
    }

    /// What the container's network makes of its files.
    fn place(&self, id: &str, record: &Record) -> Result<Place, Error> {
        let plugs = self.network.plugs(id);
        let joins = self.network.joined_of(id);
        let default = self.network.endpoint(id);
        let mut addresses: Vec<IpAddr> =
            plugs.iter().flat_map(|plug| plug.addresses().map(|(address, _)| address)).collect();
        addresses.extend(joins.iter().flat_map(|join| &join.addresses).map(IpNet::addr));
        // The way out beside networks is no address that others know the container by.
        if addresses.is_empty() || record.networks.contains_key(DEFAULT_NETWORK) {
            addresses.extend(default.map(|endpoint| IpAddr::from(endpoint.address)));
        }
        if addresses.is_empty() {
            return Ok(Place::Isolated);
        }
        Ok(Place::Attached(Attachments {
            addresses,
            gateway: self.way_out(id, record).map(|way_out| way_out.gateway),
            has_names: !plugs.is_empty() || !joins.is_empty(),
            links: self.links(id, record)?,
        }))
    }

    /// The containers that a container is linked with: where they are in a network that both are in, and what it calls them.
    ///
    /// # Errors
    /// One that does not run, is not there, or shares no network.
    fn links(&self, id: &str, record: &Record) -> Result<Vec<(IpAddr, String)>, Error> {
        let mut links = Vec::new();
        for link in links_of(record) {
            let (name, alias) = parse_link(link);
            let missing = |_| Refusal::LinkMissing { name: name.to_owned() };
            let other = self.registry.find(name).map_err(missing)?;
            let other_record = other.record();
            let target = format!("/{}", other_record.name);
            if !other.phase().is_up() {
                let alias = format!("/{}/{alias}", record.name);
                return Err(Refusal::LinkNotRunning { target, alias }.into());
            }
            let address = self.address_in_common(id, &other.id);
            let address = address.ok_or(Refusal::LinkElsewhere { target })?;
            let names = format!("{alias} {} {}", names::short(&other.id), other_record.name);
            links.push((address, names));
        }
        Ok(links)
    }

    /// Where another container is in a network that both are in.
    fn address_in_common(&self, id: &str, other: &str) -> Option<IpAddr> {
        let own: BTreeSet<_> =
            self.network.plugs(id).into_iter().map(|plug| plug.network).collect();
        let plugs = self.network.plugs(other).into_iter();
        let plug = { plugs }.find(|plug| own.contains(&plug.network));
        let default = self.network.endpoint(id).and(self.network.endpoint(other));
        plug.map(|plug| plug.address).or(default.map(|it| it.address)).map(IpAddr::V4)
    }

    /// # Errors
    /// A link with a container that is not there.
    pub(super) fn check_links(&self, record: &Record) -> Result<(), Error> {
        for link in links_of(record) {
            let (name, _) = parse_link(link);
            let missing = |_| Refusal::LinkMissing { name: name.to_owned() };
            self.registry.find(name).map_err(missing)?;
        }
        Ok(())
    }

    /// Brings what follows from a container's networks in line with them: its way to the world, where its published ports
    /// lead, and its files.
    pub(super) async fn settle_networks(
        &self,
        container: &Arc<Container>,
        record: &Record,
    ) -> Result<(), Error> {
        let way_out = self.way_out(&container.id, record);
        self.lead_out(&container.id, way_out).await?;
        let mut ports = container.ports();
        let backends = way_out.map(|way_out| way_out.addresses()).unwrap_or_default();
        if ports.iter().any(|port| port.backends != backends) {
            ports.iter_mut().for_each(|port| port.backends.clone_from(&backends));
            self.network.publish(&container.id, ports.clone()).await.map_err(failed)?;
            container.set_ports(ports);
        } else if ports.is_empty()
            && let Some(way_out) = way_out
        {
            self.publish_ports(container, record, &backends, way_out.binding).await?;
        }
        let place = self.place(&container.id, record)?;
        self.etc_files(container, record, &place).map(drop)
    }

    /// Others in its networks find a container by its new name.
    pub(super) async fn rename_in_networks(
        &self,
        container: &Container,
        record: &Record,
    ) -> Result<(), Error> {
        for plug in self.network.plugs(&record.id) {
            let settings = record.networks.values().find(|it| it.network_id == plug.network);
            let names = names_of(record, &settings.cloned().unwrap_or_default());
            self.network.set_names(&record.id, &plug.network, names).await.map_err(failed)?;
        }
        let Some(swarm) = self.swarm.now().filter(|_| !is_task(record)) else { return Ok(()) };
        for request in self.attached(container, record) {
            // Managers that do not hear it now are told with the next session.
            if let Err(error) = swarm.attach(request).await {
                tracing::warn!(container.id = record.id, %error, "the swarm knows a container by its old name");
            }
        }
        Ok(())
    }

    /// Whether a container is to be in a network that only the swarm knows.
    pub(super) fn needs_swarm(&self, record: &Record) -> bool {
        !is_task(record)
            && record.networks.iter().any(|(name, settings)| {
                matches!(self.kind_of(record, name, settings), Ok(Kind::Swarm))
            })
    }

    /// Takes back all places that a run had in networks.
    pub(super) async fn leave_networks(&self, container: &Container, record: &Record) {
        if !has_own_namespace(record) {
            return;
        }
        let id = &container.id;
        for (network, name, driver) in self.places_of(id, record) {
            self.networks.moved("disconnect", &network, &name, driver, id);
        }
        let joined = self.network.joined_of(id).into_iter().map(|join| join.overlay);
        let held: Vec<_> = joined.chain(self.plugs_of_swarm(id)).collect();
        if let Err(error) = self.network.disconnect(id).await {
            tracing::warn!(container.id = id, %error, "take back the network");
        }
        let Some(swarm) = self.swarm.now().filter(|_| !is_task(record)) else { return };
        for network in held {
            swarm.detach(network, id.clone()).await;
        }
    }

    /// The networks that a container is in now, with their names and drivers.
    fn places_of(&self, id: &str, record: &Record) -> Vec<(String, String, &'static str)> {
        let mut places = Vec::new();
        if record.networks.contains_key(DEFAULT_NETWORK) && self.network.endpoint(id).is_some() {
            let network = networks::predefined_id(DEFAULT_NETWORK);
            places.push((network, DEFAULT_NETWORK.to_owned(), "bridge"));
        }
        for plug in self.network.plugs(id) {
            let local = self.networks.find(&plug.network).ok().flatten();
            let name = local.map(|local| local.name.clone()).unwrap_or_default();
            places.push((plug.network, name, "bridge"));
        }
        for join in self.network.joined_of(id) {
            let named = record.networks.iter().find(|(_, it)| it.network_id == join.overlay);
            let name = named.map(|(name, _)| name.clone()).unwrap_or_default();
            places.push((join.overlay, name, "overlay"));
        }
        places
    }
}

/// Links as they were asked for, of the container and of each of its networks, each once.
fn links_of(record: &Record) -> BTreeSet<&str> {
    let of_networks = record.networks.values().flat_map(|settings| settings.links.iter().flatten());
    record.host.links.iter().flatten().chain(of_networks).map(String::as_str).collect()
}

/// `web:db`, or `web` by its own name.
fn parse_link(link: &str) -> (&str, &str) {
    let (name, alias) = link.split_once(':').unwrap_or((link, link));
    (name, alias.rsplit('/').next().unwrap_or(alias))
}

fn mode_is_none(record: &Record) -> bool {
    record.host.network_mode == "none"
}

/// Servers for the world's names that the container was given.
pub(super) fn name_servers(record: &Record) -> Vec<IpAddr> {
    let servers = record.host.dns.iter().flatten();
    servers.filter_map(|server| server.parse().ok()).collect()
}

/// What others in a network find a container by, its own name first.
pub(super) fn names_of(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let mut names = vec![record.name.clone()];
    names.extend(settings.aliases.iter().flatten().cloned());
    names.push(names::short(&record.id).to_owned());
    names.push(record.config.hostname.clone());
    let mut seen = BTreeSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// The address that was asked for.
///
/// # Errors
/// A text that is none.
pub(super) fn asked_address(settings: &EndpointSettings) -> Result<Option<Ipv4Addr>, Refusal> {
    let text = settings.ipam_config.as_ref().map_or("", |ipam| ipam.ipv4_address.as_str());
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Refusal::Address { text: text.to_owned() })
}

/// The address of IPv6 that was asked for.
///
/// # Errors
/// A text that is none.
fn asked_ipv6(settings: &EndpointSettings) -> Result<Option<Ipv6Addr>, Refusal> {
    let text = settings.ipam_config.as_ref().map_or("", |ipam| ipam.ipv6_address.as_str());
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Refusal::Address { text: text.to_owned() })
}

/// The hardware address that was asked for, for this network or for the container's first one.
///
/// # Errors
/// A text that is none.
pub(super) fn asked_mac(
    record: &Record,
    name: &str,
    settings: &EndpointSettings,
) -> Result<Option<[u8; 6]>, Refusal> {
    let of_container = match name == record.host.network_mode {
        true => record.config.mac_address.as_str(),
        false => "",
    };
    let text = match settings.mac_address.as_str() {
        "" => of_container,
        text => text,
    };
    if text.is_empty() {
        return Ok(None);
    }
    let mac = network::parse_mac(text);
    mac.map(Some).ok_or_else(|| Refusal::Mac { text: text.to_owned() })
}

/// The addresses a container was given in a network.
fn addresses_of(settings: &EndpointSettings) -> Vec<IpNet> {
    let given = [
        (&settings.ip_address, settings.ip_prefix_len),
        (&settings.global_ipv6_address, settings.global_ipv6_prefix_len),
    ];
    let given = given.into_iter();
    given.filter_map(|(address, length)| IpNet::new(address.parse().ok()?, length).ok()).collect()
}

pub(super) fn failed(source: network::Error) -> Error {
    Error::NetworkSetup { source }
}

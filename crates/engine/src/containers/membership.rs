//! Which networks a container is in: planned when it is made, changed by `network connect` and `disconnect`.

use std::collections::BTreeMap;
use std::sync::Arc;

use docker_types::container::{ContainerConfig, HostConfig};
use docker_types::network::{EndpointSettings, NetworkingConfig};
use network::DEFAULT_NETWORK;

use super::container::Container;
use super::list::is_task_config;
use super::networks::{Kind, asked_address, failed, has_own_namespace};
use super::record::Record;
use super::{Containers, Shared, blocking};
use crate::error::Error;
use crate::networks::{PREDEFINED, Refusal};

/// A network as it was found: its name, its identifier, and whether its user chose its subnet.
struct Found {
    name: String,
    id: String,
    takes_addresses: bool,
}

impl Containers {
    /// Puts a container into a network; one that does not run will be in it when it starts.
    ///
    /// # Errors
    /// In Docker's words: no such network or container, an address that cannot be had, a container that has no network of
    /// its own.
    pub async fn connect(
        &self,
        network: &str,
        name: &str,
        settings: EndpointSettings,
    ) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        let network = network.to_owned();
        self.detached(|shared| async move { shared.connect(&network, &container, settings).await })
            .await
    }

    /// Takes a container out of a network.
    ///
    /// # Errors
    /// In Docker's words: no such network or container, or it is not in it.
    pub async fn disconnect(&self, network: &str, name: &str) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        let network = network.to_owned();
        self.detached(|shared| async move { shared.leave(&network, &container).await }).await
    }
}

impl Shared {
    /// The networks of a new container: those that were asked for, by their names; else the one of its mode.
    pub(super) fn plan_networks(
        &self,
        networking: NetworkingConfig,
        host: &mut HostConfig,
        config: &ContainerConfig,
    ) -> Result<BTreeMap<String, EndpointSettings>, Error> {
        if host.network_mode.starts_with("container:") {
            return Ok(BTreeMap::new());
        }
        let is_task = is_task_config(config);
        let mut networks = BTreeMap::new();
        for (name, settings) in networking.endpoints_config {
            let settings = settings.unwrap_or_default();
            if is_task {
                networks.insert(name, settings);
                continue;
            }
            let found = self.look_up(&name, &settings)?;
            let settings = wished(settings, &found)?;
            if name == host.network_mode {
                host.network_mode.clone_from(&found.name);
            }
            networks.insert(found.name, settings);
        }
        let is_left_out = !is_task
            && host.network_mode != DEFAULT_NETWORK
            && !networks.contains_key(&host.network_mode);
        if networks.is_empty() || is_left_out {
            let found = self.look_up(&host.network_mode, &EndpointSettings::default())?;
            let settings = wished(EndpointSettings::default(), &found)?;
            host.network_mode.clone_from(&found.name);
            networks.insert(found.name, settings);
        }
        Ok(networks)
    }

    /// What a name means now. A network that is not known yet may be one of the swarm's, which only managers know: whether it
    /// is there is seen when the container starts.
    fn look_up(&self, name: &str, settings: &EndpointSettings) -> Result<Found, Error> {
        let name = if name == "default" { DEFAULT_NETWORK } else { name };
        if PREDEFINED.contains(&name) {
            let id = crate::networks::predefined_id(name);
            return Ok(Found { name: name.to_owned(), id, takes_addresses: false });
        }
        let named = |name: &str| self.networks.find(name);
        let local = match settings.network_id.as_str() {
            "" => named(name)?,
            id => named(id)?.or(named(name)?),
        };
        if let Some(local) = local {
            let (name, id) = (local.name.clone(), local.id.clone());
            return Ok(Found { name, id, takes_addresses: local.has_own_subnet });
        }
        let known = self.swarm.now().and_then(|swarm| swarm.find(name));
        let (name, id) = known.map_or((name.to_owned(), String::new()), |it| (it.name, it.id));
        Ok(Found { name, id, takes_addresses: true })
    }

    async fn connect(
        self: &Arc<Self>,
        network: &str,
        container: &Arc<Container>,
        settings: EndpointSettings,
    ) -> Result<(), Error> {
        let _operation = container.operation.lock().await;
        let record = container.record();
        let found = self.look_up(network, &settings)?;
        check_may_connect(&record, &found.name)?;
        let settings = wished(settings, &found)?;
        let is_up = container.phase().is_up();
        if found.id.is_empty() && !is_up {
            return Err(Refusal::NotFound { name: network.to_owned() }.into());
        }
        let mut next = Record::clone(&record);
        let known = next.networks.insert(found.name.clone(), settings.clone());
        if is_up {
            self.connect_now(container, &next, &found.name, known.is_some()).await?;
        }
        // Only what has worked is remembered.
        self.remember(container, next).await
    }

    async fn connect_now(
        &self,
        container: &Arc<Container>,
        record: &Record,
        name: &str,
        is_in_it: bool,
    ) -> Result<(), Error> {
        let settings = record.networks.get(name).cloned().unwrap_or_default();
        let kind = self.kind_of(record, name, &settings)?;
        if is_in_it {
            let (container, network) = (record.name.clone(), name.to_owned());
            return Err(match kind {
                Kind::Default | Kind::Local(_) => Refusal::AlreadyIn { container, network },
                Kind::Given(_) | Kind::Swarm => Refusal::AlreadyAttached { container, network },
            }
            .into());
        }
        let servers = super::networks::name_servers(record);
        if !servers.is_empty() && !matches!(kind, Kind::Default) {
            self.network.set_name_servers(&container.id, servers).await.map_err(failed)?;
        }
        let wants_way_out = self.enter(container, record, name, &settings, &kind).await?;
        if wants_way_out && !self.has_way_out(&container.id, record) {
            self.network.lead_alone(&container.id).await.map_err(failed)?;
        }
        self.settle_networks(container, record).await
    }

    async fn leave(
        self: &Arc<Self>,
        network: &str,
        container: &Arc<Container>,
    ) -> Result<(), Error> {
        let _operation = container.operation.lock().await;
        let record = container.record();
        let is_up = container.phase().is_up();
        let found = self.look_up(network, &EndpointSettings::default())?;
        if found.name == "host" {
            return Err(Refusal::Host.into());
        }
        let is_known = !found.id.is_empty() || record.networks.contains_key(&found.name);
        if !is_known {
            return Err(Refusal::NotFound { name: network.to_owned() }.into());
        }
        let mut next = Record::clone(&record);
        let Some(settings) = next.networks.remove(&found.name) else {
            let article = if is_up { "" } else { "the " };
            let id = container.id.clone();
            return Err(Refusal::NotIn { id, article, network: found.name }.into());
        };
        if is_up && has_own_namespace(&record) {
            self.leave_now(container, &record, &found.name, &settings).await?;
            self.settle_networks(container, &next).await?;
        }
        self.remember(container, next).await
    }

    async fn leave_now(
        &self,
        container: &Arc<Container>,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> Result<(), Error> {
        let id = &container.id;
        let (network, driver) = match self.kind_of(record, name, settings)? {
            Kind::Default if name == "none" => return Ok(()),
            Kind::Default => {
                let needs_way_out = !self.network.joined_of(id).is_empty();
                // Its way to the world beside networks of the swarm stays.
                match needs_way_out {
                    true => drop(self.network.lead_alone(id).await.map_err(failed)?),
                    false => self.network.unplug(id, DEFAULT_NETWORK).await.map_err(failed)?,
                }
                (crate::networks::predefined_id(DEFAULT_NETWORK), "bridge")
            }
            Kind::Local(local) => {
                self.network.unplug(id, &local.id).await.map_err(failed)?;
                (local.id.clone(), "bridge")
            }
            Kind::Given(_) | Kind::Swarm => {
                let network = self.overlay_of(id, name, settings);
                self.leave_overlay(id, record, &network).await?;
                (network, "overlay")
            }
        };
        self.networks.moved("disconnect", &network, name, driver, id);
        Ok(())
    }

    async fn leave_overlay(&self, id: &str, record: &Record, network: &str) -> Result<(), Error> {
        self.network.part(id, network).await.map_err(failed)?;
        self.network.unplug(id, network).await.map_err(failed)?;
        let was_last = self.network.joined_of(id).is_empty();
        if was_last && !record.networks.contains_key(DEFAULT_NETWORK) {
            self.network.unplug(id, DEFAULT_NETWORK).await.map_err(failed)?;
        }
        if let Some(swarm) = self.swarm.now().filter(|_| !super::list::is_task(record)) {
            swarm.detach(network.to_owned(), id.to_owned()).await;
        }
        Ok(())
    }

    /// The identifier of a network of the swarm that a container is in.
    pub(super) fn overlay_of(&self, id: &str, name: &str, settings: &EndpointSettings) -> String {
        if !settings.network_id.is_empty() {
            return settings.network_id.clone();
        }
        let joined = self.network.joined_of(id);
        let swarm = self.swarm.now();
        let known = swarm.and_then(|swarm| swarm.find(name)).map(|network| network.id);
        let is_in = |network: &String| joined.iter().any(|join| join.overlay == *network);
        known.filter(is_in).unwrap_or_default()
    }

    async fn remember(&self, container: &Arc<Container>, record: Record) -> Result<(), Error> {
        let own = Arc::clone(container);
        blocking(move || own.replace_record(record)).await?;
        self.sync.request();
        Ok(())
    }
}

/// Containers that have no network of their own, or are to have none, are in no other.
fn check_may_connect(record: &Record, network: &str) -> Result<(), Refusal> {
    if !has_own_namespace(record) {
        return Err(Refusal::Shared);
    }
    if network == "host" {
        return Err(Refusal::Host);
    }
    let is_private = record.networks.contains_key("none") || network == "none";
    if is_private && !record.networks.is_empty() {
        return Err(Refusal::Private);
    }
    Ok(())
}

/// What a user asked for of a place in a network; what the network says of it is not the user's to say.
fn wished(settings: EndpointSettings, network: &Found) -> Result<EndpointSettings, Refusal> {
    let has_address = asked_address(&settings)?.is_some()
        || settings.ipam_config.as_ref().is_some_and(|ipam| !ipam.ipv6_address.is_empty());
    if has_address && !network.takes_addresses {
        return Err(match PREDEFINED.contains(&network.name.as_str()) {
            true => Refusal::AddressOnDefault,
            false => Refusal::AddressWithoutSubnet,
        });
    }
    Ok(EndpointSettings {
        ipam_config: settings.ipam_config,
        links: settings.links,
        aliases: settings.aliases,
        mac_address: settings.mac_address,
        driver_opts: settings.driver_opts,
        gw_priority: settings.gw_priority,
        network_id: network.id.clone(),
        ..EndpointSettings::default()
    })
}

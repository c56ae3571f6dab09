//! Networks of the swarm on this node: what managers tell, made so in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use docker_types::network::EndpointSettings;
use engine::containers::NewContainer;
use names::Zone;
use network::{DATA_PORT, Key, Network, Overlay, Services, address_of};
use tracing::warn;
use types::network::{NetworkChange, NetworkService, NodeNetwork, Peer};
use types::{NetworkId, NodeId, ServiceId, Task, TaskId};

use crate::board::Board;
use crate::name_book::NameBook;
use crate::tunnel::{Settings, Tunnel};

/// Between the moment a task takes no connections any more and the one it is told to stop: requests that are under way
/// come to their end, and other nodes hear of it.
const DRAIN: Duration = Duration::from_millis(500);

/// Makes what this node was told of networks so.
#[derive(Debug)]
pub(crate) struct Connector {
    board: Arc<Board>,
    names: Arc<NameBook>,
    pub(crate) tunnel: Tunnel,
}

/// One network, as far as this node knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) definition: Option<NodeNetwork>,
    pub(crate) peers: BTreeMap<TaskId, Peer>,
    pub(crate) services: BTreeMap<ServiceId, NetworkService>,
    /// Why the network is not as it should be on this node.
    pub(crate) trouble: Option<String>,
}

impl View {
    pub(crate) fn change(&mut self, change: NetworkChange) {
        if change.is_full {
            *self = Self::default();
        }
        if change.definition.is_some() {
            self.definition = change.definition;
        }
        for task in change.gone {
            self.peers.remove(&task);
        }
        self.peers.extend(change.peers.into_iter().map(|peer| (peer.task, peer)));
        for service in change.gone_services {
            self.services.remove(&service);
        }
        let services = change.services.into_iter();
        self.services.extend(services.map(|service| (service.service, service)));
    }

    fn overlay(&self, local: Option<IpAddr>) -> Option<Overlay> {
        let definition = self.definition.as_ref()?;
        let port = if definition.data_port == 0 { DATA_PORT } else { definition.data_port };
        let (id, vni, mtu) = (definition.id.to_string(), definition.vni, definition.mtu);
        let is_encrypted = definition.is_encrypted;
        Some(Overlay { id, vni, local, port, mtu, is_encrypted })
    }

    fn is_encrypted(&self) -> bool {
        self.definition.as_ref().is_some_and(|definition| definition.is_encrypted)
    }

    /// Addresses on other nodes, and where those nodes are: in an encrypted network, inside of the tunnel. A node without
    /// a key is nowhere then.
    fn elsewhere(&self, own: NodeId) -> BTreeMap<IpAddr, network::Peer> {
        let is_encrypted = self.is_encrypted();
        let others = self.peers.values().filter(|peer| peer.node != own);
        let place = |peer: &Peer| match is_encrypted {
            true => peer.tunnel_keys.first().map(|key| IpAddr::V6(address_of(&Key(key.key)))),
            false => peer.data_address,
        };
        let known = others.filter_map(|peer| {
            let mac = network::hardware_address(peer.addresses.iter().copied())?;
            Some((peer, network::Peer { node: place(peer)?, mac }))
        });
        known
            .flat_map(|(peer, known)| peer.addresses.iter().map(move |address| (*address, known)))
            .collect()
    }

    /// The keys of other nodes in an encrypted network, and where their packets go.
    fn keys(&self, own: NodeId) -> BTreeMap<Key, SocketAddr> {
        let others = self.peers.values().filter(|peer| self.is_encrypted() && peer.node != own);
        let places = others.filter_map(|peer| Some((peer, peer.data_address?)));
        let keys = places.flat_map(|(peer, address)| {
            let keys = peer.tunnel_keys.iter();
            keys.map(move |key| (Key(key.key), SocketAddr::new(address, key.port)))
        });
        keys.collect()
    }

    /// The names of services, tasks and containers, as they are asked for.
    fn zone(&self) -> Zone {
        let mut zone = Zone::default();
        let Some(definition) = &self.definition else { return zone };
        zone.network = definition.name.to_ascii_lowercase();
        for peer in self.peers.values() {
            for name in std::iter::once(&peer.name).chain(&peer.aliases) {
                zone.add(name, peer.addresses.iter().copied());
            }
            for address in &peer.addresses {
                zone.reverse.insert(*address, format!("{}.{}", peer.name, definition.name));
            }
        }
        let serving = self.serving();
        for service in self.services.values() {
            let tasks = serving.get(&service.service).cloned().unwrap_or_default();
            let addresses =
                if service.virtual_ips.is_empty() { &tasks } else { &service.virtual_ips };
            zone.add(&format!("tasks.{}", service.name), tasks.iter().copied());
            for name in std::iter::once(&service.name).chain(&service.aliases) {
                zone.add(name, addresses.iter().copied());
            }
            for address in &service.virtual_ips {
                zone.reverse.insert(*address, format!("{}.{}", service.name, definition.name));
            }
        }
        zone
    }

    /// Virtual addresses, and the tasks that take connections behind each.
    fn services(&self) -> Services {
        let serving = self.serving();
        let mut services = Services::new();
        for service in self.services.values() {
            let tasks = serving.get(&service.service).into_iter().flatten();
            let tasks: Vec<_> = tasks.copied().collect();
            for address in &service.virtual_ips {
                let is_alike = |task: &&IpAddr| task.is_ipv4() == address.is_ipv4();
                services.insert(*address, tasks.iter().filter(is_alike).copied().collect());
            }
        }
        services
    }

    /// Whether a task is one of those that connections to a service here are led to.
    fn leads_to(&self, task: TaskId) -> bool {
        self.peers.get(&task).is_some_and(|peer| self.services.contains_key(&peer.service))
    }

    /// Addresses of the tasks that take connections, by service.
    fn serving(&self) -> BTreeMap<ServiceId, Vec<IpAddr>> {
        let mut serving: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for peer in self.peers.values().filter(|peer| peer.is_serving) {
            serving.entry(peer.service).or_default().extend(&peer.addresses);
        }
        serving
    }
}

/// What a view comes to in the kernel.
struct Wanted {
    overlay: Overlay,
    peers: BTreeMap<IpAddr, network::Peer>,
    services: Services,
    /// Addresses that are somebody's.
    held: BTreeSet<IpAddr>,
}

impl Wanted {
    fn new(view: &View, own: NodeId, local: Option<IpAddr>) -> Option<Self> {
        let overlay = view.overlay(local)?;
        let held = view.peers.values().flat_map(|peer| &peer.addresses).copied().collect();
        Some(Self { overlay, peers: view.elsewhere(own), services: view.services(), held })
    }
}

impl Connector {
    /// Writes networks on `board`, and names into `names`.
    pub(crate) fn new(
        board: Arc<Board>,
        names: Arc<NameBook>,
        tunnel: Settings,
        network: &Network,
    ) -> Self {
        Self { board, names, tunnel: Tunnel::new(tunnel, network) }
    }

    /// Goes on with the tunnel of encrypted networks, when something is due.
    pub(crate) async fn proceed_with_tunnel(&mut self, network: &Network, local: &str) {
        let in_use = self.board.any(View::is_encrypted);
        self.tunnel.proceed(network, local.parse().ok(), in_use).await;
    }

    /// How long the task is left alone before it is told to stop, as connections may be on their way to it.
    pub(crate) fn drain_of(&self, task: TaskId) -> Duration {
        if self.board.any(|view| view.leads_to(task)) { DRAIN } else { Duration::ZERO }
    }

    /// Puts the ingress network on the board, which somebody else makes.
    pub(crate) fn look_on(&self, action: &agent::Action) {
        let is_ingress = |network: &NodeNetwork| network.is_ingress;
        let is_known = |id: NetworkId| self.board.definition(id).as_ref().is_some_and(is_ingress);
        match action {
            agent::Action::Connect(change)
                if is_known(change.network)
                    || change.definition.as_ref().is_some_and(is_ingress) =>
            {
                self.board.change(change.network, |view| view.change((**change).clone()));
                self.board.made(change.network, None);
            }
            agent::Action::Leave(network) if is_known(*network) => self.board.forget(*network),
            _ => {}
        }
    }

    /// Takes note of a change and makes it so.
    pub(crate) async fn apply(
        &mut self,
        network: &Network,
        own: NodeId,
        local: &str,
        change: NetworkChange,
    ) {
        let id = change.network;
        let names = &self.names;
        self.board.change(id, |view| {
            view.change(change);
            let is_internal = view.definition.as_ref().is_some_and(|network| network.is_internal);
            names.set(&id.to_string(), view.zone(), is_internal);
        });
        self.settle(id, network, own, local).await;
    }

    /// Says once more what every network is to be: what could not be made so may be possible now.
    pub(crate) async fn settle_all(&mut self, network: &Network, own: NodeId, local: &str) {
        // The ingress network is made by somebody else.
        let networks = self.board.definitions().into_iter().filter(|it| !it.is_ingress);
        for definition in networks {
            self.settle(definition.id, network, own, local).await;
        }
    }

    async fn settle(&mut self, id: NetworkId, network: &Network, own: NodeId, local: &str) {
        let local = local.parse().ok();
        let wanted =
            self.board.look(id, |view| (view.is_encrypted(), Wanted::new(view, own, local)));
        let Some((is_encrypted, Some(wanted))) = wanted else { return };
        if is_encrypted {
            // A way to the others comes before what leads there.
            let keys = self.board.gather(|view| view.keys(own)).into_iter().collect();
            self.tunnel.make(network, local, keys).await;
        }
        let made = make(network, wanted).await;
        if let Err(error) = &made {
            warn!(network.id = %id, %error, "network is not as it should be");
        }
        let trouble = made.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
        let tunnel = self.tunnel.trouble().filter(|_| is_encrypted).map(str::to_owned);
        self.board.made(id, tunnel.or(trouble));
    }

    /// Removes what no task of this node is in any more.
    pub(crate) async fn leave(&mut self, network: &Network, id: NetworkId) {
        self.board.forget(id);
        self.names.forget_network(&id.to_string());
        if let Err(error) = network.remove_overlay(&id.to_string()).await {
            warn!(network.id = %id, %error, "network is not removed");
        }
    }

    /// Removes what an earlier daemon left and nobody names any more.
    pub(crate) async fn leave_others(&self, network: &Network) {
        let named: BTreeSet<_> = self.board.networks().iter().map(NetworkId::to_string).collect();
        let found = network.overlays().await.unwrap_or_default();
        for id in found.difference(&named) {
            if let Err(error) = network.remove_overlay(id).await {
                warn!(network.id = id, %error, "network of an earlier daemon is not removed");
            }
        }
    }

    /// The task's places in networks of the swarm, as containers are told of them. Published ports are led to the
    /// container's own link, so that it has one in any case.
    pub(crate) fn places(&self, task: &Task, is_ingress: impl Fn(NetworkId) -> bool) -> Places {
        let is_published = task.networks.iter().any(|place| is_ingress(place.network));
        let mut places = Places { has_way_out: is_published, ..Places::default() };
        for place in &task.networks {
            let Some(view) = self.board.without_members(place.network) else { continue };
            // The ingress network reaches containers by another way than a link.
            let Some(definition) = view.definition.filter(|it| !it.is_ingress) else { continue };
            if let Some(trouble) = view.trouble {
                let kind = if definition.is_encrypted { "encrypted network" } else { "network" };
                places.obstacle = Some(format!("{kind} {}: {trouble}", definition.name));
            }
            let mut settings = EndpointSettings {
                network_id: place.network.to_string(),
                aliases: Some(place.aliases.clone()).filter(|aliases| !aliases.is_empty()),
                ..EndpointSettings::default()
            };
            for given in &place.addresses {
                let (address, length) = (given.addr().to_string(), given.prefix_len());
                if given.addr().is_ipv4() {
                    (settings.ip_address, settings.ip_prefix_len) = (address, length);
                } else {
                    (settings.global_ipv6_address, settings.global_ipv6_prefix_len) =
                        (address, length);
                }
            }
            places.has_way_out |= !definition.is_internal;
            places.endpoints.insert(definition.name.clone(), Some(settings));
        }
        places.has_way_out |= task.networks.is_empty();
        places
    }
}

/// A task's places in networks of the swarm.
#[derive(Debug, Default)]
pub(crate) struct Places {
    endpoints: BTreeMap<String, Option<EndpointSettings>>,
    /// Whether anything outside those networks is reached.
    has_way_out: bool,
    /// Why the task cannot be there.
    pub(crate) obstacle: Option<String>,
}

impl Places {
    /// Says so to the engine.
    pub(crate) fn write_into(self, request: &mut NewContainer) {
        request.networking.endpoints_config = self.endpoints;
        if !self.has_way_out {
            request.host.network_mode = "none".into();
        }
    }
}

async fn make(network: &Network, wanted: Wanted) -> Result<(), network::Error> {
    let Wanted { overlay, peers, services, held } = wanted;
    let id = overlay.id.clone();
    network.make_overlay(overlay).await?;
    network.set_peers(&id, peers).await?;
    network.set_services(&id, services).await?;
    // Nobody is led there any more.
    network.set_held(&id, held).await
}

//! Networks of the swarm on this node: what managers tell, made so in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use docker_types::network::EndpointSettings;
use engine::containers::NewContainer;
use names::Zone;
use network::{Backends, DATA_PORT, Key, Network, Overlay, Update, address_of};
use tracing::warn;
use types::network::{NetworkChange, NodeNetwork, TaskNetwork};
use types::{NetworkId, NodeId, Task, TaskId};

use crate::board::Board;
use crate::forgetting::Forgetting;
use crate::name_book::NameBook;
use crate::paths::Paths;
use crate::told::{Told, Touched};
use crate::tunnel::{Settings, Tunnel};

/// Between the moment a task takes no connections any more and the one it is told to stop: requests that are under way
/// come to their end, and other nodes hear of it.
const DRAIN: Duration = Duration::from_millis(500);

/// Makes what this node was told of networks so.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) board: Arc<Board>,
    names: Arc<NameBook>,
    pub(crate) tunnel: Tunnel,
    /// How long packets to other nodes may be.
    pub(crate) paths: Paths,
    forgetting: Forgetting,
}

/// One network on this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Shared with those who write it down: changing it copies it while they do.
    pub(crate) told: Arc<Told>,
    /// Why the network is not as it should be on this node.
    pub(crate) trouble: Option<String>,
}

impl View {
    pub(crate) fn change(&mut self, change: NetworkChange) -> Touched {
        // What could not be made is made as a whole.
        let had_trouble = self.trouble.take().is_some();
        let touched = Arc::make_mut(&mut self.told).change(change);
        Touched { is_all: touched.is_all || had_trouble, ..touched }
    }

    fn overlay(&self, local: Option<IpAddr>, way: Option<u32>) -> Option<Overlay> {
        let definition = self.told.definition.as_ref()?;
        let port = if definition.data_port == 0 { DATA_PORT } else { definition.data_port };
        let (id, vni, mtu) = (definition.id.to_string(), definition.vni, definition.mtu);
        let is_encrypted = definition.is_encrypted;
        Some(Overlay { id, vni, local, port, mtu, way, is_encrypted })
    }

    pub(crate) fn is_of_each_node(&self) -> bool {
        self.told.definition.as_ref().is_some_and(|it| it.spec.is_of_each_node())
    }

    fn is_encrypted(&self) -> bool {
        self.told.definition.as_ref().is_some_and(|definition| definition.is_encrypted)
    }

    /// Where on another node an address is: in an encrypted network, inside of the tunnel. A node without a key is nowhere
    /// then.
    fn elsewhere(&self, address: IpAddr, own: NodeId) -> Option<network::Peer> {
        let mut others = self.told.holders(address).filter(|peer| peer.node != own);
        others.find_map(|peer| {
            let node = match self.is_encrypted() {
                true => peer.tunnel_keys.first().map(|key| address_of(&Key(key.key)).into()),
                false => peer.data_address,
            };
            let mac = network::hardware_address(peer.addresses.iter().copied())?;
            Some(network::Peer { node: node?, mac })
        })
    }

    /// The keys of other nodes in an encrypted network, and where their packets go.
    fn keys(&self, own: NodeId) -> BTreeMap<Key, SocketAddr> {
        let told = Some(&self.told).filter(|_| self.is_encrypted());
        let peers = told.iter().flat_map(|told| told.peers.values());
        let peers = peers.map(|peer| (peer.node, peer.data_address, &peer.tunnel_keys));
        let nodes = told.iter().flat_map(|told| told.nodes.values());
        let nodes = nodes.map(|node| (node.node, Some(node.data_address), &node.tunnel_keys));
        let others = peers.chain(nodes).filter(|(node, _, _)| *node != own);
        let places = others.filter_map(|(_, address, keys)| Some((address?, keys)));
        let keys = places.flat_map(|(address, keys)| {
            keys.iter().map(move |key| (Key(key.key), SocketAddr::new(address, key.port)))
        });
        keys.collect()
    }
}

/// What a view comes to in the kernel.
struct Wanted {
    overlay: Overlay,
    peers: Update<network::Peer>,
    services: Update<Backends>,
    /// Addresses that were somebody's and are nobody's any more.
    gone: BTreeSet<IpAddr>,
}

impl Wanted {
    fn new(view: &View, touched: &Touched, own: NodeId, overlay: Overlay) -> Self {
        let (peers, services) = match touched.is_all {
            true => {
                let peers = view.told.addresses();
                let peers = peers.filter_map(|it| Some((it, view.elsewhere(it, own)?))).collect();
                let services = view.told.virtual_ips();
                let services = services.filter_map(|it| Some((it, view.told.backends(it, own)?)));
                (Update::Whole(peers), Update::Whole(services.collect()))
            }
            false => {
                let peers = touched.addresses.iter().map(|it| (*it, view.elsewhere(*it, own)));
                let services = touched.virtual_ips.iter();
                let services = services.map(|it| (*it, view.told.backends(*it, own)));
                (Update::Part(peers.collect()), Update::Part(services.collect()))
            }
        };
        let is_gone = |address: &&IpAddr| view.told.holders(**address).next().is_none();
        let gone = touched.addresses.iter().filter(is_gone).copied().collect();
        Self { overlay, peers, services, gone }
    }
}

impl Connector {
    /// Writes networks on `board`, and names into `names`.
    pub(crate) fn new(
        board: Arc<Board>,
        names: Arc<NameBook>,
        tunnel: Settings,
        network: &Network,
        forgetting: Forgetting,
    ) -> Self {
        let (tunnel, paths) = (Tunnel::new(tunnel, network), Paths::default());
        Self { board, names, tunnel, paths, forgetting }
    }

    /// Goes on with the tunnel of encrypted networks, when something is due.
    pub(crate) async fn proceed_with_tunnel(&mut self, network: &Network, local: &str) {
        let in_use = self.board.any(View::is_encrypted);
        self.tunnel.proceed(network, local.parse().ok(), in_use).await;
    }

    /// How long the task is left alone before it is told to stop, as connections may be on their way to it.
    pub(crate) fn drain_of(&self, task: TaskId) -> Duration {
        if self.board.any(|view| view.told.leads_to(task)) { DRAIN } else { Duration::ZERO }
    }

    /// Takes note of a change and makes it so.
    pub(crate) async fn apply(
        &mut self,
        network: &Network,
        own: NodeId,
        local: &str,
        change: NetworkChange,
    ) {
        let (id, is_full) = (change.network, change.is_full);
        let touched = self.board.change(change);
        // Somebody else makes what this node has for itself.
        if self.board.look(id, View::is_of_each_node) == Some(true) {
            return;
        }
        self.board.look(id, |view| {
            let definition = view.told.definition.as_ref();
            let is_internal = definition.is_some_and(|network| network.is_internal);
            let write = |zone: &mut Zone| view.told.write_names(zone, &touched);
            self.names.change(&id.to_string(), is_internal, write);
        });
        self.settle(id, &touched, network, own, local).await;
        if is_full {
            self.forgetting.look_within(id);
        }
    }

    /// Says once more what every network is to be: what could not be made so may be possible now.
    pub(crate) async fn settle_all(&mut self, network: &Network, own: NodeId, local: &str) {
        // The ingress network is made by somebody else.
        let is_ours = |it: &NodeNetwork| !it.is_ingress && !it.spec.is_of_each_node();
        let networks = self.board.definitions().into_iter().filter(is_ours);
        let all = Touched { is_all: true, ..Touched::default() };
        for definition in networks {
            self.settle(definition.id, &all, network, own, local).await;
        }
    }

    async fn settle(
        &mut self,
        id: NetworkId,
        touched: &Touched,
        network: &Network,
        own: NodeId,
        local: &str,
    ) {
        let local = local.parse().ok();
        let wanted = self.board.look(id, |view| {
            let way = match touched.is_all || touched.is_elsewhere {
                true => self.paths.narrowest(network, local, &view.told.sites(local)),
                // What was known holds.
                false => None,
            };
            let overlay = view.overlay(local, way)?;
            Some((view.is_encrypted(), Wanted::new(view, touched, own, overlay)))
        });
        let Some((is_encrypted, mut wanted)) = wanted.flatten() else { return };
        if is_encrypted {
            // A way to the others comes before what leads there.
            self.make_tunnel(network, own, local).await;
        }
        let gone = std::mem::take(&mut wanted.gone);
        let made = make(network, wanted).await;
        // Nobody is led there any more.
        self.forgetting.within(id, gone);
        if let Err(error) = &made {
            warn!(network.id = %id, %error, "network is not as it should be");
        }
        let trouble = made.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
        let tunnel = self.tunnel.trouble().filter(|_| is_encrypted).map(str::to_owned);
        self.board.made(id, tunnel.or(trouble));
    }

    /// Makes the way to the other nodes of an encrypted network.
    async fn make_tunnel(&mut self, network: &Network, own: NodeId, local: Option<IpAddr>) {
        let keys = self.board.gather(|view| view.keys(own)).into_iter().collect();
        self.tunnel.make(network, local, keys).await;
    }

    /// Makes the way to the other nodes if the network is encrypted, which somebody else makes.
    pub(crate) async fn seal(
        &mut self,
        id: NetworkId,
        network: &Network,
        own: NodeId,
        local: &str,
    ) {
        if self.board.look(id, View::is_encrypted) == Some(true) {
            self.make_tunnel(network, own, local.parse().ok()).await;
        }
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
            let known = self.board.look(place.network, |view| {
                let service = view.told.services.get(&task.service);
                let service = service.map(|service| service.name.clone()).unwrap_or_default();
                Some((view.told.definition.clone()?, view.trouble.clone(), service))
            });
            // The ingress network reaches containers by another way than a link.
            let Some((definition, trouble, service)) =
                known.flatten().filter(|it| !it.0.is_ingress)
            else {
                continue;
            };
            if let Some(trouble) = trouble {
                let kind = if definition.is_encrypted { "encrypted network" } else { "network" };
                places.obstacle = Some(format!("{kind} {}: {trouble}", definition.name));
            }
            if definition.spec.is_of_each_node() {
                places.add_own(&definition, place, &service, is_published);
                continue;
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
    /// Whether the task has no network of its own, but the host's.
    is_on_host: bool,
    /// Why the task cannot be there.
    pub(crate) obstacle: Option<String>,
}

impl Places {
    /// A place in a network that this node has for itself. Other tasks of the service are found there by its name, those of
    /// this node.
    fn add_own(
        &mut self,
        definition: &NodeNetwork,
        place: &TaskNetwork,
        service: &str,
        is_published: bool,
    ) {
        if definition.spec.driver() == "host" {
            self.is_on_host = true;
            return;
        }
        let mut aliases = place.aliases.clone();
        aliases.extend([service.to_owned(), format!("tasks.{service}")]);
        let settings = EndpointSettings {
            network_id: definition.id.to_string(),
            aliases: Some(aliases),
            // Who published ports lead to answers by the way they came.
            gw_priority: if is_published { -1 } else { 1 },
            ..EndpointSettings::default()
        };
        self.has_way_out |= !definition.is_internal;
        self.endpoints.insert(definition.name.clone(), Some(settings));
    }

    /// Says so to the engine.
    pub(crate) fn write_into(self, request: &mut NewContainer) {
        if self.is_on_host {
            request.host.network_mode = "host".into();
            return;
        }
        request.networking.endpoints_config = self.endpoints;
        if !self.has_way_out {
            request.host.network_mode = "none".into();
        }
    }
}

async fn make(network: &Network, wanted: Wanted) -> Result<(), network::Error> {
    let Wanted { overlay, peers, services, .. } = wanted;
    let id = overlay.id.clone();
    network.make_overlay(overlay).await?;
    network.set_peers(&id, peers).await?;
    network.set_services(&id, services).await
}

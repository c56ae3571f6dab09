//! The ports that services publish on every node: what managers tell of them and what this node sees of its own tasks, made
//! so in the kernel.
//!
//! Of its own tasks a node believes itself: one that is about to stop is out of its tables before it is told, and what
//! still arrives for it goes on to another. Of others it believes the managers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use agent::{Action, Backend};
use engine::Engine;
use ipnet::IpNet;
use network::{DATA_PORT, Front, Key, Network, Protocol, PublishedPort, Underlay, address_of};
use tokio::time::Instant;
use tracing::{info, warn};
use types::endpoint::PortConfig;
use types::network::{NetworkChange, NetworkService, NodePlace, Peer};
use types::{NetworkId, NodeId, ServiceId, Task, TaskId, endpoint};

use crate::board::Board;
use crate::forgetting::Forgetting;
use crate::paths::Paths;
use crate::told::Told;

/// Who publishes the services' ports on this host.
const OWNER: &str = "ingress";

/// How long until what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What is known, and what could not be done.
#[derive(Debug)]
pub(crate) struct Ingress {
    board: Arc<Board>,
    forgetting: Forgetting,
    network: Option<NetworkId>,
    /// Containers of this node.
    own: BTreeMap<ServiceId, Vec<Backend>>,
    /// Services that publish ports, or did when their containers here began: connections to these end with them.
    published: BTreeSet<ServiceId>,
    /// Ports that no process of this host can take any more; unknown before the first are told.
    kept: Option<BTreeSet<Front>>,
    /// Ports that were found held, which was told.
    held: BTreeSet<Front>,
    /// Bytes of a packet that reaches all other nodes, once it is known.
    way: Option<u32>,
    is_touched: bool,
    /// Whether managers, or what was recalled of them, have said what there is: until then, what an earlier daemon left
    /// goes on working.
    is_told: bool,
    /// Whether all there is was told since the last time: connections may lead to what is not there any more.
    is_told_whole: bool,
    retry_at: Option<Instant>,
}

impl Ingress {
    /// What managers tell goes onto `board`.
    pub(crate) fn new(board: Arc<Board>, forgetting: Forgetting) -> Self {
        Self {
            board,
            forgetting,
            network: None,
            own: BTreeMap::new(),
            published: BTreeSet::new(),
            kept: None,
            held: BTreeSet::new(),
            way: None,
            is_touched: false,
            is_told: false,
            is_told_whole: false,
            retry_at: None,
        }
    }

    /// Takes note of an action that is about published ports; gives back any other.
    pub(crate) fn note(&mut self, action: Action) -> Option<Action> {
        match action {
            Action::Serve { service, backends } => {
                self.is_touched |= self.published.contains(&service)
                    || self.told().services.contains_key(&service);
                if backends.is_empty() {
                    self.own.remove(&service);
                } else {
                    self.own.insert(service, backends);
                }
                None
            }
            Action::Connect(change) if self.concerns(&change) => {
                self.network = Some(change.network);
                let network = change.network;
                self.is_told_whole |= change.is_full;
                self.board.change(*change);
                self.board.made(network, None);
                (self.is_touched, self.is_told) = (true, true);
                None
            }
            Action::Leave(network) if self.network == Some(network) => {
                self.board.forget(network);
                self.network = None;
                self.is_touched = true;
                None
            }
            other => Some(other),
        }
    }

    fn concerns(&self, change: &NetworkChange) -> bool {
        let defined = change.definition.as_ref().is_some_and(|network| network.is_ingress);
        defined || self.network == Some(change.network)
    }

    fn told(&self) -> Arc<Told> {
        self.network.and_then(|network| self.board.told(network)).unwrap_or_default()
    }

    /// A manager has told all that there is, also where that is nothing.
    pub(crate) fn has_heard_all(&mut self) {
        self.is_touched |= !std::mem::replace(&mut self.is_told, true);
    }

    /// On which ports of a task's container connections will arrive, as far as they are seen to be awaited.
    pub(crate) fn awaited_ports(&self, task: TaskId) -> Vec<u16> {
        let told = self.told();
        let service = told.peers.get(&task).and_then(|peer| told.services.get(&peer.service));
        let ports = service.into_iter().flat_map(|service| &service.ports);
        let of_tcp = ports.filter(|port| port.protocol == endpoint::Protocol::Tcp);
        of_tcp.map(|port| port.target).collect()
    }

    /// The network, if it has to be made anew with what was noted since the last time.
    pub(crate) fn touched(&self) -> Option<NetworkId> {
        self.network.filter(|_| self.is_told && self.is_touched)
    }

    /// Whether the network is the one of published ports, in which containers have no part.
    pub(crate) fn is_network(&self, network: NetworkId) -> bool {
        self.network == Some(network)
    }

    /// The ports of the task's service that somebody must be able to reach it by: all of them, where no other node answers.
    pub(crate) fn needed_ports(&self, task: &Task, own: NodeId) -> Vec<PortConfig> {
        let told = self.told();
        if told.nodes.keys().any(|node| *node != own) {
            return Vec::new();
        }
        told.services.get(&task.service).map(|service| service.ports.clone()).unwrap_or_default()
    }

    /// Ready when something that could not be done is due again.
    pub(crate) fn due(&self) -> impl Future<Output = ()> + use<> {
        let at = self.retry_at;
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Makes it so, where something was noted since the last time.
    pub(crate) async fn settle(&mut self, engine: &Engine, own: NodeId, address: &str) {
        if self.is_told && std::mem::take(&mut self.is_touched) {
            self.try_again(engine, own, address).await;
        }
    }

    /// Makes it so.
    pub(crate) async fn try_again(&mut self, engine: &Engine, own: NodeId, address: &str) {
        let told = self.told();
        self.published.retain(|service| self.own.contains_key(service));
        self.published.extend(told.services.keys());
        let is_kept = self.keep_ports(&told, engine).await;
        let set = match self.network {
            Some(_) => {
                let wanted = self.wanted(&told, own, address.parse().ok());
                drop(told);
                let set = engine.network.set_ingress(wanted).await;
                if set.is_ok() && std::mem::take(&mut self.is_told_whole) {
                    self.forgetting.look_by_host();
                }
                set.map(|gone| self.forgetting.by_host(gone))
            }
            None => engine.network.remove_ingress().await,
        };
        if let Err(error) = &set {
            warn!(%error, "published ports do not lead everywhere they should");
        }
        self.retry_at = (!is_kept || set.is_err()).then(|| Instant::now() + RETRY);
    }

    /// Keeps processes of the host off the ports. One that is held is not answered here; other nodes answer on it.
    async fn keep_ports(&mut self, told: &Told, engine: &Engine) -> bool {
        let ports = told.services.values().flat_map(|service| &service.ports);
        let wanted: BTreeSet<_> = ports.map(front).collect();
        if self.kept.as_ref() == Some(&wanted) {
            return true;
        }
        let ports = wanted.iter().map(|front| published(*front)).collect();
        let refused = match engine.network.keep_ports(OWNER, ports).await {
            Ok(refused) => refused,
            Err(error) => {
                warn!(%error, "published ports are not kept for the next daemon");
                return false;
            }
        };
        let mut held = BTreeSet::new();
        for (port, error) in refused {
            let front = (port.protocol, port.published);
            held.insert(front);
            if !self.held.contains(&front) {
                warn!(%error, "port is not published here, and will be when it can be");
            }
        }
        for (protocol, port) in self.held.difference(&held).filter(|front| wanted.contains(front)) {
            info!(?protocol, port, "port is published at last");
        }
        self.kept = Some(wanted.difference(&held).copied().collect());
        self.held = held;
        self.held.is_empty()
    }

    /// Looks what the ways to other nodes take.
    pub(crate) fn measure(&mut self, paths: &Paths, network: &Network, own: NodeId, local: &str) {
        let told = self.told();
        if told.services.is_empty() {
            return;
        }
        let local = local.parse().ok();
        let way = paths.narrowest(network, local, &elsewhere(&told, own, local).collect());
        if way.is_some() && way != self.way {
            (self.way, self.is_touched) = (way, true);
        }
    }

    /// What the kernel is to do.
    fn wanted(&self, told: &Told, own: NodeId, local: Option<IpAddr>) -> network::Ingress {
        let mut wanted = network::Ingress {
            underlay: underlay(told, local),
            nodes: ways(told, own, local),
            way: self.way,
            ..network::Ingress::default()
        };
        let mut serving: BTreeMap<ServiceId, Vec<Ipv4Addr>> = BTreeMap::new();
        for peer in told.peers.values() {
            let Some(address) = ipv4(peer) else { continue };
            wanted.held.insert(address);
            let Some(node) = peer.data_address.filter(|node| wanted.nodes.contains_key(node))
            else {
                continue;
            };
            if peer.node == own {
                continue;
            }
            wanted.routes.insert(address, node);
            if peer.is_serving {
                serving.entry(peer.service).or_default().push(address);
            }
        }
        let published = self.own.iter().filter(|(service, _)| self.published.contains(*service));
        for backend in published.flat_map(|(_, backends)| backends) {
            wanted.held.extend(backend.address.parse::<Ipv4Addr>());
        }
        for service in told.services.values() {
            let elsewhere = serving.get(&service.service).map(Vec::as_slice).unwrap_or_default();
            for port in &service.ports {
                self.add_port(&mut wanted, told, service, port, elsewhere);
            }
        }
        wanted
    }

    fn add_port(
        &self,
        wanted: &mut network::Ingress,
        told: &Told,
        service: &NetworkService,
        port: &PortConfig,
        elsewhere: &[Ipv4Addr],
    ) {
        let front = front(port);
        let mut sockets = BTreeSet::new();
        let own = self.own.get(&service.service).into_iter().flatten();
        for backend in own.filter(|backend| backend.is_serving) {
            let Ok(address) = backend.address.parse() else { continue };
            let socket = (address, port.target);
            sockets.insert(socket);
            if let Some(known) = told.peers.get(&backend.task).and_then(ipv4) {
                wanted.own.insert((known, front), socket);
            }
        }
        let stays = service.balancing.prefers_local && !sockets.is_empty();
        if !stays {
            sockets.extend(elsewhere.iter().map(|address| (*address, port.published)));
        }
        if service.balancing.is_sticky {
            wanted.sticky.insert(front);
        }
        if self.kept.as_ref().is_some_and(|kept| kept.contains(&front)) {
            wanted.fronts.insert(front, sockets);
        }
    }
}

fn underlay(told: &Told, local: Option<IpAddr>) -> Option<Underlay> {
    let definition = told.definition.as_ref()?;
    let subnets = definition.subnets.iter().filter_map(|subnet| match subnet.subnet {
        IpNet::V4(subnet) => Some(subnet),
        IpNet::V6(_) => None,
    });
    Some(Underlay {
        vni: definition.vni,
        subnets: subnets.collect(),
        local: local?,
        port: if definition.data_port == 0 { DATA_PORT } else { definition.data_port },
        mtu: definition.mtu,
        is_encrypted: definition.is_encrypted,
    })
}

/// Where the other nodes are. Nodes that share this one's address cannot be reached over it.
fn elsewhere(told: &Told, own: NodeId, local: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let others = told.nodes.iter().filter(move |(node, _)| **node != own);
    others.map(|(_, place)| place.data_address).filter(move |address| Some(*address) != local)
}

/// Where each of the other nodes takes the ingress network's traffic: where it is, or, where that is encrypted, inside of the
/// tunnel. A node without a key is nowhere then.
fn ways(told: &Told, own: NodeId, local: Option<IpAddr>) -> BTreeMap<IpAddr, IpAddr> {
    let is_encrypted = told.definition.as_ref().is_some_and(|network| network.is_encrypted);
    let others = told.nodes.values().filter(|place| place.node != own);
    let others = others.filter(|place| Some(place.data_address) != local);
    let way = |place: &NodePlace| match is_encrypted {
        true => place.tunnel_keys.first().map(|key| address_of(&Key(key.key)).into()),
        false => Some(place.data_address),
    };
    others.filter_map(|place| Some((place.data_address, way(place)?))).collect()
}

/// Whether this host has the ports to give: a task nobody can reach is not begun.
///
/// # Errors
/// Which port is held, in words for `docker service ps`.
pub(crate) async fn check(engine: &Engine, ports: &[PortConfig]) -> Result<(), String> {
    for port in ports {
        let free = engine.network.check_free(OWNER, published(front(port))).await;
        let holder = match free {
            Ok(()) => continue,
            Err(network::Error::PortHeld { .. }) => "held by another process",
            Err(network::Error::PortTaken { .. }) => "published by another container",
            Err(error) => return Err(error.to_string()),
        };
        let (number, protocol) = (port.published, port.protocol.as_str());
        return Err(format!("port {number}/{protocol} is {holder} on this host"));
    }
    Ok(())
}

/// Withdraws all ports of the swarm, which this node has left.
pub(crate) async fn withdraw_all(engine: &Engine) {
    if let Err(error) = engine.network.remove_ingress().await {
        warn!(%error, "ports of the swarm stay published");
    }
    if let Err(error) = engine.network.keep_ports(OWNER, Vec::new()).await {
        warn!(%error, "ports of the swarm are still kept");
    }
}

fn front(port: &PortConfig) -> Front {
    let protocol = match port.protocol {
        endpoint::Protocol::Tcp => Protocol::Tcp,
        endpoint::Protocol::Udp => Protocol::Udp,
        endpoint::Protocol::Sctp => Protocol::Sctp,
    };
    (protocol, port.published)
}

/// A port to be kept: where connections go from there is told by another way.
fn published((protocol, published): Front) -> PublishedPort {
    PublishedPort { protocol, host_ip: None, published, target: published, backends: Vec::new() }
}

fn ipv4(peer: &Peer) -> Option<Ipv4Addr> {
    peer.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

//! What nodes must know of the networks in which they have tasks: who else is there, and behind which names. The ingress
//! network concerns every node: all of them answer on its services' ports.
//!
//! A node that gets its first task in a network is sent all of it, later what changed. Nothing is remembered for each
//! node but which networks it was told of: differences come from the changes themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use store::{Event, Key, Object, Snapshot};
use types::endpoint::{PortConfig, PublishMode, ResolutionMode};
use types::network::{
    Balancing, Network, NetworkChange, NetworkService, NodeNetwork, NodePlace, Peer, TaskNetwork,
    TunnelKey,
};
use types::{
    ContainerAttachment, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId, TaskState,
};

/// The networks of the cluster in which the node has tasks that have not ended, or attached containers, and the ingress
/// network.
pub fn networks_of(snapshot: &Snapshot, node: NodeId) -> BTreeSet<NetworkId> {
    let tasks = snapshot.tasks_on(node).filter(|task| !task.status.state.is_terminal());
    let joined = tasks.flat_map(|task| task.networks.iter().map(|place| place.network));
    let attached = snapshot.attachments_on(node).map(|attachment| attachment.network);
    // A task may outlive an ingress network, which is removed when no service needs it.
    let is_there = |id: &NetworkId| snapshot.network(*id).is_some();
    joined.chain(attached).filter(is_there).chain(ingress(snapshot)).collect()
}

fn ingress(snapshot: &Snapshot) -> Option<NetworkId> {
    snapshot.networks().find(|network| network.spec.is_ingress).map(|network| network.id)
}

/// Whether an ingress network came, changed or went.
pub(crate) fn is_about_ingress(event: &Event) -> bool {
    [&event.before, &event.after]
        .into_iter()
        .flatten()
        .any(|object| matches!(object, Object::Network(network) if network.spec.is_ingress))
}

/// Everything about one network; `None` where it is gone.
pub fn whole(snapshot: &Snapshot, id: NetworkId) -> Option<NetworkChange> {
    let network = snapshot.network(id)?;
    let tasks = snapshot.tasks().filter_map(|task| peer(snapshot, task, id));
    let containers = snapshot.attachments().filter(|attachment| attachment.network == id);
    let peers = tasks.chain(containers.map(|it| container_peer(snapshot, it))).collect();
    let ingress = ingress(snapshot);
    let services = snapshot.services().filter_map(|service| service_in(service, id, ingress));
    let nodes = snapshot.nodes().filter(|_| ingress == Some(id));
    let nodes = nodes.filter_map(|node| place(node, network.spec.is_encrypted()));
    Some(NetworkChange {
        network: id,
        is_full: true,
        definition: Some(definition(snapshot, network)),
        peers,
        gone: Vec::new(),
        services: services.collect(),
        gone_services: Vec::new(),
        nodes: nodes.collect(),
        gone_nodes: Vec::new(),
    })
}

/// What these changes mean to networks. `snapshot` holds them already.
pub(crate) fn changes(snapshot: &Snapshot, events: &[Event]) -> BTreeMap<NetworkId, NetworkChange> {
    let mut touched = Touched { ingress: ingress(snapshot), ..Touched::default() };
    for event in events {
        touched.note(snapshot, event);
    }
    let mut changes = BTreeMap::new();
    for (network, task) in touched.tasks {
        let change = changes.entry(network).or_insert_with(|| nothing(network));
        let of_task = snapshot.task(task).and_then(|task| peer(snapshot, task, network));
        let of_container = || Some(container_peer(snapshot, snapshot.attachment(task)?));
        match of_task.or_else(of_container) {
            Some(peer) => change.peers.push(peer),
            None => change.gone.push(task),
        }
    }
    for (network, service) in touched.services {
        let change = changes.entry(network).or_insert_with(|| nothing(network));
        let ingress = touched.ingress;
        match snapshot.service(service).and_then(|service| service_in(service, network, ingress)) {
            Some(service) => change.services.push(service),
            None => change.gone_services.push(service),
        }
    }
    for (ingress, node) in touched.nodes {
        let change = changes.entry(ingress).or_insert_with(|| nothing(ingress));
        let is_encrypted = snapshot.network(ingress).is_some_and(|it| it.spec.is_encrypted());
        match snapshot.node(node).and_then(|node| place(node, is_encrypted)) {
            Some(place) => change.nodes.push(place),
            None => change.gone_nodes.push(node),
        }
    }
    changes
}

fn nothing(network: NetworkId) -> NetworkChange {
    NetworkChange {
        network,
        is_full: false,
        definition: None,
        peers: Vec::new(),
        gone: Vec::new(),
        services: Vec::new(),
        gone_services: Vec::new(),
        nodes: Vec::new(),
        gone_nodes: Vec::new(),
    }
}

/// Tasks, services and nodes of which a network may see something else now.
#[derive(Default)]
struct Touched {
    ingress: Option<NetworkId>,
    nodes: BTreeSet<(NetworkId, NodeId)>,
    tasks: BTreeSet<(NetworkId, TaskId)>,
    services: BTreeSet<(NetworkId, ServiceId)>,
}

impl Touched {
    fn note(&mut self, snapshot: &Snapshot, event: &Event) {
        match (event.key, &event.before, &event.after) {
            (Key::Task(id), before, after) => {
                let (before, after) = (as_task(before), as_task(after));
                if seen(before) != seen(after) {
                    let tasks = [before, after].into_iter().flatten();
                    let places = tasks.flat_map(|task| &task.networks);
                    self.tasks.extend(places.map(|place| (place.network, id)));
                }
            }
            (Key::Service(id), before, after) => {
                let (before, after) = (as_service(before), as_service(after));
                for service in [before, after].into_iter().flatten() {
                    for network in joined(service).into_iter().chain(self.ingress) {
                        let seen =
                            |service: Option<&Service>| service_in(service?, network, self.ingress);
                        if seen(before) != seen(after) {
                            self.services.insert((network, id));
                        }
                    }
                }
            }
            (Key::Attachment(id), before, after) => {
                let objects = [before, after].into_iter().flatten();
                let networks = objects.filter_map(|object| match object {
                    Object::Attachment(attachment) => Some(attachment.network),
                    _ => None,
                });
                self.tasks.extend(networks.map(|network| (network, id)));
            }
            // It, and its tasks, are reached by another way.
            (Key::Node(id), before, after) if whereabouts(before) != whereabouts(after) => {
                self.nodes.extend(self.ingress.map(|ingress| (ingress, id)));
                for task in snapshot.tasks_on(id) {
                    self.tasks.extend(task.networks.iter().map(|place| (place.network, task.id)));
                }
                let attached = snapshot.attachments_on(id);
                self.tasks.extend(attached.map(|attachment| (attachment.network, attachment.id)));
            }
            _ => {}
        }
    }
}

fn as_task(object: &Option<Object>) -> Option<&Task> {
    match object {
        Some(Object::Task(task)) => Some(task),
        _ => None,
    }
}

fn as_service(object: &Option<Object>) -> Option<&Service> {
    match object {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}

/// Whether the task has its addresses.
fn is_there(task: &Task) -> bool {
    task.occupies_node() && !task.networks.is_empty()
}

/// Whether the task takes connections. One that is to stop takes none from the moment that is decided.
fn is_serving(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired_state == TaskState::Running
}

fn peer(snapshot: &Snapshot, task: &Task, network: NetworkId) -> Option<Peer> {
    let place = task.networks.iter().find(|place| place.network == network)?;
    let node = task.node.filter(|_| is_there(task))?;
    let host = snapshot.node(node);
    let is_encrypted = snapshot.network(network).is_some_and(|it| it.spec.is_encrypted());
    let tunnel_keys = host.filter(|_| is_encrypted).map(|host| &host.description.tunnel_keys);
    let template = snapshot.template_of(task)?;
    Some(Peer {
        task: task.id,
        service: task.service,
        name: task.container_name(&template.service_name),
        aliases: Vec::new(),
        node,
        data_address: host.and_then(|host| data_address(host)),
        tunnel_keys: tunnel_keys.cloned().unwrap_or_default(),
        addresses: place.addresses.iter().map(ipnet::IpNet::addr).collect(),
        is_serving: is_serving(task),
    })
}

fn container_peer(snapshot: &Snapshot, attachment: &ContainerAttachment) -> Peer {
    let host = snapshot.node(attachment.node);
    let network = snapshot.network(attachment.network);
    let is_encrypted = network.is_some_and(|network| network.spec.is_encrypted());
    let tunnel_keys = host.filter(|_| is_encrypted).map(|host| &host.description.tunnel_keys);
    Peer {
        task: attachment.id,
        service: ServiceId::MIN,
        name: attachment.name.clone(),
        aliases: attachment.aliases.clone(),
        node: attachment.node,
        data_address: host.and_then(|host| data_address(host)),
        tunnel_keys: tunnel_keys.cloned().unwrap_or_default(),
        addresses: attachment.addresses.iter().map(ipnet::IpNet::addr).collect(),
        // It stands for no service.
        is_serving: false,
    }
}

fn data_address(node: &Node) -> Option<IpAddr> {
    node.status.address.parse().ok()
}

/// By what others reach a node, in the open and sealed.
fn whereabouts(object: &Option<Object>) -> (Option<IpAddr>, &[TunnelKey]) {
    match object {
        Some(Object::Node(node)) => (data_address(node), &node.description.tunnel_keys),
        _ => (None, &[]),
    }
}

fn place(node: &Node, is_encrypted: bool) -> Option<NodePlace> {
    let keys = Some(&node.description.tunnel_keys).filter(|_| is_encrypted);
    Some(NodePlace {
        node: node.id,
        data_address: data_address(node)?,
        tunnel_keys: keys.cloned().unwrap_or_default(),
    })
}

/// What networks see of a task.
fn seen(task: Option<&Task>) -> Option<(bool, bool, &[TaskNetwork])> {
    task.map(|task| (is_there(task), is_serving(task), &task.networks[..]))
}

fn joined(service: &Service) -> BTreeSet<NetworkId> {
    let named = service.spec.task.networks.iter().filter_map(|named| named.target.parse().ok());
    named.collect()
}

fn service_in(
    service: &Service,
    network: NetworkId,
    ingress: Option<NetworkId>,
) -> Option<NetworkService> {
    if ingress == Some(network) {
        return service_in_ingress(service);
    }
    let mut named = service.spec.task.networks.iter();
    let attachment = named.find(|named| named.target.parse() == Ok(network))?;
    let mode = service.spec.endpoint.as_ref().map(|endpoint| endpoint.mode).unwrap_or_default();
    let given = service.endpoint.virtual_ips.iter().filter(|given| given.network == network);
    Some(NetworkService {
        service: service.id,
        name: service.name().to_owned(),
        aliases: attachment.aliases.clone(),
        virtual_ips: match mode {
            ResolutionMode::Vip => given.map(|given| given.address.addr()).collect(),
            ResolutionMode::Dnsrr => Vec::new(),
        },
        ports: Vec::new(),
        balancing: balancing(service),
    })
}

/// A service that publishes. Nobody finds it by name in the ingress network.
fn service_in_ingress(service: &Service) -> Option<NetworkService> {
    let is_published =
        |port: &&PortConfig| port.mode == PublishMode::Ingress && port.published != 0;
    let ports: Vec<_> = service.endpoint.ports.iter().filter(is_published).cloned().collect();
    (!ports.is_empty()).then(|| NetworkService {
        service: service.id,
        name: service.name().to_owned(),
        aliases: Vec::new(),
        virtual_ips: Vec::new(),
        ports,
        balancing: balancing(service),
    })
}

/// What was refused before is not asked for.
fn balancing(service: &Service) -> Balancing {
    Balancing::of(&service.spec.annotations.labels).unwrap_or_default()
}

fn definition(snapshot: &Snapshot, network: &Network) -> NodeNetwork {
    NodeNetwork {
        data_port: snapshot.cluster().map_or(0, |cluster| cluster.data_path_port),
        id: network.id,
        name: network.name().to_owned(),
        vni: network.vni,
        subnets: network.subnets.clone(),
        mtu: network.mtu(),
        is_internal: network.spec.is_internal,
        is_encrypted: network.spec.is_encrypted(),
        is_ingress: network.spec.is_ingress,
        spec: network.spec.clone(),
        created_at: network.meta.created_at,
    }
}

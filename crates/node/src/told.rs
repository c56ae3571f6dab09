//! What managers have told of one network, change by change.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use names::{Host, Zone};
use network::Backends;
use types::network::{NetworkChange, NetworkService, NodeNetwork, NodePlace, Peer};
use types::{NetworkId, NodeId, ServiceId, TaskId};

/// One network, as far as this node knows. Thousands of services may be in it: what follows from a change is found
/// without looking at what it does not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) definition: Option<NodeNetwork>,
    pub(crate) peers: BTreeMap<TaskId, Peer>,
    pub(crate) services: BTreeMap<ServiceId, NetworkService>,
    /// Of the ingress network only: where nodes take the traffic of overlays.
    pub(crate) nodes: BTreeMap<NodeId, NodePlace>,
    /// Whose an address is. While one task follows another it may be both's for a moment.
    holders: BTreeMap<IpAddr, BTreeSet<TaskId>>,
    tasks: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    /// Who is on the node that takes the traffic of overlays there.
    sites: BTreeMap<IpAddr, BTreeSet<TaskId>>,
    /// Whose a virtual address is.
    fronts: BTreeMap<IpAddr, BTreeSet<ServiceId>>,
}

/// What changes have touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Everything.
    pub(crate) is_all: bool,
    pub(crate) peers: BTreeSet<TaskId>,
    pub(crate) services: BTreeSet<ServiceId>,
    /// Addresses that peers have, or had.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Addresses that services have, or had.
    pub(crate) virtual_ips: BTreeSet<IpAddr>,
    /// Whether the network has come to another node.
    pub(crate) is_elsewhere: bool,
}

impl Told {
    pub(crate) fn change(&mut self, change: NetworkChange) -> Touched {
        let mut touched = Touched { is_all: change.is_full, ..Touched::default() };
        if change.is_full {
            touched.addresses.extend(self.holders.keys());
            *self = Self::default();
        }
        if change.definition.is_some() {
            touched.is_all |= change.definition != self.definition;
            self.definition = change.definition;
        }
        for node in change.gone_nodes {
            self.nodes.remove(&node);
        }
        self.nodes.extend(change.nodes.into_iter().map(|place| (place.node, place)));
        for task in change.gone {
            self.remove_peer(task, &mut touched);
        }
        for peer in change.peers {
            self.set_peer(peer, &mut touched);
        }
        for service in change.gone_services {
            self.remove_service(service, &mut touched);
        }
        for service in change.services {
            self.set_service(service, &mut touched);
        }
        let services = touched.services.iter().filter_map(|service| self.services.get(service));
        touched.virtual_ips.extend(services.flat_map(|service| &service.virtual_ips));
        touched
    }

    fn set_peer(&mut self, peer: Peer, touched: &mut Touched) {
        self.remove_peer(peer.task, touched);
        touched.services.insert(peer.service);
        touched.addresses.extend(&peer.addresses);
        self.tasks.entry(peer.service).or_default().insert(peer.task);
        for address in &peer.addresses {
            self.holders.entry(*address).or_default().insert(peer.task);
        }
        if let Some(site) = peer.data_address {
            let tasks = self.sites.entry(site).or_default();
            touched.is_elsewhere |= tasks.is_empty();
            tasks.insert(peer.task);
        }
        self.peers.insert(peer.task, peer);
    }

    fn remove_peer(&mut self, task: TaskId, touched: &mut Touched) {
        touched.peers.insert(task);
        let Some(peer) = self.peers.remove(&task) else { return };
        touched.services.insert(peer.service);
        remove_from(&mut self.tasks, peer.service, task);
        for address in &peer.addresses {
            remove_from(&mut self.holders, *address, task);
        }
        if let Some(site) = peer.data_address {
            remove_from(&mut self.sites, site, task);
        }
        touched.addresses.extend(peer.addresses);
    }

    fn set_service(&mut self, service: NetworkService, touched: &mut Touched) {
        self.remove_service(service.service, touched);
        for address in &service.virtual_ips {
            self.fronts.entry(*address).or_default().insert(service.service);
        }
        self.services.insert(service.service, service);
    }

    fn remove_service(&mut self, id: ServiceId, touched: &mut Touched) {
        touched.services.insert(id);
        let Some(service) = self.services.remove(&id) else { return };
        for address in &service.virtual_ips {
            remove_from(&mut self.fronts, *address, id);
        }
        touched.virtual_ips.extend(service.virtual_ips);
    }

    /// The tasks and containers that have the address, other nodes' and our own.
    pub(crate) fn holders(&self, address: IpAddr) -> impl Iterator<Item = &Peer> {
        let holders = self.holders.get(&address).into_iter().flatten();
        holders.filter_map(|task| self.peers.get(task))
    }

    /// Addresses that peers have.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().copied()
    }

    /// Where nodes of the network take its traffic, `own` left out.
    pub(crate) fn sites(&self, own: Option<IpAddr>) -> BTreeSet<IpAddr> {
        self.sites.keys().copied().filter(|site| Some(*site) != own).collect()
    }

    /// Addresses that services have.
    pub(crate) fn virtual_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.fronts.keys().copied()
    }

    /// Who takes connections to a virtual address that containers of the node `own` make; nothing where no service has it.
    pub(crate) fn backends(&self, virtual_ip: IpAddr, own: NodeId) -> Option<Backends> {
        let ids = self.fronts.get(&virtual_ip)?;
        let services = || ids.iter().filter_map(|id| self.services.get(id));
        let is_alike = |task: &IpAddr| task.is_ipv4() == virtual_ip.is_ipv4();
        let addresses = |near: bool| {
            let peers = services().flat_map(|service| self.takers(service.service));
            let peers = peers.filter(move |peer| !near || peer.node == own);
            peers.flat_map(|peer| peer.addresses.iter().copied()).filter(is_alike).collect()
        };
        let prefers_local = services().any(|service| service.balancing.prefers_local);
        let near: BTreeSet<_> = if prefers_local { addresses(true) } else { BTreeSet::new() };
        Some(Backends {
            tasks: if near.is_empty() { addresses(false) } else { near },
            is_sticky: services().any(|service| service.balancing.is_sticky),
        })
    }

    /// Whether a task is one of those that connections to a service are led to.
    pub(crate) fn leads_to(&self, task: TaskId) -> bool {
        self.peers.get(&task).is_some_and(|peer| self.services.contains_key(&peer.service))
    }

    /// Addresses of the service's tasks that take connections.
    fn serving(&self, service: ServiceId) -> impl Iterator<Item = IpAddr> {
        self.takers(service).flat_map(|peer| peer.addresses.iter().copied())
    }

    /// The service's tasks that take connections.
    fn takers(&self, service: ServiceId) -> impl Iterator<Item = &Peer> {
        let tasks = self.tasks.get(&service).into_iter().flatten();
        tasks.filter_map(|task| self.peers.get(task)).filter(|peer| peer.is_serving)
    }

    /// Brings the names of what was touched in line: those of services, tasks and containers.
    pub(crate) fn write_names(&self, zone: &mut Zone, touched: &Touched) {
        let Some(definition) = &self.definition else { return };
        if touched.is_all {
            *zone = Zone::new(&definition.name);
            for (id, host) in self.peers.iter().map(|(id, peer)| (id, self.peer_names(peer))) {
                zone.set(&id.to_string(), host);
            }
            for (id, service) in &self.services {
                zone.set(&id.to_string(), self.service_names(service));
            }
            return;
        }
        for id in &touched.peers {
            match self.peers.get(id) {
                Some(peer) => zone.set(&id.to_string(), self.peer_names(peer)),
                None => zone.remove(&id.to_string()),
            }
        }
        for id in &touched.services {
            match self.services.get(id) {
                Some(service) => zone.set(&id.to_string(), self.service_names(service)),
                None => zone.remove(&id.to_string()),
            }
        }
    }

    fn peer_names(&self, peer: &Peer) -> Host {
        let mut host = Host::default();
        for name in std::iter::once(&peer.name).chain(&peer.aliases) {
            host.add(name, peer.addresses.iter().copied());
        }
        let name = self.full_name(&peer.name);
        host.reverse = peer.addresses.iter().map(|address| (*address, name.clone())).collect();
        host
    }

    fn service_names(&self, service: &NetworkService) -> Host {
        let mut host = Host::default();
        let tasks: Vec<_> = self.serving(service.service).collect();
        host.add(&format!("tasks.{}", service.name), tasks.iter().copied());
        let addresses = if service.virtual_ips.is_empty() { &tasks } else { &service.virtual_ips };
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            host.add(name, addresses.iter().copied());
        }
        let (name, own) = (self.full_name(&service.name), &service.virtual_ips);
        host.reverse = own.iter().map(|address| (*address, name.clone())).collect();
        host
    }

    fn full_name(&self, name: &str) -> String {
        match &self.definition {
            Some(definition) => format!("{name}.{}", definition.name),
            None => name.to_owned(),
        }
    }

    /// All of it, for the next daemon.
    pub(crate) fn whole(&self, network: NetworkId) -> NetworkChange {
        NetworkChange {
            network,
            is_full: true,
            definition: self.definition.clone(),
            peers: self.peers.values().cloned().collect(),
            gone: Vec::new(),
            services: self.services.values().cloned().collect(),
            gone_services: Vec::new(),
            nodes: self.nodes.values().cloned().collect(),
            gone_nodes: Vec::new(),
        }
    }
}

fn remove_from<Key: Ord, Value: Ord>(
    sets: &mut BTreeMap<Key, BTreeSet<Value>>,
    key: Key,
    value: Value,
) {
    if let Entry::Occupied(mut set) = sets.entry(key) {
        set.get_mut().remove(&value);
        if set.get().is_empty() {
            set.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::network::Balancing;

    use super::*;

    fn service(number: u128, name: &str) -> NetworkService {
        NetworkService {
            service: ServiceId::from_random(number),
            name: name.into(),
            aliases: Vec::new(),
            virtual_ips: vec![[10, 0, 0, u8::try_from(number).unwrap()].into()],
            ports: Vec::new(),
            balancing: Balancing::default(),
        }
    }

    fn nothing() -> NetworkChange {
        NetworkChange { is_full: false, ..Told::default().whole(NetworkId::from_random(1)) }
    }

    #[test]
    fn what_was_told_is_what_the_next_daemon_hears() {
        let network = NetworkId::from_random(1);
        let node = NodePlace {
            node: NodeId::from_random(1),
            data_address: [10, 0, 0, 1].into(),
            tunnel_keys: Vec::new(),
        };
        let mut told = Told::default();
        told.change(NetworkChange {
            is_full: true,
            services: vec![service(1, "web"), service(2, "shop")],
            nodes: vec![node],
            ..nothing()
        });
        told.change(NetworkChange {
            services: vec![service(1, "site")],
            gone_services: vec![ServiceId::from_random(2)],
            ..nothing()
        });
        let mut next = Told::default();
        next.change(told.whole(network));
        assert_eq!(next, told);
        let names: Vec<_> = next.services.values().map(|service| &*service.name).collect();
        assert_eq!((names, next.nodes.len()), (vec!["site"], 1));
        next.change(Told::default().whole(network));
        assert_eq!(next, Told::default(), "all that is not named is gone");
    }

    #[test]
    fn tasks_of_the_own_node_are_preferred_where_that_is_asked_for() {
        let (own, other) = (NodeId::from_random(1), NodeId::from_random(2));
        let peer = |task, node, is_serving| Peer { node, ..peer_of((task, 1, task, is_serving)) };
        let front = IpAddr::from([10, 0, 0, 1]);
        let tasks = |prefers_local, near_serves| {
            let balancing = Balancing { prefers_local, ..Balancing::default() };
            let mut told = defined();
            told.change(NetworkChange {
                services: vec![NetworkService { balancing, ..service(1, "web") }],
                peers: vec![peer(1, own, near_serves), peer(2, other, true)],
                ..nothing()
            });
            let tasks = told.backends(front, own).unwrap().tasks.into_iter();
            tasks.map(|task| task.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(tasks(false, true), ["10.0.1.1", "10.0.1.2"]);
        assert_eq!(tasks(true, true), ["10.0.1.1"]);
        assert_eq!(tasks(true, false), ["10.0.1.2"], "others, where there is none");
    }

    /// A change of services and tasks, few enough for each to be changed several times: addresses and names pass from one
    /// to another.
    fn changes() -> impl Strategy<Value = NetworkChange> {
        let number = 1u8..5;
        let peer = (number.clone(), number.clone(), 1u8..8, any::<bool>());
        let peers = proptest::collection::vec(peer, 0..3);
        let services = proptest::collection::vec((number.clone(), number.clone()), 0..2);
        let gone = proptest::collection::vec(number.clone(), 0..2);
        let gone_services = proptest::collection::vec(number, 0..2);
        (peers, services, gone, gone_services).prop_map(|(peers, services, gone, gone_services)| {
            NetworkChange {
                peers: peers.into_iter().map(peer_of).collect(),
                services: services
                    .into_iter()
                    .map(|(number, name)| service(number.into(), &format!("name{name}")))
                    .collect(),
                gone: gone.into_iter().map(task_of).collect(),
                gone_services: gone_services
                    .into_iter()
                    .map(|it| ServiceId::from_random(it.into()))
                    .collect(),
                ..nothing()
            }
        })
    }

    /// No service has the number of a task.
    fn task_of(number: u8) -> TaskId {
        TaskId::from_random(100 + u128::from(number))
    }

    fn peer_of((task, service, address, is_serving): (u8, u8, u8, bool)) -> Peer {
        Peer {
            task: task_of(task),
            service: ServiceId::from_random(service.into()),
            name: format!("name{service}.{task}"),
            aliases: Vec::new(),
            node: NodeId::from_random(1),
            data_address: None,
            tunnel_keys: Vec::new(),
            addresses: vec![[10, 0, 1, address].into()],
            is_serving,
        }
    }

    fn defined() -> Told {
        let definition = Some(NodeNetwork {
            id: NetworkId::from_random(1),
            name: "blue".into(),
            vni: 4_096,
            subnets: Vec::new(),
            mtu: None,
            is_internal: false,
            is_encrypted: false,
            data_port: 0,
            is_ingress: false,
            spec: types::network::NetworkSpec::default(),
            created_at: types::Timestamp::ZERO,
        });
        Told { definition, ..Told::default() }
    }

    proptest! {
        #[test]
        fn what_a_change_touches_is_all_that_has_to_be_looked_at(
            changes in proptest::collection::vec(changes(), 1..12),
        ) {
            let all = Touched { is_all: true, ..Touched::default() };
            let (mut told, own) = (defined(), NodeId::from_random(1));
            let (mut zone, mut backends) = (Zone::default(), BTreeMap::new());
            told.write_names(&mut zone, &all);
            for change in changes {
                let touched = told.change(change);
                told.write_names(&mut zone, &touched);
                for address in &touched.virtual_ips {
                    match told.backends(*address, own) {
                        Some(found) => drop(backends.insert(*address, found)),
                        None => drop(backends.remove(address)),
                    }
                }
                let mut whole = Zone::default();
                told.write_names(&mut whole, &all);
                prop_assert_eq!(&zone, &whole);
                let whole: BTreeMap<_, _> =
                    told.virtual_ips().map(|it| (it, told.backends(it, own).unwrap())).collect();
                prop_assert_eq!(&backends, &whole);
                let held: BTreeSet<_> =
                    told.peers.values().flat_map(|peer| peer.addresses.clone()).collect();
                prop_assert_eq!(told.addresses().collect::<BTreeSet<_>>(), held);
            }
        }
    }
}

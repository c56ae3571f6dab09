//! Gives tasks and services their addresses in networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use store::{Draft, Event, Object, Snapshot};
use types::endpoint::{PublishMode, ResolutionMode, VirtualIp};
use types::network::{Attachment, Network, Subnet, TaskNetwork};
use types::{NetworkId, Service, Task, TaskTemplate};

/// Which addresses are given, by network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressesInUse(BTreeMap<NetworkId, BTreeSet<IpAddr>>);

impl AddressesInUse {
    /// Takes note of a change; true when addresses became free.
    pub(crate) fn observe(&mut self, event: &Event) -> bool {
        let before = event.before.as_ref().map(held).unwrap_or_default();
        let after = event.after.as_ref().map(held).unwrap_or_default();
        let mut is_freed = false;
        for (network, address) in before.difference(&after) {
            if let Some(used) = self.0.get_mut(network) {
                is_freed |= used.remove(address);
                if used.is_empty() {
                    self.0.remove(network);
                }
            }
        }
        for (network, address) in &after {
            self.0.entry(*network).or_default().insert(*address);
        }
        is_freed
    }

    /// All that are given in `snapshot`.
    pub(crate) fn all(snapshot: &Snapshot) -> Self {
        let mut used = Self::default();
        for (network, address) in everything(snapshot).flat_map(|object| held(&object)) {
            used.0.entry(network).or_default().insert(address);
        }
        used
    }

    /// Whether nobody can be given a place in the network any more.
    pub(crate) fn is_used_up(&self, network: &Network) -> bool {
        self.choose(network, 0).is_none()
    }

    pub(crate) fn take(&mut self, network: NetworkId, addresses: &[IpNet]) {
        self.0.entry(network).or_default().extend(addresses.iter().map(IpNet::addr));
    }

    /// One free address of each family. Where the search begins is drawn from `seed`: an address that has just become
    /// free is not given again at once, while others may still remember whom it belonged to.
    fn choose(&self, network: &Network, seed: u128) -> Option<Vec<IpNet>> {
        let used = self.0.get(&network.id);
        let is_free = |address: &IpAddr| {
            used.is_none_or(|used| !used.contains(address))
                && network.subnets.iter().all(|subnet| subnet.gateway != *address)
                && !network.spec.reserves(*address)
        };
        let mut addresses = Vec::new();
        for is_ipv4 in [true, false] {
            let family: Vec<_> = network
                .subnets
                .iter()
                .filter(|subnet| subnet.subnet.addr().is_ipv4() == is_ipv4)
                .collect();
            if family.is_empty() {
                continue;
            }
            let found = family.iter().find_map(|subnet| {
                let address = candidates(subnet, seed).find(|address| is_free(address))?;
                IpNet::new(address, subnet.subnet.prefix_len()).ok()
            });
            addresses.push(found?);
        }
        Some(addresses)
    }
}

/// Whatever may hold addresses.
fn everything(snapshot: &Snapshot) -> impl Iterator<Item = Object> {
    let tasks = snapshot.tasks().cloned().map(Object::Task);
    let services = snapshot.services().cloned().map(Object::Service);
    tasks.chain(services).chain(snapshot.attachments().cloned().map(Object::Attachment))
}

/// What an object holds. A task lets go when it has ended.
fn held(object: &Object) -> BTreeSet<(NetworkId, IpAddr)> {
    match object {
        Object::Task(task) if !task.status.state.is_terminal() => task
            .networks
            .iter()
            .flat_map(|network| {
                network.addresses.iter().map(|address| (network.network, address.addr()))
            })
            .collect(),
        Object::Service(service) => {
            let given = service.endpoint.virtual_ips.iter();
            given.map(|given| (given.network, given.address.addr())).collect()
        }
        Object::Attachment(attachment) => {
            let given = attachment.addresses.iter();
            given.map(|address| (attachment.network, address.addr())).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Why a plain container gets no place in a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("{0}")]
    UsedUp(String),
    #[error("address {address} is in use in network {network}")]
    Taken { address: IpAddr, network: String },
    #[error("address {address} is in none of the subnets of network {network}")]
    Outside { address: IpAddr, network: String },
}

/// The addresses of a plain container in a network: one of each family, and the one it wants. It is seldom asked for one:
/// what is in use is looked for anew each time.
///
/// # Errors
/// [`NoPlace`].
pub fn choose_for_container(
    snapshot: &Snapshot,
    network: &Network,
    seed: u128,
    wanted: Option<IpAddr>,
) -> Result<Vec<IpNet>, NoPlace> {
    let mut used = AddressesInUse::default();
    for object in everything(snapshot) {
        let here = held(&object).into_iter().filter(|(held_in, _)| *held_in == network.id);
        used.0.entry(network.id).or_default().extend(here.map(|(_, address)| address));
    }
    let mut chosen = used.choose(network, seed).ok_or_else(|| NoPlace::UsedUp(used_up(network)))?;
    let Some(address) = wanted else { return Ok(chosen) };
    let name = || network.name().to_owned();
    let is_host = |subnet: &&Subnet| {
        let whole = subnet.subnet;
        whole.contains(&address)
            && address != whole.network()
            && (address.is_ipv6() || address != whole.broadcast())
    };
    let subnet = network.subnets.iter().find(is_host);
    let subnet = subnet.ok_or_else(|| NoPlace::Outside { address, network: name() })?;
    let is_taken = used.0.get(&network.id).is_some_and(|used| used.contains(&address));
    if is_taken || subnet.gateway == address || network.spec.reserves(address) {
        return Err(NoPlace::Taken { address, network: name() });
    }
    chosen.retain(|given| given.addr().is_ipv4() != address.is_ipv4());
    chosen.extend(IpNet::new(address, subnet.subnet.prefix_len()).ok());
    Ok(chosen)
}

/// The addresses of a subnet that may be given, beginning at a place of `seed`'s choice.
fn candidates(subnet: &Subnet, seed: u128) -> impl Iterator<Item = IpAddr> {
    let (whole, range) = (subnet.subnet, subnet.range.unwrap_or(subnet.subnet));
    let bits = range.max_prefix_len() - range.prefix_len();
    // A search never goes further than that: it is far more than there are tasks.
    let count = 1u128 << bits.min(32);
    let first = number(range.network());
    let is_ipv4 = range.addr().is_ipv4();
    (0..count).filter_map(move |step| {
        let address = address(first + (seed.wrapping_add(step)) % count, is_ipv4);
        let is_host = address != whole.network() && (!is_ipv4 || address != whole.broadcast());
        is_host.then_some(address)
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => Ipv4Addr::from(u32::try_from(number).expect("within a subnet of 32 bits")).into(),
        false => Ipv6Addr::from(number).into(),
    }
}

/// The networks of the cluster among `attachments`; names that every node has for itself are left out.
pub(crate) fn joined<'a>(
    snapshot: &'a Snapshot,
    attachments: &'a [Attachment],
) -> impl Iterator<Item = (&'a Attachment, Option<&'a Arc<Network>>)> {
    attachments.iter().filter_map(move |attachment| {
        let id: NetworkId = attachment.target.parse().ok()?;
        Some((attachment, snapshot.network(id)))
    })
}

/// The network of published ports, for a service that has some.
fn ingress<'a>(snapshot: &'a Snapshot, service: &Service) -> Option<Option<&'a Arc<Network>>> {
    publishes(service).then(|| snapshot.networks().find(|network| network.spec.is_ingress))
}

pub(crate) fn publishes(service: &Service) -> bool {
    let mut ports = service.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    ports.any(|port| port.mode == PublishMode::Ingress)
}

/// Whether tasks of a service that wait for an address may wait for nothing now, or have to wait.
pub(crate) fn needs_other_networks(event: &Event) -> bool {
    let publishes = |object: &Option<Object>| matches!(object, Some(Object::Service(service)) if publishes(service));
    publishes(&event.before) != publishes(&event.after)
}

/// Gives tasks that have a node, and whose service publishes ports only since then, addresses for them; false where none is
/// left for some.
pub(crate) fn allocate_ingress(
    draft: &mut Draft,
    used: &mut AddressesInUse,
    service: &Arc<Service>,
) -> bool {
    let Some(Some(network)) = ingress(draft, service).map(|network| network.cloned()) else {
        return true;
    };
    let lacks = |task: &&Arc<Task>| {
        task.node.is_some()
            && task.is_wanted()
            && task.networks.iter().all(|place| place.network != network.id)
    };
    let tasks: Vec<_> = draft.tasks_of(service.id).filter(lacks).cloned().collect();
    for task in tasks {
        let Some(addresses) = used.choose(&network, task.id.bits()) else { return false };
        used.take(network.id, &addresses);
        draft.update_task(&task, |task| task.networks.push(place(&network, addresses)));
    }
    true
}

fn place(network: &Network, addresses: Vec<IpNet>) -> TaskNetwork {
    TaskNetwork { network: network.id, addresses, aliases: Vec::new() }
}

/// The places of a new task in its networks.
///
/// # Errors
/// Why there is none, as `docker service ps` shows it.
pub(crate) fn attach(
    draft: &Draft,
    used: &mut AddressesInUse,
    template: &TaskTemplate,
    task: &Task,
) -> Result<Vec<TaskNetwork>, String> {
    let mut places = Vec::new();
    for (attachment, network) in joined(draft, &template.task.networks) {
        let network = network.ok_or_else(|| format!("network {} not found", attachment.target))?;
        let addresses = used.choose(network, task.id.bits()).ok_or_else(|| used_up(network))?;
        let aliases = attachment.aliases.clone();
        places.push(TaskNetwork { network: network.id, addresses, aliases });
    }
    if let Some(network) = draft.service(task.service).and_then(|it| ingress(draft, it)) {
        let network =
            network.ok_or("service needs ingress network, but no ingress network is present")?;
        let addresses = used.choose(network, task.id.bits()).ok_or_else(|| used_up(network))?;
        places.push(place(network, addresses));
    }
    for place in &places {
        used.take(place.network, &place.addresses);
    }
    Ok(places)
}

fn used_up(network: &Network) -> String {
    let subnets: Vec<_> = network.subnets.iter().map(|it| it.subnet.to_string()).collect();
    format!("no address is left in network {} ({})", network.name(), subnets.join(", "))
}

/// Where the service is to have a virtual address.
pub(crate) fn networks_with_virtual_ip<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
) -> impl Iterator<Item = &'a Arc<Network>> {
    let mode = service.spec.endpoint.as_ref().map(|endpoint| endpoint.mode).unwrap_or_default();
    let joined = joined(snapshot, &service.spec.task.networks).filter_map(|(_, network)| network);
    let all = ingress(snapshot, service).flatten().into_iter().chain(joined);
    all.filter(move |_| mode == ResolutionMode::Vip)
}

/// Brings the service's virtual addresses in line with its networks. An address once given stays. False where none is left
/// in some network.
pub(crate) fn allocate_virtual_ips(
    draft: &mut Draft,
    used: &mut AddressesInUse,
    service: &Arc<Service>,
) -> bool {
    let mut given = Vec::new();
    let mut has_all = true;
    for network in networks_with_virtual_ip(draft, service) {
        let is_here = |it: &&VirtualIp| it.network == network.id;
        let kept: Vec<_> = service.endpoint.virtual_ips.iter().filter(is_here).collect();
        if !kept.is_empty() {
            given.extend(kept.into_iter().cloned());
            continue;
        }
        let Some(addresses) = used.choose(network, service.id.bits()) else {
            has_all = false;
            continue;
        };
        used.take(network.id, &addresses);
        let network = network.id;
        given.extend(addresses.into_iter().map(|address| VirtualIp { network, address }));
    }
    if given != service.endpoint.virtual_ips {
        draft.update_service(service, |service| service.endpoint.virtual_ips = given);
    }
    has_all
}

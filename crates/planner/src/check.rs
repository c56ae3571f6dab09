//! A linter for cluster state: what must hold after every step, in tests, in simulation and on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use store::Snapshot;
use types::network::Network;
use types::service::UpdateState;
use types::task::Slot;
use types::{NetworkId, ServiceId, TaskId, TaskState};

use crate::allocator::{AddressesInUse, joined, networks_with_virtual_ip, publishes};

/// Something that must never be seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A task names a template that is not stored: nobody can say what it runs.
    MissingTemplate(TaskId),
    /// A service names a template that is not stored.
    ServiceWithoutTemplate(ServiceId),
    /// A task that was never assigned has a node, or one beyond that point has none.
    NodeAndStateDisagree(TaskId),
    /// A pending task says nothing about why, though the planner has looked at it.
    PendingWithoutReason(TaskId),
    /// Two tasks of a slot run though no update replaces one by the other.
    SlotTakenTwice(ServiceId, Slot),
    /// A template that nobody names was kept.
    UnusedTemplate(ServiceId, u64),
    /// A port is given to two services.
    PortTakenTwice(u16),
    /// An address of a network is given twice.
    AddressTakenTwice(NetworkId, IpAddr),
    /// A task, service or container has an address that is none of its network's, or the gateway's.
    AddressOfNobody(NetworkId, IpAddr),
    /// A service has no virtual address in a network it is in, though one is free, or one too many.
    VirtualIps(ServiceId, NetworkId),
    /// A task that has a node has no address in a network it is in, though one is free, or is in one that it is not in.
    Places(TaskId, NetworkId),
    /// A container's attachment is in a network, or on a node, that is not there.
    StrayAttachment(TaskId),
    /// The name index and the services disagree.
    NameIndex(ServiceId),
}

/// Everything that is wrong with `snapshot`; empty when it is in order.
pub fn check(snapshot: &Snapshot) -> Vec<Violation> {
    let mut violations = Vec::new();
    check_tasks(snapshot, &mut violations);
    check_slots(snapshot, &mut violations);
    check_services(snapshot, &mut violations);
    check_templates(snapshot, &mut violations);
    check_addresses(snapshot, &mut violations);
    check_virtual_ips(snapshot, &mut violations);
    check_places(snapshot, &mut violations);
    for attachment in snapshot.attachments() {
        let is_there = snapshot.network(attachment.network).is_some();
        if !is_there || snapshot.node(attachment.node).is_none() {
            violations.push(Violation::StrayAttachment(attachment.id));
        }
    }
    violations.sort();
    violations
}

fn check_tasks(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    for task in snapshot.tasks() {
        if snapshot.template_of(task).is_none() {
            violations.push(Violation::MissingTemplate(task.id));
        }
        let state = task.status.state;
        let placed = state >= TaskState::Assigned && !state.is_terminal();
        if (state < TaskState::Assigned && task.node.is_some()) || (placed && task.node.is_none()) {
            violations.push(Violation::NodeAndStateDisagree(task.id));
        }
        if task.is_wanted() && state == TaskState::Pending && task.status.err.is_empty() {
            violations.push(Violation::PendingWithoutReason(task.id));
        }
    }
}

fn check_slots(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let mut wanted: BTreeMap<(ServiceId, Slot), u64> = BTreeMap::new();
    for task in snapshot.tasks().filter(|task| task.desired_state == TaskState::Running) {
        *wanted.entry((task.service, task.slot)).or_default() += 1;
    }
    for ((service, slot), count) in wanted {
        let status = snapshot.service(service).and_then(|service| service.update_status.as_ref());
        // An update that was stopped half way leaves its slots as they stood.
        let may_overlap = status.is_some_and(|status| status.state != UpdateState::Completed);
        if count > 1 && !may_overlap {
            violations.push(Violation::SlotTakenTwice(service, slot));
        }
    }
}

fn check_services(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let mut ports = BTreeSet::new();
    for service in snapshot.services() {
        if snapshot.template(service.id, service.template_version).is_none() {
            violations.push(Violation::ServiceWithoutTemplate(service.id));
        }
        if snapshot.service_by_name(service.name()).map(|named| named.id) != Some(service.id) {
            violations.push(Violation::NameIndex(service.id));
        }
        let ingress = service.endpoint.ports.iter().filter(|port| port.published != 0);
        let ingress = ingress.filter(|port| port.mode == types::endpoint::PublishMode::Ingress);
        for port in ingress {
            if !ports.insert((port.protocol, port.published)) {
                violations.push(Violation::PortTakenTwice(port.published));
            }
        }
    }
}

fn check_templates(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let named: BTreeSet<_> =
        snapshot.tasks().map(|task| (task.service, task.template_version)).collect();
    for template in snapshot.templates() {
        let key = (template.service, template.version);
        let service = snapshot.service(template.service);
        let in_force = service.is_some_and(|service| {
            let previous = service.previous.as_ref().map(|previous| previous.template_version);
            service.template_version == template.version || previous == Some(template.version)
        });
        if !in_force && !named.contains(&key) {
            violations.push(Violation::UnusedTemplate(template.service, template.version));
        }
    }
}

fn check_addresses(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let alive = snapshot.tasks().filter(|task| !task.status.state.is_terminal());
    let of_tasks = alive
        .flat_map(|task| &task.networks)
        .flat_map(|place| place.addresses.iter().map(|address| (place.network, address.addr())));
    let services = snapshot.services().flat_map(|service| &service.endpoint.virtual_ips);
    let of_services = services.map(|given| (given.network, given.address.addr()));
    let mut given = BTreeSet::new();
    let of_containers = snapshot.attachments().flat_map(|attachment| {
        attachment.addresses.iter().map(|address| (attachment.network, address.addr()))
    });
    for (network, address) in of_tasks.chain(of_services).chain(of_containers) {
        if !given.insert((network, address)) {
            violations.push(Violation::AddressTakenTwice(network, address));
        }
        let known = snapshot.network(network);
        if !known.is_some_and(|network| may_give(network, address)) {
            violations.push(Violation::AddressOfNobody(network, address));
        }
    }
}

fn may_give(network: &Network, address: IpAddr) -> bool {
    let mut subnets = network.subnets.iter();
    subnets.any(|subnet| {
        let whole = subnet.subnet;
        let is_host = address != whole.network()
            && address != subnet.gateway
            && (address.is_ipv6() || address != whole.broadcast());
        subnet.range.unwrap_or(whole).contains(&address) && is_host
    })
}

/// How many addresses whoever is in a network has there: one of each family.
fn families(network: &Network) -> usize {
    let families: BTreeSet<_> =
        network.subnets.iter().map(|subnet| subnet.subnet.addr().is_ipv4()).collect();
    families.len()
}

fn check_virtual_ips(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let used = AddressesInUse::all(snapshot);
    for service in snapshot.services() {
        let mut given: BTreeMap<NetworkId, usize> = BTreeMap::new();
        for address in &service.endpoint.virtual_ips {
            *given.entry(address.network).or_default() += 1;
        }
        let wanted: Vec<_> = networks_with_virtual_ip(snapshot, service).collect();
        for network in &wanted {
            let count = given.remove(&network.id).unwrap_or(0);
            let is_used_up = count == 0 && used.is_used_up(network);
            if count != families(network) && !is_used_up {
                violations.push(Violation::VirtualIps(service.id, network.id));
            }
        }
        violations.extend(given.into_keys().map(|id| Violation::VirtualIps(service.id, id)));
    }
}

fn check_places(snapshot: &Snapshot, violations: &mut Vec<Violation>) {
    let used = AddressesInUse::all(snapshot);
    for task in snapshot.tasks().filter(|task| task.node.is_some() && task.is_wanted()) {
        let Some(template) = snapshot.template_of(task) else { continue };
        if task.status.state.is_terminal() {
            continue;
        }
        let mut places: BTreeMap<_, _> =
            task.networks.iter().map(|place| (place.network, place.addresses.len())).collect();
        let named = joined(snapshot, &template.task.networks).filter_map(|(_, network)| network);
        for network in named {
            if places.remove(&network.id) != Some(families(network)) {
                violations.push(Violation::Places(task.id, network.id));
            }
        }
        // A service may publish ports only since the task has its node; a task keeps its place when it does no more.
        let mesh = snapshot.networks().find(|network| network.spec.is_ingress);
        let service = snapshot.service(task.service);
        if let Some(mesh) = mesh {
            let is_published = service.is_some_and(|service| publishes(service));
            let has_place = places.remove(&mesh.id).is_some();
            if is_published && !has_place && !used.is_used_up(mesh) {
                violations.push(Violation::Places(task.id, mesh.id));
            }
        }
        violations.extend(places.into_keys().map(|id| Violation::Places(task.id, id)));
    }
}

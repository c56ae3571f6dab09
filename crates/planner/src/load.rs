//! Sums of what runs and is reserved on each node, kept up to date change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::{Event, Key, Object, Snapshot};
use types::endpoint::Protocol;
use types::resources::Resources;
use types::{NodeId, ServiceId, TaskId, TaskTemplate};

/// What one node carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    tasks: BTreeMap<TaskId, Arc<TaskTemplate>>,
    by_service: BTreeMap<ServiceId, u64>,
    /// Host-mode ports and how many tasks hold them; more than one only while one replaces the other.
    host_ports: BTreeMap<(Protocol, u16), u64>,
    nano_cpus: i64,
    memory_bytes: i64,
    generic: BTreeMap<String, i64>,
}

impl Load {
    pub(crate) fn task_count(&self) -> u64 {
        u64::try_from(self.tasks.len()).unwrap_or(u64::MAX)
    }

    pub(crate) fn tasks_of(&self, service: ServiceId) -> u64 {
        self.by_service.get(&service).copied().unwrap_or(0)
    }

    pub(crate) fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        self.host_ports.contains_key(&(protocol, port))
    }

    /// Whether `wanted` fits beside what is reserved already, of what the node `has`.
    pub(crate) fn fits(&self, has: &Resources, wanted: &Resources) -> bool {
        let generic_fits = wanted.generic.iter().all(|(kind, amount)| {
            let reserved = self.generic.get(kind).copied().unwrap_or(0);
            let total = has.generic.get(kind).map_or(0, types::resources::Generic::count);
            reserved.saturating_add(amount.count()) <= total
        });
        generic_fits
            && self.nano_cpus.saturating_add(wanted.nano_cpus) <= has.nano_cpus
            && self.memory_bytes.saturating_add(wanted.memory_bytes) <= has.memory_bytes
    }

    fn add(&mut self, task: TaskId, template: Arc<TaskTemplate>) {
        self.count(&template, 1);
        self.tasks.insert(task, template);
    }

    fn remove(&mut self, task: TaskId) {
        if let Some(template) = self.tasks.remove(&task) {
            self.count(&template, -1);
        }
    }

    fn count(&mut self, template: &TaskTemplate, sign: i64) {
        add_count(&mut self.by_service, template.service, sign);
        for port in &template.host_ports {
            if port.published != 0 {
                add_count(&mut self.host_ports, (port.protocol, port.published), sign);
            }
        }
        let Some(reserved) = reservations(template) else { return };
        self.nano_cpus += sign * reserved.nano_cpus;
        self.memory_bytes += sign * reserved.memory_bytes;
        for (kind, amount) in &reserved.generic {
            *self.generic.entry(kind.clone()).or_default() += sign * amount.count();
        }
        self.generic.retain(|_, amount| *amount != 0);
    }
}

fn add_count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, sign: i64) {
    let count = counts.get(&key).copied().unwrap_or(0).saturating_add_signed(sign);
    if count == 0 {
        counts.remove(&key);
    } else {
        counts.insert(key, count);
    }
}

/// What a task of this template keeps free for itself.
pub(crate) fn reservations(template: &TaskTemplate) -> Option<&Resources> {
    template.task.resources.as_ref()?.reservations.as_ref()
}

/// The loads of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    nodes: BTreeMap<NodeId, Load>,
    empty: Load,
}

impl Loads {
    pub(crate) fn of(&self, node: NodeId) -> &Load {
        self.nodes.get(&node).unwrap_or(&self.empty)
    }

    pub(crate) fn assign(&mut self, node: NodeId, task: TaskId, template: Arc<TaskTemplate>) {
        let load = self.nodes.entry(node).or_default();
        if !load.tasks.contains_key(&task) {
            load.add(task, template);
        }
    }

    /// Takes note of a task's change; answers whether any node carries more or less than before.
    pub(crate) fn observe(&mut self, snapshot: &Snapshot, event: &Event) -> bool {
        let Key::Task(id) = event.key else { return false };
        let occupied = |object: &Option<Object>| match object {
            Some(Object::Task(task)) if task.occupies_node() => task.node,
            _ => None,
        };
        let (before, after) = (occupied(&event.before), occupied(&event.after));
        if before == after {
            return false;
        }
        if let Some(node) = before
            && let Some(load) = self.nodes.get_mut(&node)
        {
            load.remove(id);
            if load.tasks.is_empty() {
                self.nodes.remove(&node);
            }
        }
        let template = match &event.after {
            Some(Object::Task(task)) => snapshot.template_of(task),
            _ => None,
        };
        if let (Some(node), Some(template)) = (after, template) {
            self.assign(node, id, template.clone());
        }
        true
    }
}

/// Whether a node's change may decide where tasks can be.
pub(crate) fn matters_to_placement(event: &Event) -> bool {
    let (Some(Object::Node(before)), Some(Object::Node(after))) = (&event.before, &event.after)
    else {
        return true;
    };
    before.spec != after.spec
        || before.status.state != after.status.state
        || before.status.address != after.status.address
        || before.description != after.description
}

/// Values of one label over the nodes of a spread, with how many tasks of a service each carries.
pub(crate) fn branch_counts<'a>(
    loads: &Loads,
    service: ServiceId,
    nodes: impl Iterator<Item = (NodeId, &'a str)>,
) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (node, value) in nodes {
        if seen.insert(node) {
            *counts.entry(value).or_default() += loads.of(node).tasks_of(service);
        }
    }
    counts
}

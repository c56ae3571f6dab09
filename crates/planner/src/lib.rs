//! Decides what the cluster should do next: from services to tasks, addresses and nodes.
//!
//! [`Planner::plan`] runs orchestrator, allocator and scheduler over a [`Draft`] until nothing is left to do, and says
//! when to look again. It reads no clock and draws no randomness: both are arguments. A pass costs what changed.
//! [`Planner::new`] marks everything as changed, so a first pass is the full pass, which defines the result.

mod allocator;
pub mod check;
pub mod constraint;
mod load;
pub mod managers;
mod orchestrator;
mod scheduler;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};

use store::{Draft, Event, Key, Object, Snapshot};
use types::limits::PLAN_CHANGES_MAX;
use types::service::Mode;
use types::{NodeId, ServiceId, Task, TaskId, TaskState, Timestamp};

pub use crate::allocator::{NoPlace, choose_for_container, subnets};
use crate::load::Loads;

/// Source of random bits for new identifiers.
pub type Random<'a> = &'a mut dyn FnMut() -> u128;

/// What has changed since the last pass, and sums over what has not.
#[derive(Debug)]
pub struct Planner {
    loads: Loads,
    ports: allocator::PortsInUse,
    addresses: allocator::AddressesInUse,
    dirty_services: BTreeSet<ServiceId>,
    dirty_nodes: BTreeSet<NodeId>,
    global_services: BTreeSet<ServiceId>,
    /// Services for which, or for tasks of which, no address was left.
    lacking: BTreeSet<ServiceId>,
    /// Tasks that wait for a node.
    unplaced: BTreeSet<TaskId>,
    /// Those of them nobody has tried to place since they changed.
    untried: BTreeSet<TaskId>,
    /// Whether something changed that may decide differently about all the unplaced.
    placement_changed: bool,
    wakes: Wakes,
}

/// When to look at which service again though nothing changed.
#[derive(Debug, Default)]
struct Wakes {
    by_service: BTreeMap<ServiceId, Timestamp>,
    by_time: BTreeSet<(Timestamp, ServiceId)>,
}

impl Wakes {
    fn set(&mut self, service: ServiceId, wake: Option<Timestamp>) {
        if let Some(old) = self.by_service.remove(&service) {
            self.by_time.remove(&(old, service));
        }
        if let Some(wake) = wake {
            self.by_service.insert(service, wake);
            self.by_time.insert((wake, service));
        }
    }

    fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(wake, _)| *wake)
    }

    fn pop_due(&mut self, now: Timestamp) -> Option<ServiceId> {
        let (wake, service) = *self.by_time.first()?;
        if wake > now {
            return None;
        }
        self.set(service, None);
        Some(service)
    }
}

impl Planner {
    /// A planner that knows nothing yet of `snapshot` being in order: its first pass looks at everything.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut planner = Self {
            loads: Loads::default(),
            ports: allocator::PortsInUse::default(),
            addresses: allocator::AddressesInUse::default(),
            dirty_services: BTreeSet::new(),
            dirty_nodes: BTreeSet::new(),
            global_services: BTreeSet::new(),
            lacking: BTreeSet::new(),
            unplaced: BTreeSet::new(),
            untried: BTreeSet::new(),
            placement_changed: true,
            wakes: Wakes::default(),
        };
        for object in snapshot.objects() {
            let event = Event { key: object.key(), before: None, after: Some(object) };
            planner.observe_one(snapshot, &event);
        }
        // A removed service leaves templates behind until its last task is gone.
        planner.dirty_services.extend(snapshot.templates().map(|template| template.service));
        planner
    }

    /// Takes note of changes that others made. `snapshot` holds them already.
    pub fn observe(&mut self, snapshot: &Snapshot, events: &[Event]) {
        for event in events {
            self.observe_one(snapshot, event);
        }
    }

    /// Brings `draft` to the desired state as far as that is possible now; answers with the moment to look again.
    ///
    /// A plan of more than [`PLAN_CHANGES_MAX`] changes ends early and asks to be called again at once.
    pub fn plan(&mut self, draft: &mut Draft, random: Random<'_>) -> Option<Timestamp> {
        let now = draft.now();
        while let Some(service) = self.wakes.pop_due(now) {
            self.dirty_services.insert(service);
        }
        loop {
            self.absorb(draft);
            if draft.len() >= PLAN_CHANGES_MAX {
                return Some(now);
            }
            self.expand_dirty_nodes(draft);
            if let Some(service) = self.dirty_services.pop_first() {
                self.plan_service(draft, service, random);
            } else if self.placement_changed {
                self.placement_changed = false;
                self.untried.clear();
                scheduler::place(draft, &mut self.loads, &mut self.addresses, &self.unplaced);
            } else if !self.untried.is_empty() {
                let untried = std::mem::take(&mut self.untried);
                scheduler::place(draft, &mut self.loads, &mut self.addresses, &untried);
            } else {
                break;
            }
        }
        self.wakes.next()
    }

    fn plan_service(&mut self, draft: &mut Draft, id: ServiceId, random: Random<'_>) {
        let wake = match draft.service(id).cloned() {
            Some(service) => {
                allocator::allocate_ports(draft, &self.ports, &service);
                if let Some(service) = draft.service(id).cloned() {
                    let used = &mut self.addresses;
                    let has_own = allocator::allocate_virtual_ips(draft, used, &service);
                    if !allocator::allocate_ingress(draft, used, &service) || !has_own {
                        self.lacking.insert(id);
                    }
                }
                orchestrator::reconcile(draft, id, random)
            }
            None => {
                orchestrator::remove(draft, id);
                None
            }
        };
        self.wakes.set(id, wake);
    }

    /// Takes note of what this pass itself changed.
    fn absorb(&mut self, draft: &mut Draft) {
        let events = draft.take_events();
        for event in &events {
            self.observe_one(draft, event);
        }
    }

    fn expand_dirty_nodes(&mut self, snapshot: &Snapshot) {
        if self.dirty_nodes.is_empty() {
            return;
        }
        for node in std::mem::take(&mut self.dirty_nodes) {
            self.dirty_services.extend(snapshot.tasks_on(node).map(|task| task.service));
        }
        self.dirty_services.extend(&self.global_services);
    }

    fn observe_one(&mut self, snapshot: &Snapshot, event: &Event) {
        match event.key {
            Key::Task(id) => self.observe_task(snapshot, id, event),
            Key::Service(id) => self.observe_service(id, event),
            Key::Node(id) => {
                if load::matters_to_placement(event) {
                    self.dirty_nodes.insert(id);
                    self.placement_changed = true;
                }
            }
            // The history limit is the cluster's.
            Key::Cluster => {
                self.dirty_services.extend(snapshot.services().map(|service| service.id));
            }
            Key::Attachment(_) => self.observe_addresses(event),
            // Tasks may wait for it; services that publish have an address in the ingress network.
            Key::Network(_) => {
                self.placement_changed = true;
                self.dirty_services.extend(snapshot.services().map(|service| service.id));
            }
            Key::Template(..) | Key::Secret(_) | Key::Config(_) => {}
        }
    }

    /// What became free is for services that lack an address, and then for tasks that wait for one.
    fn observe_addresses(&mut self, event: &Event) {
        if self.addresses.observe(event) {
            self.placement_changed = true;
            self.dirty_services.append(&mut self.lacking);
        }
    }

    fn observe_service(&mut self, id: ServiceId, event: &Event) {
        self.dirty_services.insert(id);
        self.ports.observe(id, event);
        self.observe_addresses(event);
        self.placement_changed |= allocator::needs_other_networks(event);
        match &event.after {
            Some(Object::Service(service)) if matches!(service.spec.mode, Mode::Global) => {
                self.global_services.insert(id);
            }
            _ => {
                self.global_services.remove(&id);
            }
        }
    }

    fn observe_task(&mut self, snapshot: &Snapshot, id: TaskId, event: &Event) {
        self.placement_changed |= self.loads.observe(snapshot, event);
        self.observe_addresses(event);
        let task = match (&event.before, &event.after) {
            (_, Some(Object::Task(task))) | (Some(Object::Task(task)), None) => task,
            _ => return,
        };
        // Only an update that is under way asks whether tasks were refused a place.
        let is_updated =
            snapshot.service(task.service).is_none_or(|known| known.previous.is_some());
        if !is_updated && is_only_explained(event) {
            return;
        }
        self.dirty_services.insert(task.service);
        let waits = event.after.is_some()
            && task.is_wanted()
            && task.node.is_none()
            && task.status.state == TaskState::Pending;
        if !waits {
            self.unplaced.remove(&id);
            self.untried.remove(&id);
        } else {
            self.unplaced.insert(id);
            self.untried.insert(id);
        }
    }
}

/// Whether a waiting task was told why it waits, and nothing else: that follows from having tried to place it.
fn is_only_explained(event: &Event) -> bool {
    let (Some(Object::Task(before)), Some(Object::Task(after))) = (&event.before, &event.after)
    else {
        return false;
    };
    let mut explained = Task::clone(before);
    explained.status.err.clone_from(&after.status.err);
    explained.status.at = after.status.at;
    after.node.is_none() && !after.status.err.is_empty() && explained == **after
}

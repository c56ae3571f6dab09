//! Turns services into tasks: one pass over one service.
//!
//! Order within a pass: tasks of vanished nodes are written off, ended and misplaced tasks are replaced, the number of
//! slots is brought to the wanted one, a rolling update moves on, waiting tasks are released, history is trimmed.

mod global;
mod reaper;
mod replicated;
mod restart;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use store::{Draft, Key};
use types::limits::ORPHANED_AFTER;
use types::service::Mode;
use types::task::{RestartHistory, Slot};
use types::{
    Meta, Node, Service, ServiceId, Task, TaskId, TaskState, TaskStatus, TaskTemplate, Timestamp,
};

use crate::Random;
use crate::constraint::{Constraint, parse_all};

/// One look at one service.
struct Pass<'a> {
    draft: &'a mut Draft,
    service: Arc<Service>,
    template: Arc<TaskTemplate>,
    constraints: Vec<Constraint>,
    random: Random<'a>,
    wake: Option<Timestamp>,
}

/// The tasks of one slot.
#[derive(Debug, Default)]
struct SlotTasks {
    /// Those that shall run, oldest first. Two of them only while one replaces the other.
    wanted: Vec<Arc<Task>>,
    /// Those that shall not, oldest first.
    past: Vec<Arc<Task>>,
}

impl SlotTasks {
    /// Whether the slot's task ended by itself and is, by its restart policy, left at that.
    fn is_settled(&self) -> bool {
        self.wanted.is_empty() && self.past.last().is_some_and(|task| task.is_settled)
    }

    fn counts(&self) -> bool {
        !self.wanted.is_empty() || self.is_settled()
    }

    fn is_running(&self) -> bool {
        self.wanted.iter().any(|task| task.status.state == TaskState::Running)
    }

    /// Whether something in the slot is not made from template `version`.
    fn is_dirty(&self, version: u64) -> bool {
        let outdated = |task: &Arc<Task>| task.template_version != version;
        match self.wanted.is_empty() {
            true => self.is_settled() && self.past.last().is_some_and(outdated),
            false => self.wanted.iter().any(outdated),
        }
    }

    fn current(&self, version: u64) -> Option<&Arc<Task>> {
        self.wanted.iter().rev().find(|task| task.template_version == version)
    }
}

/// Brings one service's tasks towards what it asks for; answers with when to look again.
pub(crate) fn reconcile(draft: &mut Draft, id: ServiceId, random: Random<'_>) -> Option<Timestamp> {
    let service = draft.service(id)?.clone();
    let template = draft.template(id, service.template_version)?.clone();
    // Control refuses what does not parse, so nothing is lost by leaving it out.
    let texts = service.spec.task.placement.iter().flat_map(|placement| &placement.constraints);
    let constraints = parse_all(&texts.cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut pass = Pass { draft, service, template, constraints, random, wake: None };
    pass.write_off_orphans();
    match pass.service.spec.mode {
        Mode::Replicated { replicas } => replicated::reconcile(&mut pass, replicas),
        Mode::Global => global::reconcile(&mut pass),
        Mode::ReplicatedJob { .. } | Mode::GlobalJob => return None,
    }
    update::step(&mut pass);
    restart::release(&mut pass);
    reaper::trim(&mut pass);
    reaper::drop_templates(pass.draft, id);
    pass.wake
}

/// Stops and forgets the tasks of a service that is gone.
pub(crate) fn remove(draft: &mut Draft, id: ServiceId) {
    let tasks: Vec<_> = draft.tasks_of(id).cloned().collect();
    for task in tasks {
        reaper::remove(draft, &task);
    }
    reaper::drop_templates(draft, id);
}

impl Pass<'_> {
    fn now(&self) -> Timestamp {
        self.draft.now()
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn slots(&self) -> BTreeMap<Slot, SlotTasks> {
        let mut slots: BTreeMap<Slot, SlotTasks> = BTreeMap::new();
        for task in self.draft.tasks_of(self.service.id) {
            if task.desired_state == TaskState::Remove {
                continue;
            }
            let slot = slots.entry(task.slot).or_default();
            if task.is_wanted() { &mut slot.wanted } else { &mut slot.past }.push(task.clone());
        }
        for slot in slots.values_mut() {
            slot.wanted.sort_by_key(|task| (task.meta.created_at, task.id));
            slot.past.sort_by_key(|task| (task.meta.created_at, task.id));
        }
        slots
    }

    /// A new task of the current template that waits for a node.
    fn create(&mut self, slot: Slot, desired_state: TaskState) -> Task {
        let now = self.now();
        Task {
            id: TaskId::from_random((self.random)()),
            meta: Meta { created_at: now, updated_at: now, version: 0 },
            service: self.service.id,
            template_version: self.service.template_version,
            slot,
            node: None,
            desired_state,
            status: TaskStatus {
                at: now,
                state: TaskState::Pending,
                message: "pending task scheduling".into(),
                ..TaskStatus::default()
            },
            start_after: None,
            place_after: None,
            waits_for: None,
            restarts: RestartHistory::default(),
            is_settled: false,
            networks: Vec::new(),
        }
    }

    /// Orders a task to stop. One that no agent has ends here.
    fn stop(&mut self, task: &Arc<Task>) {
        let now = self.now();
        self.draft.update_task(task, |task| {
            task.desired_state = TaskState::Shutdown;
            if task.node.is_none() && !task.status.state.is_terminal() {
                task.status.at = now;
                task.status.state = TaskState::Shutdown;
                task.status.message = "shutdown before it was placed".into();
            }
        });
    }

    /// Stops and forgets everything in a slot.
    fn remove_slot(&mut self, slot: &SlotTasks) {
        for task in slot.wanted.iter().chain(&slot.past) {
            reaper::remove(self.draft, task);
        }
    }

    /// Whether the node may not keep tasks of this service.
    fn is_unfit(&self, node: &Node) -> bool {
        node.sheds_tasks() || !self.constraints.iter().all(|constraint| constraint.allows(node))
    }

    /// Tasks of nodes that were removed from the cluster will never be reported on again; those of nodes that are down
    /// for long are taken for lost, so that they need not be remembered for ever.
    fn write_off_orphans(&mut self) {
        let now = self.now();
        let mut orphans = Vec::new();
        let mut next_look: Option<Timestamp> = None;
        let alive = self.draft.tasks_of(self.service.id);
        for task in alive.filter(|task| !task.status.state.is_terminal()) {
            let Some(node) = task.node else { continue };
            match self.draft.node(node).map(|node| node.status.down_since) {
                None => orphans.push((task.clone(), "node was removed")),
                Some(None) => {}
                Some(Some(since)) if since + ORPHANED_AFTER <= now => {
                    orphans.push((task.clone(), "node is down for too long"));
                }
                Some(Some(since)) => {
                    let at = since + ORPHANED_AFTER;
                    next_look = Some(next_look.map_or(at, |next| next.min(at)));
                }
            }
        }
        for (task, why) in orphans {
            self.draft.update_task(&task, |task| {
                task.status.at = now;
                task.status.state = TaskState::Orphaned;
                task.status.message = why.into();
            });
        }
        if let Some(at) = next_look {
            self.wake_at(at);
        }
    }

    fn task(&self, id: TaskId) -> Option<Arc<Task>> {
        match self.draft.get(Key::Task(id)) {
            Some(store::Object::Task(task)) => Some(task),
            _ => None,
        }
    }
}

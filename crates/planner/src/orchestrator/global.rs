//! Keeps one task on every node that may run the service.

use types::task::Slot;
use types::{Node, TaskState};

use super::{Pass, restart};

pub(super) fn reconcile(pass: &mut Pass<'_>) {
    for (number, slot) in pass.slots() {
        let Slot::Node(id) = number else { continue };
        let node = pass.draft.node(id).cloned();
        if node.as_deref().is_some_and(|node| !pass.is_unfit(node)) {
            restart::replace_lost(pass, &slot);
            continue;
        }
        // Nothing follows on a node that is drained, down, removed or no longer fits.
        for task in &slot.wanted {
            pass.stop(task);
        }
    }
    let slots = pass.slots();
    let nodes: Vec<_> = pass.draft.nodes().cloned().collect();
    for node in nodes {
        let slot = Slot::Node(node.id);
        let has_task = slots.get(&slot).is_some_and(super::SlotTasks::counts);
        if !has_task && may_start(pass, &node) {
            let task = pass.create(slot, TaskState::Running);
            pass.draft.put(task);
        }
    }
}

fn may_start(pass: &Pass<'_>, node: &Node) -> bool {
    node.accepts_tasks() && !pass.is_unfit(node)
}

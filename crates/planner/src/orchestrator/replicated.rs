//! Keeps a wanted number of slots.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use types::TaskState;
use types::task::Slot;

use super::{Pass, SlotTasks, restart};

pub(super) fn reconcile(pass: &mut Pass<'_>, replicas: u64) {
    for slot in pass.slots().values() {
        restart::replace_lost(pass, slot);
    }
    let slots = pass.slots();
    let counting = slots.iter().filter(|(_, slot)| slot.counts()).count();
    let counting = u64::try_from(counting).unwrap_or(u64::MAX);
    if counting < replicas {
        add(pass, &slots, replicas - counting);
    } else if counting > replicas {
        take(pass, &slots, counting - replicas);
    }
}

/// Fills the lowest free slot numbers.
fn add(pass: &mut Pass<'_>, slots: &BTreeMap<Slot, SlotTasks>, count: u64) {
    let is_free = |number: &u64| !slots.get(&Slot::Replica(*number)).is_some_and(SlotTasks::counts);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let room = types::limits::PLAN_CHANGES_MAX.saturating_sub(pass.draft.len()).max(1);
    let numbers: Vec<_> = (1..=u64::MAX).filter(is_free).take(count.min(room)).collect();
    for number in numbers {
        let task = pass.create(Slot::Replica(number), TaskState::Running);
        pass.draft.put(task);
    }
    if count > room {
        let now = pass.now();
        pass.wake_at(now);
    }
}

/// Gives up slots: those that do not run first, then from the fullest nodes, then the highest numbers.
fn take(pass: &mut Pass<'_>, slots: &BTreeMap<Slot, SlotTasks>, count: u64) {
    let mut on_node = BTreeMap::new();
    let mut counting: Vec<_> = slots.iter().filter(|(_, slot)| slot.counts()).collect();
    for node in counting.iter().filter_map(|(_, slot)| node_of(slot)) {
        *on_node.entry(node).or_insert(0u64) += 1;
    }
    for _ in 0..count {
        let worst = counting.iter().enumerate().max_by_key(|(_, (number, slot))| {
            let crowd = node_of(slot).and_then(|node| on_node.get(&node)).copied().unwrap_or(0);
            (Reverse(slot.is_running()), crowd, **number)
        });
        let Some((index, _)) = worst else { return };
        let (_, slot) = counting.swap_remove(index);
        if let Some(crowd) = node_of(slot).and_then(|node| on_node.get_mut(&node)) {
            *crowd -= 1;
        }
        pass.remove_slot(slot);
    }
}

fn node_of(slot: &SlotTasks) -> Option<types::NodeId> {
    slot.wanted.last().and_then(|task| task.node)
}

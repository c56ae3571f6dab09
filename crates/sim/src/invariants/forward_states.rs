//! Task states only move forward, a task never changes its node, and an ended task is never revived (design, section 4,
//! rule 5; swarmkit's task model).

use store::{Event, Object};

pub(crate) fn check(events: &[Event]) -> Result<(), String> {
    for event in events {
        let (Some(Object::Task(before)), Some(Object::Task(after))) = (&event.before, &event.after)
        else {
            continue;
        };
        let (from, to) = (before.status.state, after.status.state);
        if to < from || (from != to && from.is_terminal()) {
            return Err(format!("task {} goes from {from:?} to {to:?}", after.id));
        }
        if before.desired_state > after.desired_state {
            return Err(format!(
                "task {} is wanted {:?} after {:?}",
                after.id, after.desired_state, before.desired_state
            ));
        }
        if before.node.is_some() && before.node != after.node {
            return Err(format!("task {} changes its node", after.id));
        }
    }
    Ok(())
}

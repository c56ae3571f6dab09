//! Rolling updates: replaces outdated tasks a few slots at a time.
//!
//! ```text
//! (none) ──dirty slots──► Updating ──all replaced, watched──► Completed
//!                            │ too many failures
//!                            ├─► Paused                (failure action pause)
//!                            └─► RollbackStarted ──► RollbackCompleted | RollbackPaused
//! ```
//! All of it is data on the service and its tasks: a new leader goes on where the old one stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use types::limits::PREDECESSOR_WAIT;
use types::service::{FailureAction, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use types::task::Slot;
use types::{Task, TaskState, Timestamp};

use super::{Pass, SlotTasks};

/// Moves the update of the service one step on.
pub(super) fn step(pass: &mut Pass<'_>) {
    let slots = pass.slots();
    let version = pass.service.template_version;
    let dirty: Vec<_> = slots.iter().filter(|(_, slot)| slot.is_dirty(version)).collect();
    let state = pass.service.update_status.as_ref().map(|status| status.state);
    match state {
        // What was begun is brought to its end: a slot is not left with two tasks.
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => {
            drop_abandoned(pass, &slots);
            hand_over(pass, &slots);
            return;
        }
        Some(state) if state.is_running() => {}
        _ if dirty.is_empty() => return,
        _ => start(pass, dirty.len()),
    }
    drop_abandoned(pass, &slots);
    hand_over(pass, &slots);
    let config = config(pass);
    let busy = slots.values().filter(|slot| is_busy(pass, slot, &config)).count();
    let outdated: Vec<_> =
        dirty.iter().filter(|(_, slot)| slot.current(version).is_none()).collect();
    if dirty.is_empty() && busy == 0 {
        complete(pass, &slots, &config);
        return;
    }
    let allowed = match usize::try_from(config.parallelism) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(parallelism) => parallelism.saturating_sub(busy),
    };
    for (number, slot) in outdated.into_iter().take(allowed) {
        replace(pass, **number, slot, &config);
    }
    wake_when_a_delay_ends(pass, &slots, &config);
}

fn start(pass: &mut Pass<'_>, total: usize) {
    let status = UpdateStatus {
        state: UpdateState::Updating,
        started_at: pass.now(),
        completed_at: None,
        message: "update in progress".into(),
        total: u64::try_from(total).unwrap_or(u64::MAX),
        failures: 0,
    };
    set_status(pass, status);
}

fn set_status(pass: &mut Pass<'_>, status: UpdateStatus) {
    let service = pass.service.clone();
    pass.draft.update_service(&service, |service| service.update_status = Some(status));
    refresh(pass);
}

fn refresh(pass: &mut Pass<'_>) {
    if let Some(service) = pass.draft.service(pass.service.id) {
        pass.service = service.clone();
    }
}

fn config(pass: &Pass<'_>) -> UpdateConfig {
    let spec = &pass.service.spec;
    match pass.service.update_status.as_ref().map(|status| status.state) {
        Some(UpdateState::RollbackStarted) => spec.rollback.unwrap_or_default(),
        _ => spec.update.unwrap_or_default(),
    }
}

/// Puts a new task into the slot beside the old one.
///
/// Either way the new one is prepared while the old one runs; stop-first then waits for the old one's end.
fn replace(pass: &mut Pass<'_>, number: Slot, slot: &SlotTasks, config: &UpdateConfig) {
    let old = slot.wanted.iter().find(|task| task.occupies_node());
    let mut next = match (old, config.order) {
        (Some(old), UpdateOrder::StopFirst) => {
            let mut next = pass.create(number, TaskState::Ready);
            next.waits_for = Some((old.id, Timestamp::from_nanos(i64::MAX)));
            next
        }
        _ => pass.create(number, TaskState::Running),
    };
    // A slot that waits for its restart delay goes on waiting: an update does not undo the guard.
    let waits = slot.wanted.iter().filter_map(|task| task.start_after).max();
    if let Some(at) = waits.filter(|at| *at > pass.now()) {
        next.start_after = Some(at);
        next.desired_state = TaskState::Ready;
    }
    pass.draft.put(next);
    for task in slot.wanted.iter().filter(|task| !task.occupies_node()) {
        pass.stop(task);
    }
}

/// Where an earlier update was overtaken half way by this one, which has not reached the slot yet, one task stays.
fn drop_abandoned(pass: &mut Pass<'_>, slots: &BTreeMap<Slot, SlotTasks>) {
    let version = pass.service.template_version;
    for slot in slots.values().filter(|slot| slot.current(version).is_none()) {
        let runs = |task: &&Arc<Task>| task.status.state == TaskState::Running;
        let kept = slot.wanted.iter().rev().find(runs).or(slot.wanted.last());
        for task in slot.wanted.iter().filter(|task| kept.is_some_and(|kept| kept.id != task.id)) {
            pass.stop(task);
        }
    }
}

/// Stops the old task of each slot whose new one is ready to take over.
fn hand_over(pass: &mut Pass<'_>, slots: &BTreeMap<Slot, SlotTasks>) {
    let version = pass.service.template_version;
    for slot in slots.values() {
        let Some(new) = slot.current(version) else { continue };
        let waits = new.waits_for.filter(|_| new.desired_state == TaskState::Ready);
        let is_ready = match waits {
            // Where there is no room for both, the old one makes room.
            Some(_) => {
                let is_held = new.place_after.is_some_and(|at| at > pass.now());
                let no_room = new.node.is_none() && !new.status.err.is_empty() && !is_held;
                new.status.state >= TaskState::Ready || no_room
            }
            None => new.status.state == TaskState::Running,
        };
        if !is_ready || new.status.state.is_terminal() {
            continue;
        }
        let deadline = pass.now() + PREDECESSOR_WAIT;
        for old in slot.wanted.iter().filter(|task| task.template_version != version) {
            pass.stop(old);
            if waits.is_some_and(|(id, _)| id == old.id) {
                pass.draft.update_task(new, |task| task.waits_for = Some((old.id, deadline)));
            }
        }
    }
}

/// Whether the slot holds one of the update's places: it is being replaced, or its delay runs.
fn is_busy(pass: &Pass<'_>, slot: &SlotTasks, config: &UpdateConfig) -> bool {
    let version = pass.service.template_version;
    let Some(new) = slot.current(version) else { return false };
    if slot.is_dirty(version) || new.status.state < TaskState::Running {
        return true;
    }
    delay_end(pass, new, config).is_some_and(|end| end > pass.now())
}

/// When the delay after this task's start ends, if the task belongs to the running update.
fn delay_end(pass: &Pass<'_>, task: &Task, config: &UpdateConfig) -> Option<Timestamp> {
    let started = pass.service.update_status.as_ref()?.started_at;
    let since = task.status.running_since.filter(|_| task.meta.created_at >= started)?;
    Some(since + config.delay)
}

fn wake_when_a_delay_ends(
    pass: &mut Pass<'_>,
    slots: &BTreeMap<Slot, SlotTasks>,
    config: &UpdateConfig,
) {
    let version = pass.service.template_version;
    let now = pass.now();
    let ends: Vec<_> = slots
        .values()
        .filter_map(|slot| delay_end(pass, slot.current(version)?, config))
        .filter(|end| *end > now)
        .collect();
    for end in ends {
        pass.wake_at(end);
    }
}

/// Ends the update once the last new task was watched for the whole monitor period.
fn complete(pass: &mut Pass<'_>, slots: &BTreeMap<Slot, SlotTasks>, config: &UpdateConfig) {
    let Some(mut status) = pass.service.update_status.clone() else { return };
    let watch = match config.delay >= config.monitor() {
        true => config.delay + Duration::from_secs(1),
        false => config.monitor(),
    };
    let created_since = |task: &&Arc<Task>| task.meta.created_at >= status.started_at;
    let last = slots
        .values()
        .flat_map(|slot| &slot.wanted)
        .filter(created_since)
        .filter_map(|task| task.status.running_since)
        .max();
    let end = last.map_or(status.started_at, |last| last + watch);
    if end > pass.now() {
        pass.wake_at(end);
        return;
    }
    (status.state, status.message) = match status.state {
        UpdateState::RollbackStarted => {
            (UpdateState::RollbackCompleted, "rollback completed".to_owned())
        }
        _ => (UpdateState::Completed, "update completed".to_owned()),
    };
    status.completed_at = Some(pass.now());
    set_status(pass, status);
}

/// Counts the end of a task the update made, if it came while the task was watched; acts when there are too many.
pub(super) fn note_failure(pass: &mut Pass<'_>, task: &Arc<Task>) {
    let Some(mut status) = pass.service.update_status.clone() else { return };
    let config = config(pass);
    let watched = task
        .status
        .running_since
        .is_none_or(|since| task.status.at.since(since) <= config.monitor());
    let is_new = task.template_version == pass.service.template_version
        && task.meta.created_at >= status.started_at;
    if !status.state.is_running() || !watched || !is_new {
        return;
    }
    status.failures += 1;
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^24")]
    let ratio = status.failures as f32 / status.total.max(1) as f32;
    let exceeded = ratio > config.max_failure_ratio;
    if !exceeded || config.failure_action == FailureAction::Continue {
        set_status(pass, status);
        return;
    }
    give_up(pass, status, task, config.failure_action);
}

fn give_up(pass: &mut Pass<'_>, mut status: UpdateStatus, task: &Task, action: FailureAction) {
    let cause = format!("due to failure or early termination of task {}", task.id);
    let previous = pass.service.previous.clone();
    match (status.state, action, previous) {
        (UpdateState::RollbackStarted, ..) => {
            status.state = UpdateState::RollbackPaused;
            status.message = format!("rollback paused {cause}");
        }
        (_, FailureAction::Rollback, Some(previous)) => {
            status = UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: pass.now(),
                completed_at: None,
                message: format!("update rolled back {cause}"),
                total: status.total,
                failures: 0,
            };
            let service = pass.service.clone();
            pass.draft.update_service(&service, |service| {
                service.spec = previous.spec;
                service.template_version = previous.template_version;
                service.previous = None;
            });
            refresh(pass);
            let version = pass.service.template_version;
            if let Some(template) = pass.draft.template(pass.service.id, version) {
                pass.template = template.clone();
            }
        }
        _ => {
            status.state = UpdateState::Paused;
            status.message = format!("update paused {cause}");
        }
    }
    set_status(pass, status);
}

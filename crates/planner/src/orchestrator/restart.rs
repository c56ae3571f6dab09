//! Replaces tasks that ended or lost their node, and releases those that wait.

use std::sync::Arc;

use types::limits::{PREDECESSOR_WAIT, RESTARTS_REMEMBERED_MAX};
use types::service::{RestartCondition, RestartPolicy};
use types::task::RestartHistory;
use types::{Task, TaskState, Timestamp};

use super::{Pass, SlotTasks, update};

/// Stops what ended or stands on the wrong node, and makes its successor where the policy asks for one.
///
/// While an update has two tasks in the slot, the loss of the old one leaves the place to the new one.
pub(super) fn replace_lost(pass: &mut Pass<'_>, slot: &SlotTasks) {
    let (lost, left): (Vec<_>, Vec<_>) = slot.wanted.iter().partition(|task| is_lost(pass, task));
    for task in &lost {
        if task.status.state.is_terminal() {
            update::note_failure(pass, task);
        }
        pass.stop(task);
    }
    let Some(newest) = lost.last() else { return };
    let version = pass.service.template_version;
    let has_successor = left.iter().any(|task| task.template_version == version);
    if has_successor {
        return;
    }
    if may_restart(pass, newest) {
        succeed(pass, newest);
    } else if ended_by_itself(newest) {
        settle(pass, newest);
    }
}

fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Written down, because it cannot be told later: a task that was told to stop may also end badly.
fn settle(pass: &mut Pass<'_>, task: &Task) {
    if let Some(task) = pass.task(task.id) {
        pass.draft.update_task(&task, |task| task.is_settled = true);
    }
}

/// Whether the task has ended, or stands on a node that may not keep it.
fn is_lost(pass: &Pass<'_>, task: &Task) -> bool {
    let node = task.node.and_then(|node| pass.draft.node(node));
    task.status.state.is_terminal() || node.is_some_and(|node| pass.is_unfit(node))
}

/// Makes the task that follows `task` in its slot.
///
/// The restart delay guards against crash loops; a task that was lost with its node is not held back.
fn succeed(pass: &mut Pass<'_>, task: &Arc<Task>) {
    let now = pass.now();
    let by_itself = ended_by_itself(task);
    let policy = pass.template.restart();
    let mut next = pass.create(task.slot, TaskState::Ready);
    if by_itself {
        next.start_after = Some(now + policy.delay());
        next.restarts = counted(task, &policy, now, next.template_version);
        next.waits_for = task.waits_for;
        if task.status.state == TaskState::Rejected {
            next.place_after = next.start_after;
        }
    } else if !is_gone(pass, task) {
        next.waits_for = Some((task.id, now + PREDECESSOR_WAIT));
    }
    pass.draft.put(next);
}

/// The slot's history with one restart more; a new template begins a new one.
fn counted(task: &Task, policy: &RestartPolicy, now: Timestamp, version: u64) -> RestartHistory {
    let mut history = match task.template_version == version {
        true => task.restarts.clone(),
        false => RestartHistory::default(),
    };
    history.count += 1;
    if policy.window.is_some() && policy.max_attempts > 0 {
        history.recent.push(now);
        let kept = usize::try_from(policy.max_attempts).unwrap_or(usize::MAX);
        let excess = history.recent.len().saturating_sub(kept.min(RESTARTS_REMEMBERED_MAX));
        history.recent.drain(..excess);
    }
    history
}

fn may_restart(pass: &Pass<'_>, task: &Task) -> bool {
    let policy = pass.template.restart();
    let condition_allows = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        RestartCondition::None => false,
    };
    let same_template = task.template_version == pass.service.template_version;
    condition_allows && (!same_template || has_attempts_left(&policy, task, pass.now()))
}

fn has_attempts_left(policy: &RestartPolicy, task: &Task, now: Timestamp) -> bool {
    if policy.max_attempts == 0 {
        return true;
    }
    let used = match policy.window.filter(|window| !window.is_zero()) {
        None => task.restarts.count,
        Some(window) => {
            let recent = task.restarts.recent.iter().filter(|at| now.since(**at) < window);
            u64::try_from(recent.count()).unwrap_or(u64::MAX)
        }
    };
    used < policy.max_attempts
}

/// Whether nothing of the task can still run on a node that answers.
fn is_gone(pass: &Pass<'_>, task: &Task) -> bool {
    let node = task.node.and_then(|node| pass.draft.node(node));
    task.status.state.is_terminal()
        || node.is_none_or(|node| node.status.state == types::node::NodeState::Down)
}

/// Lets waiting tasks start whose delay is over and whose predecessor is gone.
pub(super) fn release(pass: &mut Pass<'_>) {
    let now = pass.now();
    let waiting: Vec<_> = pass
        .draft
        .tasks_of(pass.service.id)
        .filter(|task| task.desired_state == TaskState::Ready && !task.status.state.is_terminal())
        .cloned()
        .collect();
    for task in waiting {
        let not_before = task.start_after.filter(|at| *at > now);
        let blocked_until = task.waits_for.and_then(|(predecessor, deadline)| {
            let blocks = pass.task(predecessor).is_some_and(|task| !is_gone(pass, &task));
            (blocks && deadline > now).then_some(deadline)
        });
        match not_before.max(blocked_until) {
            Some(wake) => pass.wake_at(wake),
            None => pass.draft.update_task(&task, |task| {
                task.desired_state = TaskState::Running;
            }),
        }
    }
}

//! Forgets tasks and templates that nobody needs any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use store::{Draft, Key};
use types::{ServiceId, Task, TaskState};

use super::Pass;

/// Orders a task away, or forgets it at once where no agent has it.
pub(super) fn remove(draft: &mut Draft, task: &Arc<Task>) {
    let node_is_gone = task.node.is_none_or(|node| draft.node(node).is_none());
    if task.status.state.is_terminal() || node_is_gone {
        draft.delete(Key::Task(task.id));
    } else {
        draft.update_task(task, |task| task.desired_state = TaskState::Remove);
    }
}

/// Keeps each slot's history as short as the cluster's setting says, and drops what was ordered away and has ended.
pub(super) fn trim(pass: &mut Pass<'_>) {
    let ordered_away: Vec<_> = pass
        .draft
        .tasks_of(pass.service.id)
        .filter(|task| task.desired_state == TaskState::Remove)
        .cloned()
        .collect();
    for task in &ordered_away {
        remove(pass.draft, task);
    }
    let retention = pass.draft.cluster().map_or(5, |cluster| cluster.spec.task_history_retention);
    let Ok(retention) = usize::try_from(retention) else { return };
    for slot in pass.slots().values() {
        // The limit counts the running task too. The newest of a settled slot says that the slot is settled.
        let kept_past = retention.saturating_sub(slot.wanted.len());
        let kept_past = if slot.is_settled() { kept_past.max(1) } else { kept_past };
        let excess = slot.past.len().saturating_sub(kept_past);
        let ended = slot.past.iter().take(excess).filter(|task| task.status.state.is_terminal());
        for task in ended {
            pass.draft.delete(Key::Task(task.id));
        }
    }
}

/// Drops templates that neither the service nor any of its tasks names.
pub(super) fn drop_templates(draft: &mut Draft, id: ServiceId) {
    let versions: Vec<_> = draft.templates_of(id).map(|template| template.version).collect();
    let service = draft.service(id);
    let kept = service.map(|service| service.template_version);
    let previous =
        service.and_then(|service| service.previous.as_ref()).map(|spec| spec.template_version);
    if versions.iter().all(|version| kept == Some(*version) || previous == Some(*version)) {
        return;
    }
    let mut named: BTreeSet<_> = draft.tasks_of(id).map(|task| task.template_version).collect();
    named.extend(kept.into_iter().chain(previous));
    for version in versions {
        if !named.contains(&version) {
            draft.delete(Key::Template(id, version));
        }
    }
}

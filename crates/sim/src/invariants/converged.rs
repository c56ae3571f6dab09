//! After the last fault the desired state is reached within a stated time, and nothing runs that is not wanted (design,
//! section 8; issue texts on stuck tasks).

use std::collections::BTreeMap;

use store::Snapshot;
use types::service::Mode;
use types::{NodeId, TaskId, TaskState};

use crate::host::Container;

/// `running` holds the containers of every host.
pub(crate) fn check(
    state: &Snapshot,
    containers: &[(NodeId, &BTreeMap<TaskId, Container>)],
) -> Result<(), String> {
    if let Some(node) =
        state.nodes().find(|node| node.status.state != types::node::NodeState::Ready)
    {
        return Err(format!("node {} is {:?}", node.id, node.status.state));
    }
    let hosts = state.nodes().filter(|node| node.accepts_tasks()).count();
    for service in state.services() {
        let wanted = match service.spec.mode {
            Mode::Replicated { replicas } if hosts > 0 => {
                usize::try_from(replicas).unwrap_or(usize::MAX)
            }
            Mode::Global => hosts,
            _ => 0,
        };
        let running = state
            .tasks_of(service.id)
            .filter(|task| task.is_wanted() && task.status.state == TaskState::Running)
            .count();
        if running != wanted {
            let tasks = state.tasks_of(service.id).map(|task| {
                let (wanted, seen) = (task.desired_state, task.status.state);
                let (slot, version, node) = (task.slot, task.template_version, task.node);
                let since = task.meta.created_at;
                format!(
                    "\n  {:?} v{version} of {since:?} on {node:?}: {wanted:?}, {seen:?} {} {:?}",
                    slot, task.status.err, task.waits_for,
                )
            });
            let (name, tasks) = (service.name(), tasks.collect::<String>());
            let version = service.template_version;
            let update = service.update_status.as_ref().map(|status| status.state);
            return Err(format!(
                "service {name} v{version} ({update:?}) has {running} of {wanted} tasks:{tasks}"
            ));
        }
    }
    for (node, containers) in containers {
        for (task, container) in *containers {
            let known = state.task(*task);
            let fits = known.is_some_and(|known| {
                known.node == Some(*node)
                    && (known.status.state == TaskState::Running)
                        == (*container == Container::Running)
            });
            if !fits {
                let known = known.map(|task| (task.desired_state, task.status.state));
                return Err(format!(
                    "container of task {task} is {container:?}, the task {known:?}"
                ));
            }
        }
    }
    Ok(())
}

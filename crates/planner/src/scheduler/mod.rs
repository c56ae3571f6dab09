//! Chooses a node for each waiting task: filter, score, take the best.
//!
//! Filters say whether a node *can* run a task; scores say whether it *should*.

mod filter;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use store::Draft;
use types::network::TaskNetwork;
use types::service::Preference;
use types::task::Slot;
use types::{Node, NodeId, ServiceId, Task, TaskId, TaskState, TaskTemplate, Timestamp};

use crate::allocator::{self, AddressesInUse};
use crate::constraint::{Constraint, label_value, parse_all};
use crate::load::{Loads, branch_counts};

/// A node on which this many tasks of a service failed lately comes last for it (swarmkit: 5 within 5 minutes).
const RECENT_FAILURES_MAX: usize = 5;
const RECENT_FAILURES_WINDOW: Duration = Duration::from_secs(5 * 60);

/// Why a task is not placed whose predecessor could not be prepared.
const HELD: &str = "waiting for the restart delay to pass";

/// Tasks that share a template, and so all but their slot.
struct Group {
    template: Arc<TaskTemplate>,
    constraints: Vec<Constraint>,
    tasks: Vec<Arc<Task>>,
}

/// Places every task of `unplaced` that fits somewhere; the others learn why not.
pub(crate) fn place(
    draft: &mut Draft,
    loads: &mut Loads,
    addresses: &mut AddressesInUse,
    unplaced: &BTreeSet<TaskId>,
) {
    let nodes: Vec<_> = draft.nodes().cloned().collect();
    let now = draft.now();
    let waiting: Vec<_> = unplaced.iter().filter_map(|id| draft.task(*id)).cloned().collect();
    for task in waiting.iter().filter(|task| is_held(task, now)) {
        explain(draft, task, HELD);
    }
    for group in groups(draft, unplaced) {
        let failing = failing_nodes(draft, group.template.service);
        let mut refusal: Option<String> = None;
        for task in &group.tasks {
            let is_bound = matches!(task.slot, Slot::Node(_));
            // Loads only grow within a group, so what was refused once stays refused.
            if let Some(reason) = refusal.as_ref().filter(|_| !is_bound) {
                explain(draft, task, reason);
                continue;
            }
            let chosen = choose(&nodes, loads, &group, task, &failing);
            let placed = chosen.and_then(|node| {
                Ok((node, allocator::attach(draft, addresses, &group.template, task)?))
            });
            match placed {
                Ok((node, networks)) => assign(draft, loads, &group, task, node, networks),
                Err(reason) => {
                    explain(draft, task, &reason);
                    refusal = Some(reason);
                }
            }
        }
    }
}

/// Groups in the order of service and version; within one, slots in ascending order.
fn groups(draft: &Draft, unplaced: &BTreeSet<TaskId>) -> Vec<Group> {
    let mut groups: BTreeMap<(ServiceId, u64), Group> = BTreeMap::new();
    let now = draft.now();
    let due = unplaced.iter().filter_map(|id| draft.task(*id)).filter(|task| !is_held(task, now));
    for task in due {
        let Some(template) = draft.template_of(task) else { continue };
        let key = (task.service, task.template_version);
        let group = groups.entry(key).or_insert_with(|| Group {
            template: template.clone(),
            constraints: constraints(template),
            tasks: Vec::new(),
        });
        group.tasks.push(task.clone());
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for group in &mut groups {
        group.tasks.sort_by_key(|task| (task.slot, task.id));
    }
    groups
}

fn is_held(task: &Task, now: Timestamp) -> bool {
    task.place_after.is_some_and(|at| at > now)
}

fn constraints(template: &TaskTemplate) -> Vec<Constraint> {
    let placement = template.task.placement.as_ref();
    placement.and_then(|placement| parse_all(&placement.constraints).ok()).unwrap_or_default()
}

fn choose(
    nodes: &[Arc<Node>],
    loads: &Loads,
    group: &Group,
    task: &Task,
    failing: &BTreeSet<NodeId>,
) -> Result<NodeId, String> {
    let bound = match task.slot {
        Slot::Node(node) => Some(node),
        Slot::Replica(_) => None,
    };
    let offered = nodes.iter().filter(|node| bound.is_none_or(|bound| bound == node.id));
    let mut refusals = filter::Refusals::default();
    let fitting: Vec<_> = offered
        .filter(|node| {
            let refusal = filter::refusal(node, loads.of(node.id), group);
            refusals.note(refusal);
            refusal.is_none()
        })
        .collect();
    let service = group.template.service;
    let branches = branches(&fitting, loads, group);
    let best = fitting.iter().min_by_key(|node| {
        let load = loads.of(node.id);
        let spread: Vec<_> =
            branches.iter().map(|(key, counts)| counts[label_value(key, node)]).collect();
        (failing.contains(&node.id), spread, load.tasks_of(service), load.task_count(), node.id)
    });
    best.map(|node| node.id).ok_or_else(|| refusals.to_string())
}

/// For each spread preference, how many of the service's tasks stand in each branch.
fn branches<'a>(
    nodes: &[&'a Arc<Node>],
    loads: &Loads,
    group: &'a Group,
) -> Vec<(&'a str, BTreeMap<&'a str, u64>)> {
    let preferences =
        group.template.task.placement.iter().flat_map(|placement| &placement.preferences);
    preferences
        .map(|Preference::Spread { descriptor }| {
            let labelled = nodes.iter().map(|node| (node.id, label_value(descriptor, node)));
            (descriptor.as_str(), branch_counts(loads, group.template.service, labelled))
        })
        .collect()
}

fn failing_nodes(draft: &Draft, service: ServiceId) -> BTreeSet<NodeId> {
    let since: Timestamp = draft.now() - RECENT_FAILURES_WINDOW;
    let mut failures: BTreeMap<NodeId, usize> = BTreeMap::new();
    for task in draft.tasks_of(service) {
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        if let Some(node) = task.node.filter(|_| failed && task.status.at >= since) {
            *failures.entry(node).or_default() += 1;
        }
    }
    failures.retain(|_, count| *count >= RECENT_FAILURES_MAX);
    failures.into_keys().collect()
}

fn assign(
    draft: &mut Draft,
    loads: &mut Loads,
    group: &Group,
    task: &Arc<Task>,
    node: NodeId,
    networks: Vec<TaskNetwork>,
) {
    let now = draft.now();
    draft.update_task(task, |task| {
        task.node = Some(node);
        task.networks = networks;
        task.status.at = now;
        task.status.state = TaskState::Assigned;
        task.status.message = "scheduler assigned task to node".into();
        task.status.err.clear();
    });
    loads.assign(node, task.id, group.template.clone());
}

/// Every pending task says why it is pending.
fn explain(draft: &mut Draft, task: &Arc<Task>, reason: &str) {
    if task.status.err == reason {
        return;
    }
    let now = draft.now();
    draft.update_task(task, |task| {
        task.status.at = now;
        task.status.err = reason.to_owned();
    });
}

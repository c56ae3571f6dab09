//! `/tasks`: what runs where, and why not.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json as Answer, Router};
use docker_types::convert::task::{attachment_task, task_to_api_with};
use docker_types::task::Task;
use manager::lookup;
use store::Snapshot;
use types::TaskState;
use types::task::Slot;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::state::ApiState;
use crate::swarm_logs;

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(logs))
}

/// `_up-to-date` and `runtime` are not documented; the command line's progress display needs the first.
const FILTERS: &[&str] =
    &["id", "name", "label", "node", "service", "desired-state", "_up-to-date", "runtime"];

async fn list(State(state): State<ApiState>, query: Query) -> Result<Answer<Vec<Task>>, ApiError> {
    let manager = state.swarm.manager()?;
    let filters = query.filters(FILTERS)?;
    let snapshot = manager.read().await?;
    let wanted = Wanted::new(&state, &snapshot, &filters)?;
    let shown = |task: &std::sync::Arc<types::Task>| task_to_api_with(&snapshot, task);
    // One service's tasks are found by the index.
    let tasks: Vec<_> = match wanted.services[..] {
        [service] => snapshot
            .tasks_of(service)
            .filter(|task| wanted.matches(&snapshot, task))
            .map(shown)
            .collect(),
        _ => snapshot.tasks().filter(|task| wanted.matches(&snapshot, task)).map(shown).collect(),
    };
    Ok(Answer(tasks.into_iter().chain(wanted.attachments(&snapshot)).collect()))
}

/// The filters with names resolved.
struct Wanted<'a> {
    filters: &'a Filters,
    services: Vec<types::ServiceId>,
    nodes: Vec<types::NodeId>,
    states: Vec<TaskState>,
    only_current: Option<bool>,
}

impl<'a> Wanted<'a> {
    fn new(state: &ApiState, snapshot: &Snapshot, filters: &'a Filters) -> Result<Self, ApiError> {
        let mut services = Vec::new();
        for reference in filters.get("service") {
            services.push(lookup::service(snapshot, reference)?.id);
        }
        let mut nodes = Vec::new();
        for reference in filters.get("node") {
            let own = state.swarm.node_id().filter(|_| reference == "self");
            nodes.push(match own {
                Some(own) => own,
                None => lookup::node(snapshot, reference)?.id,
            });
        }
        let mut states = Vec::new();
        for word in filters.get("desired-state") {
            states.push(
                TaskState::parse(word).ok_or_else(|| Filters::invalid("desired-state", word))?,
            );
        }
        Ok(Self { filters, services, nodes, states, only_current: filters.flag("_up-to-date")? })
    }

    fn matches(&self, snapshot: &Snapshot, task: &types::Task) -> bool {
        let service = snapshot.service(task.service);
        let is_current =
            service.is_some_and(|service| service.template_version == task.template_version);
        (self.services.is_empty() || self.services.contains(&task.service))
            && (self.nodes.is_empty() || task.node.is_some_and(|node| self.nodes.contains(&node)))
            && (self.states.is_empty() || self.states.contains(&task.desired_state))
            && self.only_current.is_none_or(|wanted| wanted == is_current)
            && super::any_equal(self.filters.get("runtime"), "container")
            && super::any_prefix(self.filters.get("id"), &task.id.to_string())
            && (!self.filters.has("name") || self.matches_name(snapshot, task))
            && (!self.filters.has("label")
                || super::all_labels(self.filters.get("label"), &Default::default()))
    }

    /// Plain containers in networks of the swarm, which are asked for as a runtime of their own.
    fn attachments(&self, snapshot: &Snapshot) -> Vec<Task> {
        let is_asked_for = self.filters.get("runtime").iter().any(|it| it == "attachment");
        let has_others = ["service", "name", "label"].iter().any(|key| self.filters.has(key));
        if !is_asked_for || has_others {
            return Vec::new();
        }
        let fits = |attachment: &&std::sync::Arc<types::ContainerAttachment>| {
            (self.nodes.is_empty() || self.nodes.contains(&attachment.node))
                && (self.states.is_empty() || self.states.contains(&TaskState::Running))
                && super::any_prefix(self.filters.get("id"), &attachment.id.to_string())
        };
        let attachments = snapshot.attachments().filter(fits);
        attachments.map(|attachment| attachment_task(snapshot, attachment)).collect()
    }

    /// By the beginning of `service.slot.task`.
    fn matches_name(&self, snapshot: &Snapshot, task: &types::Task) -> bool {
        let Some(template) = snapshot.template_of(task) else { return false };
        let slot = match task.slot {
            Slot::Replica(number) => number.to_string(),
            Slot::Node(node) => node.to_string(),
        };
        let name = format!("{}.{slot}.{}", template.service_name, task.id);
        super::any_prefix(self.filters.get("name"), &name)
    }
}

async fn inspect(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
) -> Result<Answer<Task>, ApiError> {
    let snapshot = state.swarm.manager()?.read().await?;
    let task = lookup::task(&snapshot, &reference)?;
    Ok(Answer(task_to_api_with(&snapshot, &task)))
}

async fn logs(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = state.swarm.manager()?.read().await?;
    let task = lookup::task(&snapshot, &reference)?;
    swarm_logs::of_task(&state, &snapshot, &task, &query, &request)
}

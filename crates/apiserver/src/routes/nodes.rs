//! `/nodes`: the machines of the swarm.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::convert::node::{node_to_api, spec_from_api};
use docker_types::node::{Node, NodeSpec};
use http::StatusCode;
use manager::lookup;
use types::node::Role;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json::Json;
use crate::query::Query;
use crate::state::ApiState;

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

const FILTERS: &[&str] = &["id", "label", "membership", "name", "node.label", "role"];

async fn list(State(state): State<ApiState>, query: Query) -> Result<Answer<Vec<Node>>, ApiError> {
    let manager = state.swarm.manager()?;
    let filters = query.filters(FILTERS)?;
    check(&filters)?;
    let snapshot = manager.read().await?;
    // Only after the read: it waits until there is a leader.
    let leader = manager.leader();
    let nodes = snapshot.nodes().filter(|node| matches(&filters, node));
    Ok(Answer(nodes.map(|node| node_to_api(node, leader)).collect()))
}

fn check(filters: &Filters) -> Result<(), ApiError> {
    for (key, words) in [("role", ["worker", "manager"]), ("membership", ["accepted", "pending"])] {
        if let Some(unknown) =
            filters.get(key).iter().find(|value| !words.contains(&value.as_str()))
        {
            return Err(ApiError::bad_request(format!("Invalid {key} filter: '{unknown}'")));
        }
    }
    Ok(())
}

fn matches(filters: &Filters, node: &types::Node) -> bool {
    let role = match node.spec.role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    };
    super::any_prefix(filters.get("id"), &node.id.to_string())
        && super::any_prefix(filters.get("name"), &node.description.hostname)
        && super::any_equal(filters.get("role"), role)
        && super::any_equal(filters.get("membership"), "accepted")
        && super::all_labels(filters.get("label"), &node.description.engine_labels)
        && super::all_labels(filters.get("node.label"), &node.spec.annotations.labels)
}

/// The node that `reference` names; `self` is the one that answers.
async fn find(
    state: &ApiState,
    reference: &str,
) -> Result<(Arc<manager::Manager>, Arc<types::Node>), ApiError> {
    let manager = state.swarm.manager()?;
    let snapshot = manager.read().await?;
    let own = state.swarm.node_id().filter(|_| reference == "self");
    let node = match own.and_then(|id| snapshot.node(id)) {
        Some(node) => node.clone(),
        None => lookup::node(&snapshot, reference)?,
    };
    Ok((manager, node))
}

async fn inspect(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
) -> Result<Answer<Node>, ApiError> {
    let (manager, node) = find(&state, &reference).await?;
    Ok(Answer(node_to_api(&node, manager.leader())))
}

async fn update(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
    Json(spec): Json<NodeSpec>,
) -> Result<StatusCode, ApiError> {
    let version = super::object_version(&query, "node")?;
    let (manager, node) = find(&state, &reference).await?;
    manager.update_node(node.id, version, spec_from_api(spec)?).await?;
    Ok(StatusCode::OK)
}

async fn remove(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (manager, node) = find(&state, &reference).await?;
    manager.remove_node(node.id, query.flag("force")).await?;
    Ok(StatusCode::OK)
}

//! `/networks`: the networks every node has, and those of the swarm.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::convert::network::{network_to_api, spec_from_api};
use docker_types::network::{
    NetworkCreateRequest, NetworkCreateResponse, NetworkResource, NetworksPruneResponse,
};
use http::StatusCode;
use types::network::Network;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json::Json;
use crate::query::Query;
use crate::state::ApiState;

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(connect))
}

async fn list(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<Vec<NetworkResource>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    check_type(&filters)?;
    let mut networks = state.engine.networks(false);
    networks.extend(of_swarm(&state).iter().map(|network| network_to_api(network)));
    networks.retain(|network| matches(network, &filters));
    Ok(Answer(networks))
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Answer<NetworkResource>, ApiError> {
    Ok(Answer(find(&state, &id)?))
}

async fn create(
    State(state): State<ApiState>,
    Json(request): Json<NetworkCreateRequest>,
) -> Result<(StatusCode, Answer<NetworkCreateResponse>), ApiError> {
    if request.name.is_empty() {
        return Err(ApiError::bad_request("network name cannot be empty"));
    }
    if is_predefined(&request.name) {
        let name = &request.name;
        let text = format!("operation is not permitted on predefined {name} network ");
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    if request.driver != "overlay" && request.scope != "swarm" {
        return Err(ApiError::not_implemented("networks of one node cannot be created yet"));
    }
    let manager = state.swarm.manager()?;
    let id = manager.create_network(spec_from_api(request)?).await?;
    let answer = NetworkCreateResponse { id: id.to_string(), warning: String::new() };
    Ok((StatusCode::CREATED, Answer(answer)))
}

async fn remove(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let network = find(&state, &id)?;
    let Ok(id) = network.id.parse() else {
        let text = format!("{} is a pre-defined network and cannot be removed", network.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    };
    state.swarm.manager()?.remove_network(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn connect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    find(&state, &id)?;
    Err(ApiError::not_implemented("containers keep the network they were made with"))
}

/// Removes the swarm's networks that nobody uses.
async fn prune(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<NetworksPruneResponse>, ApiError> {
    let filters = query.filters(&["until", "label", "label!"])?;
    let mut deleted = Vec::new();
    for network in of_swarm(&state) {
        let labels = &network.spec.annotations.labels;
        let is_meant = super::all_labels(filters.get("label"), labels)
            && (filters.get("label!").is_empty()
                || !super::all_labels(filters.get("label!"), labels))
            && !network.spec.is_ingress;
        // One that is in use says so, and stays.
        if is_meant && state.swarm.manager()?.remove_network(network.id).await.is_ok() {
            deleted.push(network.name().to_owned());
        }
    }
    Ok(Answer(NetworksPruneResponse {
        networks_deleted: Some(deleted).filter(|deleted| !deleted.is_empty()),
    }))
}

/// The networks of the swarm, where this node knows them.
fn of_swarm(state: &ApiState) -> Vec<Arc<Network>> {
    let Ok(manager) = state.swarm.manager() else { return Vec::new() };
    manager.snapshot().networks().cloned().collect()
}

fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none")
}

fn find(state: &ApiState, name: &str) -> Result<NetworkResource, ApiError> {
    let mut networks = state.engine.networks(true);
    networks.extend(of_swarm(state).iter().map(|network| network_to_api(network)));
    let by_id = |network: &NetworkResource| !name.is_empty() && network.id.starts_with(name);
    let found = networks
        .iter()
        .find(|network| network.id == name || network.name == name)
        .or_else(|| networks.iter().find(|network| by_id(network)));
    found.cloned().ok_or_else(|| ApiError::not_found(format!("network {name} not found")))
}

fn check_type(filters: &Filters) -> Result<(), ApiError> {
    match filters.get("type").iter().find(|kind| !matches!(kind.as_str(), "builtin" | "custom")) {
        Some(kind) => Err(ApiError::bad_request(format!("invalid filter: 'type'='{kind}'"))),
        None => Ok(()),
    }
}

fn matches(network: &NetworkResource, filters: &Filters) -> bool {
    let any = |key: &str, fits: &dyn Fn(&str) -> bool| {
        let values = filters.get(key);
        values.is_empty() || values.iter().any(|value| fits(value))
    };
    any("name", &|name| network.name.contains(name))
        && any("id", &|id| network.id.starts_with(id))
        && any("driver", &|driver| network.driver == driver)
        && any("scope", &|scope| network.scope == scope)
        && any("type", &|kind| (kind == "builtin") == (network.scope == "local"))
        && super::all_labels(filters.get("label"), &network.labels)
        // Networks that every node has are never in anybody's way.
        && any("dangling", &|dangling| matches!(dangling, "0" | "false"))
}

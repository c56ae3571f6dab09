//! `/networks`: the networks every node has.
//!
//! The bridge, the host's own network and none at all. Networks of a user's making are not there yet.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::network::{NetworkCreateRequest, NetworkResource, NetworksPruneResponse};
use http::StatusCode;

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
    networks.retain(|network| matches(network, &filters));
    Ok(Answer(networks))
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Answer<NetworkResource>, ApiError> {
    Ok(Answer(find(&state, &id)?))
}

async fn create(Json(request): Json<NetworkCreateRequest>) -> ApiError {
    if request.name.is_empty() {
        return ApiError::bad_request("network name cannot be empty");
    }
    if matches!(request.name.as_str(), "bridge" | "host" | "none") {
        let text = format!("operation is not permitted on predefined {} network ", request.name);
        return ApiError::new(StatusCode::FORBIDDEN, text);
    }
    ApiError::not_implemented("networks cannot be created yet")
}

async fn remove(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let network = find(&state, &id)?;
    let text = format!("{} is a pre-defined network and cannot be removed", network.name);
    Err(ApiError::new(StatusCode::FORBIDDEN, text))
}

async fn connect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    find(&state, &id)?;
    Err(ApiError::not_implemented("containers keep the network they were made with"))
}

async fn prune(query: Query) -> Result<Answer<NetworksPruneResponse>, ApiError> {
    query.filters(&["until", "label", "label!"])?;
    Ok(Answer(NetworksPruneResponse::default()))
}

fn find(state: &ApiState, name: &str) -> Result<NetworkResource, ApiError> {
    let networks = state.engine.networks(true);
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
        && any("type", &|kind| kind == "builtin")
        && super::all_labels(filters.get("label"), &network.labels)
        // Networks that every node has are never in anybody's way.
        && any("dangling", &|dangling| matches!(dangling, "0" | "false"))
}

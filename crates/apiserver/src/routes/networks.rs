//! `/networks`: the networks of this host, and those of the swarm.

mod create;
mod show;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::network::{
    NetworkConnectRequest, NetworkDisconnectRequest, NetworkResource, NetworksPruneResponse,
};
use engine::networks::PREDEFINED;
use http::StatusCode;
use jiff::Timestamp;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json::Json;
use crate::query::Query;
use crate::state::ApiState;

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];
const PRUNE_FILTERS: [&str; 3] = ["until", "label", "label!"];

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/", get(list))
        .route("/networks/create", post(create::create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

async fn list(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<Vec<NetworkResource>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    check_type(&filters)?;
    let dangling = filters.flag("dangling")?;
    let mut networks = show::all(&state);
    networks.retain(|network| matches(network, &filters));
    if let Some(dangling) = dangling {
        networks.retain(|network| show::is_dangling(&state, network) == dangling);
    }
    Ok(Answer(networks))
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Answer<NetworkResource>, ApiError> {
    let mut network = show::find(&state, &id, query.get("scope"))?;
    show::add_members(&state, &mut network, query.flag("verbose"));
    Ok(Answer(network))
}

async fn remove(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let network = show::find(&state, &id, None)?;
    if is_predefined(&network) {
        let text = format!("{} is a pre-defined network and cannot be removed", network.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    remove_found(&state, &network).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_found(state: &ApiState, network: &NetworkResource) -> Result<(), ApiError> {
    match network.id.parse() {
        Ok(id) if network.scope == "swarm" => Ok(state.swarm.manager()?.remove_network(id).await?),
        _ => Ok(state.engine.remove_network(&network.id).await?),
    }
}

async fn connect(
    State(state): State<ApiState>,
    Path(network): Path<String>,
    Json(request): Json<NetworkConnectRequest>,
) -> Result<StatusCode, ApiError> {
    check_container(&request.container)?;
    let settings = request.endpoint_config.unwrap_or_default();
    state.engine.containers.connect(&network, &request.container, settings).await?;
    Ok(StatusCode::OK)
}

async fn disconnect(
    State(state): State<ApiState>,
    Path(network): Path<String>,
    Json(request): Json<NetworkDisconnectRequest>,
) -> Result<StatusCode, ApiError> {
    check_container(&request.container)?;
    state.engine.containers.disconnect(&network, &request.container).await?;
    Ok(StatusCode::OK)
}

fn check_container(name: &str) -> Result<(), ApiError> {
    match name.is_empty() {
        true => Err(ApiError::bad_request("invalid name or ID supplied: \"\"")),
        false => Ok(()),
    }
}

/// Removes the networks that nobody uses: those of this host, and on managers those of the swarm.
async fn prune(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<NetworksPruneResponse>, ApiError> {
    let filters = query.filters(&PRUNE_FILTERS)?;
    let until = until(&filters)?;
    let mut deleted = Vec::new();
    for network in show::all(&state) {
        let labels = &network.labels;
        let is_kept = network.ingress || network.config_only || is_predefined(&network);
        let is_meant = super::all_labels(filters.get("label"), labels)
            && (filters.get("label!").is_empty()
                || !super::all_labels(filters.get("label!"), labels))
            && until
                .is_none_or(|until| network.created.get().is_some_and(|created| created < until));
        // One that is in use says so, and stays.
        if is_meant && !is_kept && remove_found(&state, &network).await.is_ok() {
            deleted.push(network.name);
        }
    }
    state.engine.networks.pruned();
    Ok(Answer(NetworksPruneResponse {
        networks_deleted: Some(deleted).filter(|deleted| !deleted.is_empty()),
    }))
}

fn until(filters: &Filters) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = filters.get("until").first() else { return Ok(None) };
    let parsed = engine::times::parse(text, Timestamp::now());
    parsed.map(Some).ok_or_else(|| Filters::invalid("until", text))
}

/// Whether every node has the network.
fn is_predefined(network: &NetworkResource) -> bool {
    PREDEFINED.contains(&network.name.as_str()) || show::is_gateway_network(network)
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
        && any("type", &|kind| (kind == "builtin") == is_predefined(network))
        && super::all_labels(filters.get("label"), &network.labels)
}

//! `/containers`: everything about containers but exec.

mod archive;
mod streams;

pub(super) use streams::terminal_size;

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json as Answer, Router};
use docker_types::container::{
    ContainerConfig, ContainerCreateResponse, ContainerCreateTail, ContainerInspect,
    ContainerSummary, ContainerTop, ContainerUpdateResponse, ContainersPruneResponse,
    FilesystemChange, HostConfig,
};
use engine::containers::{ListOptions, NewContainer, RemoveOptions, StopOptions};
use http::StatusCode;

use crate::error::ApiError;
use crate::json::{self, Json};
use crate::query::Query;
use crate::state::ApiState;

const LIST_FILTERS: [&str; 17] = [
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "until",
    "label!",
];
const PRUNE_FILTERS: [&str; 3] = ["until", "label", "label!"];

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/changes", get(changes))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/update", post(update))
        .merge(archive::routes())
        .merge(streams::routes())
}

async fn list(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<Vec<ContainerSummary>>, ApiError> {
    let options = ListOptions {
        all: query.flag("all"),
        limit: query.number("limit")?.unwrap_or(0),
        size: query.flag("size"),
        filters: query.filters(&LIST_FILTERS)?.into_map(),
    };
    Ok(Answer(state.engine.containers.list(&options).await?))
}

async fn create(
    State(state): State<ApiState>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let body = json::read_declared(request).await?;
    if body.is_empty() {
        return Err(ApiError::bad_request("config cannot be empty in order to create a container"));
    }
    // One object on the wire, two for us: the configuration, and what ties it to the host.
    let config: ContainerConfig = json::decode(&body)?;
    let tail: ContainerCreateTail = json::decode(&body)?;
    let new = NewContainer {
        name: query.get("name").map(str::to_owned),
        config,
        host: tail.host_config.unwrap_or_default(),
        networking: tail.networking_config.unwrap_or_default(),
        platform: query.get("platform").map(str::to_owned),
    };
    let created = state.engine.containers.create(new).await?;
    let answer = ContainerCreateResponse { id: created.id, warnings: created.warnings };
    Ok((StatusCode::CREATED, Answer(answer)).into_response())
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Answer<ContainerInspect>, ApiError> {
    Ok(Answer(state.engine.containers.inspect(&id, query.flag("size")).await?))
}

async fn top(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Answer<ContainerTop>, ApiError> {
    Ok(Answer(state.engine.containers.top(&id, query.text("ps_args")).await?))
}

async fn changes(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Answer<Option<Vec<FilesystemChange>>>, ApiError> {
    let changes = state.engine.containers.changes_of(&id).await?;
    Ok(Answer(Some(changes).filter(|changes| !changes.is_empty())))
}

async fn start(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.start(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn stop(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.stop(&id, stop_options(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn restart(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.restart(&id, stop_options(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.kill(&id, query.get("signal")).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.pause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpause(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.unpause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rename(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    state.engine.containers.rename(&id, query.text("name")).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(update): Json<HostConfig>,
) -> Result<Answer<ContainerUpdateResponse>, ApiError> {
    let warnings = state.engine.containers.update(&id, update).await?;
    let warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    Ok(Answer(ContainerUpdateResponse { warnings }))
}

async fn remove(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    if query.flag("link") {
        return Err(ApiError::bad_request(
            "links are not supported; containers find each other in networks",
        ));
    }
    let options = RemoveOptions { force: query.flag("force"), volumes: query.flag("v") };
    state.engine.containers.remove(&id, options).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn prune(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<ContainersPruneResponse>, ApiError> {
    let filters = query.filters(&PRUNE_FILTERS)?.into_map();
    let options = ListOptions { filters, ..ListOptions::default() };
    let (deleted, space_reclaimed) = state.engine.containers.prune(&options).await?;
    let containers_deleted = Some(deleted).filter(|deleted| !deleted.is_empty());
    Ok(Answer(ContainersPruneResponse { containers_deleted, space_reclaimed }))
}

/// `t` in seconds, where a negative number waits for ever, and `signal`.
fn stop_options(query: &Query) -> Result<StopOptions, ApiError> {
    let grace = query
        .number::<i64>("t")?
        .map(|seconds| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs));
    Ok(StopOptions { signal: query.get("signal").map(str::to_owned), grace })
}

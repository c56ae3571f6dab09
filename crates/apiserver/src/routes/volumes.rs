//! `/volumes`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::volume::{Volume, VolumeCreateRequest, VolumeListResponse, VolumesPruneResponse};
use engine::volumes::{VolumeFilter, Volumes};
use http::StatusCode;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json::Json;
use crate::query::Query;
use crate::state::ApiState;
use crate::version::ApiVersion;

/// From here on a prune without `all` takes anonymous volumes only.
const PRUNES_ANONYMOUS: ApiVersion = ApiVersion::new(1, 42);

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

async fn list(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<VolumeListResponse>, ApiError> {
    let filters = query.filters(&["dangling", "driver", "label", "name"])?;
    let filter = volume_filter(&filters)?;
    let volumes = &state.engine.volumes;
    let volumes =
        volumes.list(&filter).iter().map(|volume| volumes.describe(volume, false)).collect();
    Ok(Answer(VolumeListResponse { volumes, warnings: None }))
}

async fn create(
    State(state): State<ApiState>,
    Json(request): Json<VolumeCreateRequest>,
) -> Result<Response, ApiError> {
    let volume = on_thread(&state, move |volumes| {
        let volume = volumes.create(&request)?;
        Ok(volumes.describe(&volume, false))
    });
    Ok((StatusCode::CREATED, Answer(volume.await?)).into_response())
}

async fn inspect(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Answer<Volume>, ApiError> {
    let volume = state.engine.volumes.get(&name)?;
    Ok(Answer(state.engine.volumes.describe(&volume, false)))
}

async fn remove(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let force = query.flag("force");
    on_thread(&state, move |volumes| volumes.remove(&name, force)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Only volumes of the cluster can be changed, and there are none.
async fn update(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.engine.volumes.get(&name)?;
    Err(ApiError::not_found(format!("volume {name} not found")))
}

async fn prune(
    State(state): State<ApiState>,
    version: ApiVersion,
    query: Query,
) -> Result<Answer<VolumesPruneResponse>, ApiError> {
    let filters = query.filters(&["label", "label!", "all"])?;
    let all = filters.flag("all")?.unwrap_or(version < PRUNES_ANONYMOUS);
    let filter = volume_filter(&filters)?;
    let (deleted, space_reclaimed) =
        on_thread(&state, move |volumes| volumes.prune(&filter, all)).await?;
    let volumes_deleted = Some(deleted).filter(|deleted| !deleted.is_empty());
    Ok(Answer(VolumesPruneResponse { volumes_deleted, space_reclaimed }))
}

fn volume_filter(filters: &Filters) -> Result<VolumeFilter, ApiError> {
    Ok(VolumeFilter {
        names: filters.get("name").to_vec(),
        drivers: filters.get("driver").to_vec(),
        labels: filters.get("label").to_vec(),
        not_labels: filters.get("label!").to_vec(),
        dangling: filters.flag("dangling")?,
    })
}

async fn on_thread<T: Send + 'static>(
    state: &ApiState,
    work: impl FnOnce(&Volumes) -> Result<T, engine::Error> + Send + 'static,
) -> Result<T, ApiError> {
    let volumes = state.engine.volumes.clone();
    match tokio::task::spawn_blocking(move || work(&volumes)).await {
        Ok(done) => Ok(done?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

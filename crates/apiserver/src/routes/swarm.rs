//! `/swarm`: init, join, leave, settings, tokens.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::convert;
use docker_types::swarm::{InitRequest, JoinRequest, Swarm, SwarmSpec, UnlockRequest};
use http::StatusCode;
use manager::Rotation;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::Json;
use crate::query::Query;
use crate::state::ApiState;

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
}

async fn inspect(State(state): State<ApiState>) -> Result<Answer<Swarm>, ApiError> {
    let manager = state.swarm.manager()?;
    manager.read().await?;
    let cluster = manager.cluster()?;
    let tls = ca::tls_info(&cluster.root_ca).map_err(manager::Error::from)?;
    Ok(Answer(convert::swarm::swarm_to_api(&cluster, &tls)))
}

async fn init(
    State(state): State<ApiState>,
    Json(request): Json<InitRequest>,
) -> Result<Answer<String>, ApiError> {
    Ok(Answer(state.swarm.clone().init(request).await?.to_string()))
}

async fn join(
    State(state): State<ApiState>,
    Json(request): Json<JoinRequest>,
) -> Result<StatusCode, ApiError> {
    state.swarm.clone().join(request).await?;
    Ok(StatusCode::OK)
}

async fn leave(State(state): State<ApiState>, query: Query) -> Result<StatusCode, ApiError> {
    state.swarm.clone().leave(query.flag("force")).await?;
    Ok(StatusCode::OK)
}

async fn update(
    State(state): State<ApiState>,
    query: Query,
    Json(spec): Json<SwarmSpec>,
) -> Result<StatusCode, ApiError> {
    let version = super::object_version(&query, "swarm")?;
    let rotation = Rotation {
        worker_token: flag(&query, "rotateWorkerToken")?,
        manager_token: flag(&query, "rotateManagerToken")?,
        unlock_key: flag(&query, "rotateManagerUnlockKey")?,
    };
    let spec = convert::swarm::spec_from_api(spec)?;
    state.swarm.manager()?.update_cluster(version, spec, rotation).await?;
    Ok(StatusCode::OK)
}

/// These flags are Go booleans; anything else is refused.
fn flag(query: &Query, name: &str) -> Result<bool, ApiError> {
    match query.text(name) {
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        other => Err(ApiError::bad_request(format!("invalid value for {name}: {other}"))),
    }
}

async fn unlock_key(State(state): State<ApiState>) -> Result<Answer<Value>, ApiError> {
    let manager = state.swarm.manager()?;
    manager.read().await?;
    let cluster = manager.cluster()?;
    // Without autolock there is no key, and Docker answers with an empty one.
    let key = cluster.unlock_key.as_ref().map(ca::unlock_key_text);
    Ok(Answer(json!({ "UnlockKey": key.unwrap_or_default() })))
}

async fn unlock(
    State(state): State<ApiState>,
    Json(request): Json<UnlockRequest>,
) -> Result<StatusCode, ApiError> {
    state.swarm.clone().unlock(request.unlock_key).await?;
    Ok(StatusCode::OK)
}

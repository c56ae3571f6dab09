//! `/exec` and `/containers/{id}/exec`: further processes in running containers.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::exec::{ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecStartRequest};
use engine::containers::exec::ExecStart;
use http::StatusCode;

use super::containers::terminal_size;
use crate::error::ApiError;
use crate::hijack::{Framing, hijack};
use crate::json::{self, Json};
use crate::query::Query;
use crate::state::ApiState;
use crate::streams;
use crate::version::ApiVersion;

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/resize", post(resize))
        .route("/exec/{id}/json", get(inspect))
}

async fn create(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(exec): Json<ExecCreateRequest>,
) -> Result<Response, ApiError> {
    let id = state.engine.containers.create_exec(&id, exec).await?;
    Ok((StatusCode::CREATED, Answer(ExecCreateResponse { id })).into_response())
}

async fn start(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    version: ApiVersion,
    request: Request,
) -> Result<Response, ApiError> {
    // The body ends where its length says; what comes after it belongs to the process.
    let (parts, body) = request.into_parts();
    let upgrade = parts.extensions.get::<hyper::upgrade::OnUpgrade>().cloned();
    let mut head = Request::from_parts(parts, axum::body::Body::empty());
    let body = json::read(Request::new(body)).await?;
    let wanted: ExecStartRequest =
        if body.is_empty() { ExecStartRequest::default() } else { json::decode(&body)? };
    if let Some(upgrade) = upgrade {
        head.extensions_mut().insert(upgrade);
    }
    let containers = &state.engine.containers;
    let is_tty = containers.exec_has_tty(&id)?;
    let options = ExecStart { detach: wanted.detach, console_size: wanted.console_size };
    let media_type = Framing::of_tty(is_tty).media_type(version);
    let started = match containers.start_exec(&id, options).await {
        // As from Docker: the client reads why in the output, and the exit code where it asks for it.
        Err(error @ engine::Error::ExecStart { .. }) if !wanted.detach => {
            return Ok(hijack(head, media_type, move |duplex| async move {
                streams::say(duplex, Framing::of_tty(is_tty), &format!("{error}\r\n")).await;
            }));
        }
        started => started?,
    };
    if wanted.detach {
        return Ok(StatusCode::OK.into_response());
    }
    let containers = containers.clone();
    Ok(hijack(head, media_type, move |duplex| async move {
        streams::exec(duplex, started, containers.wait_exec(&id)).await;
    }))
}

async fn resize(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (height, width) = terminal_size(&query)?;
    state.engine.containers.resize_exec(&id, height, width)?;
    Ok(StatusCode::OK)
}

async fn inspect(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Answer<ExecInspect>, ApiError> {
    Ok(Answer(state.engine.containers.inspect_exec(&id)?))
}

//! Routes of containers whose answers grow: attach, logs, stats, wait.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use docker_types::container::{ContainerWaitResponse, WaitError};
use engine::containers::WaitCondition;
use engine::containers::attach::AttachOptions;
use engine::containers::stats::StatsMode;
use futures::StreamExt;
use http::{StatusCode, header};

use crate::error::ApiError;
use crate::hijack::{Framing, hijack};
use crate::logs::{self, LineForm};
use crate::query::Query;
use crate::state::ApiState;
use crate::stream;
use crate::streams::{self, SessionEnd};
use crate::version::ApiVersion;

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/logs", get(read_logs))
        .route("/containers/{id}/stats", get(stats))
        .route("/containers/{id}/wait", post(wait))
}

async fn attach(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let options = AttachOptions {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        detach_keys: query.text("detachKeys").to_owned(),
    };
    let containers = state.engine.containers.clone();
    // The name may be given to another container while we are attached.
    let id = containers.id_of(&id)?;
    let attached = containers.attach(&id, &options).await?;
    let media_type = Framing::of_tty(attached.tty).media_type(version);
    Ok(hijack(request, media_type, move |duplex| async move {
        if streams::attach(duplex, attached).await == SessionEnd::Detached {
            containers.detached_from(&id);
        }
    }))
}

async fn resize(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (height, width) = terminal_size(&query)?;
    state.engine.containers.resize(&id, height, width).await?;
    Ok(StatusCode::OK)
}

/// The size of a terminal in character cells, from `h` and `w`.
pub(in crate::routes) fn terminal_size(query: &Query) -> Result<(u16, u16), ApiError> {
    let cells = |key: &str| -> Result<u16, ApiError> {
        let text = query.text(key);
        text.parse().map_err(|_| {
            let reason = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
            ApiError::bad_request(format!(
                "invalid resize {}: {reason}",
                if key == "h" { "height" } else { "width" }
            ))
        })
    };
    Ok((cells("h")?, cells("w")?))
}

async fn read_logs(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Result<Response, ApiError> {
    let options = logs::options(&query)?;
    let containers = &state.engine.containers;
    let framing = Framing::of_tty(containers.has_tty(&id)?);
    let form = LineForm { framing, timestamps: query.flag("timestamps") };
    let with_details = query.flag("details");
    let lines = containers.logs(&id, options)?.map(move |record| match record {
        Ok(record) => {
            let details = if with_details { logs::details(&record) } else { String::new() };
            form.encode(&record, &details)
        }
        // The status is long sent: what is wrong is said where a reader looks.
        Err(error) => {
            format!("error from daemon in stream: {}\n", ApiError::from(error).message).into()
        }
    });
    let mut response = stream::respond("", lines);
    response.headers_mut().insert(header::CONTENT_TYPE, framing.media_type(version));
    Ok(response)
}

async fn stats(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let mode = match (query.flag_or("stream", true), query.flag("one-shot")) {
        (true, true) => {
            return Err(ApiError::bad_request("cannot have stream=true and one-shot=true"));
        }
        (true, false) => StatsMode::Stream,
        (false, true) => StatsMode::OneShot,
        (false, false) => StatsMode::Single,
    };
    Ok(stream::json_lines(state.engine.containers.stats(&id, mode)?))
}

/// The status is sent at once: `docker run` starts the container only when it knows that we wait.
async fn wait(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let condition = WaitCondition::parse(query.text("condition"))?;
    let exit = state.engine.containers.wait(&id, condition)?;
    Ok(stream::json_lines(futures::stream::once(async move {
        let exit = exit.await;
        let error = Some(exit.error).filter(|error| !error.is_empty());
        ContainerWaitResponse {
            status_code: exit.code,
            error: error.map(|message| WaitError { message }),
        }
    })))
}

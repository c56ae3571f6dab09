//! `docker cp` and `docker export`: files of containers as tar archives.

use std::io::{self, Write};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::containers::archive::{PathStat, Place, UnpackOptions};
use futures::TryStreamExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::error::ApiError;
use crate::query::Query;
use crate::state::ApiState;

const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// Bytes gathered before they are sent.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks under way to a slow client.
const CHUNKS_MAX: usize = 4;

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/containers/{id}/archive", get(read).head(stat).put(write))
        .route("/containers/{id}/export", get(export))
}

async fn stat(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let place = state.engine.containers.place(&id, query.text("path")).await?;
    let (_, stat) = stat_of(place).await?;
    Ok(([(PATH_STAT, stat_header(&stat)?)], StatusCode::OK).into_response())
}

async fn read(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let place = state.engine.containers.place(&id, query.text("path")).await?;
    let (place, stat) = stat_of(place).await?;
    state.engine.containers.note_archive(&id, "archive-path");
    let mut response = send(place);
    response.headers_mut().insert(PATH_STAT, stat_header(&stat)?);
    Ok(response)
}

async fn export(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let place = state.engine.containers.place(&id, "/").await?;
    state.engine.containers.note_archive(&id, "export");
    let mut response = send(place);
    let media_type = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

async fn write(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let containers = &state.engine.containers;
    // Before the place is opened: both hold a container that does not run.
    let owner = if query.flag("copyUIDGID") { Some(containers.owner_of(&id).await?) } else { None };
    let place = containers.place(&id, query.text("path")).await?;
    let options =
        UnpackOptions { no_overwrite_dir_non_dir: query.flag("noOverwriteDirNonDir"), owner };
    let body = request.into_body().into_data_stream().map_err(io::Error::other);
    let body = SyncIoBridge::new(StreamReader::new(body));
    on_thread(move || place.unpack(body, options)).await?;
    containers.note_archive(&id, "extract-to-dir");
    Ok(StatusCode::OK)
}

/// Packs a place on a thread of its own, as fast as the client reads.
fn send(place: Place) -> Response {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::task::spawn_blocking(move || {
        let mut output = ChannelWriter { sender, gathered: Vec::with_capacity(CHUNK_BYTES) };
        let packed = place.pack(&mut output).map_err(|error| ApiError::from(error).message);
        match packed {
            Ok(()) => {
                let _ = output.flush();
            }
            // The status is long sent: a broken body is how the client learns of it.
            Err(message) => {
                tracing::warn!(message, "archive is cut off");
                let _ = output.sender.blocking_send(Err(io::Error::other(message)));
            }
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let media_type = HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Vec<u8>>>,
    gathered: Vec<u8>,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.gathered, Vec::with_capacity(CHUNK_BYTES));
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn stat_of(place: Place) -> Result<(Place, PathStat), ApiError> {
    on_thread(move || {
        let stat = place.stat()?;
        Ok((place, stat))
    })
    .await
}

fn stat_header(stat: &PathStat) -> Result<HeaderValue, ApiError> {
    let stat = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": stat.modified.to_string(),
        "linkTarget": stat.link_target,
    });
    HeaderValue::try_from(STANDARD.encode(stat.to_string()))
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, engine::Error> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

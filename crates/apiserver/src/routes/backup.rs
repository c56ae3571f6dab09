//! `/skep/backup` and `/skep/restore`: the state of the whole swarm as one sealed file. Docker has no such routes.

use std::io;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use docker_types::swarm::InitRequest;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, header};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::error::ApiError;
use crate::query::Query;
use crate::state::ApiState;

/// The key that seals the file, as the `skep` command writes it.
const KEY: &str = "x-skep-backup-key";

/// Chunks of a file that were received and not read yet.
const CHUNKS_WAITING_MAX: usize = 4;

/// What is taken of a file after it was refused.
const DRAIN_BYTES_MAX: usize = 256 << 20;

pub(crate) fn routes() -> Router<ApiState> {
    Router::new().route("/skep/backup", post(backup)).route("/skep/restore", post(restore))
}

async fn backup(State(state): State<ApiState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let key = key(&headers)?;
    let chunks = state.swarm.manager()?.backup(key).await?;
    let stream = futures::stream::unfold(chunks, |mut chunks| async move {
        Some((chunks.recv().await?, chunks))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(stream)).into_response())
}

async fn restore(
    State(state): State<ApiState>,
    query: Query,
    headers: HeaderMap,
    request: Request,
) -> Result<String, ApiError> {
    let key = key(&headers)?;
    let place = InitRequest {
        advertise_addr: query.text("advertiseAddr").to_owned(),
        listen_addr: query.text("listenAddr").to_owned(),
        availability: query.text("availability").to_owned(),
        ..InitRequest::default()
    };
    let file = Box::new(SyncIoBridge::new(StreamReader::new(read_to_end(request.into_body()))));
    Ok(state.swarm.clone().restore(place, key, file).await?.to_string())
}

/// Reads on where nobody wants the rest: a client that finds its connection closed while it writes does not read the
/// reason.
fn read_to_end(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Unpin + Send {
    let (chunks, stream) = mpsc::channel(CHUNKS_WAITING_MAX);
    tokio::spawn(async move {
        let mut body = body.into_data_stream().map_err(io::Error::other);
        let mut unwanted = 0;
        while let Some(chunk) = body.next().await {
            let bytes = chunk.as_ref().map_or(0, Bytes::len);
            if chunks.send(chunk).await.is_err() {
                unwanted += bytes;
            }
            if unwanted > DRAIN_BYTES_MAX {
                return;
            }
        }
    });
    Box::pin(futures::stream::unfold(stream, |mut stream| async move {
        Some((stream.recv().await?, stream))
    }))
}

fn key(headers: &HeaderMap) -> Result<[u8; 32], ApiError> {
    let text = headers.get(KEY).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| {
        ApiError::bad_request(format!("the header {KEY} with the key of the backup is missing"))
    })?;
    ca::backup_key_from_text(text).map_err(|error| ApiError::bad_request(error.to_string()))
}

//! What moves images: pull, push, import, load, save.

use std::io::{self, Read, Write};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use docker_types::image::{ImagePlatform, ProgressLine};
use engine::images::import::ImportRequest;
use engine::images::platform::Platform;
use engine::images::progress::{self, Reporter};
use engine::images::pull::PullRequest;
use engine::images::push::PushRequest;
use engine::images::reference::Reference;
use engine::images::{Error, Images};
use engine::registry::auth::Credentials;
use futures::TryStreamExt;
use http::HeaderMap;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{ImageState, blocking};
use crate::error::ApiError;
use crate::progress::lines;
use crate::query::Query;
use crate::stream;

/// Carries the user's registry credentials, base64 of JSON.
pub(crate) const REGISTRY_AUTH: &str = "x-registry-auth";
/// Pieces of a saved archive between the disk and the client.
const PIECES_MAX: usize = 8;
/// Bytes of a refused upload that are taken nevertheless.
const DRAIN_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one piece.
const PIECE_BYTES: usize = 256 * 1024;

/// `POST /images/create`: a pull, or an import when there is a source.
pub(super) async fn create(
    State(state): State<ImageState>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let platform = platform(query.text("platform"))?;
    match (query.get("fromImage"), query.get("fromSrc")) {
        (Some(image), _) => {
            let reference = named(image, query.text("tag"))?;
            // A header that cannot be read counts as none, as in Docker.
            let credentials = credentials(request.headers()).unwrap_or_default();
            pull(state.images, PullRequest { reference, platform, credentials }).await
        }
        (None, Some(source)) => import(state.images, source, &query, platform, request).await,
        (None, None) => Err(ApiError::bad_request("invalid reference format")),
    }
}

async fn pull(images: Images, request: PullRequest) -> Result<Response, ApiError> {
    let (reporter, rx) = progress::channel();
    let work =
        async move { images.pull(&request, &reporter).await.map(drop).map_err(ApiError::from) };
    stream::progress(lines(work, rx)).await
}

async fn import(
    images: Images,
    source: &str,
    query: &Query,
    platform: Option<Platform>,
    request: Request,
) -> Result<Response, ApiError> {
    if source != "-" {
        return Err(ApiError::not_implemented(
            "importing from an address is not supported: download the archive and import the file",
        ));
    }
    let reference = match query.get("repo") {
        Some(repository) => Some(named(repository, query.text("tag"))?),
        None => None,
    };
    let message = query.get("message").unwrap_or("Imported from -").to_owned();
    let changes = query.all("changes").map(str::to_owned).collect();
    let import = ImportRequest { reference, changes, message, platform };
    let mut body = reader(request.into_body());
    let image = blocking(move || {
        let image = images.import(&import, &mut body);
        drain_after(&image, body);
        image
    });
    let image = image.await?;
    let line = ProgressLine { status: Some(image.id.to_string()), ..ProgressLine::default() };
    Ok(stream::json_lines(futures::stream::iter([line])))
}

/// `POST /images/{name}/push`.
pub(super) async fn push(
    state: ImageState,
    name: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let credentials = credentials(headers).map_err(|error| {
        ApiError::bad_request(format!("invalid X-Registry-Auth header: {error}"))
    })?;
    let reference = named(name, query.text("tag"))?;
    let request = PushRequest { reference, credentials };
    let (reporter, rx) = progress::channel();
    let images = state.images;
    let work = async move { images.push(&request, &reporter).await.map_err(ApiError::from) };
    stream::progress(lines(work, rx)).await
}

/// `POST /images/load`.
pub(super) async fn load(
    State(state): State<ImageState>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let platform = platform(query.text("platform"))?;
    let is_quiet = query.flag_or("quiet", true);
    let mut body = reader(request.into_body());
    let (reporter, rx) = progress::channel();
    let work = blocking(move || {
        let loaded = load_all(&state.images, &mut body, platform.as_ref(), is_quiet, &reporter);
        drain_after(&loaded, body);
        loaded
    });
    stream::progress(lines(work, rx)).await
}

fn load_all(
    images: &Images,
    body: impl Read + Send,
    platform: Option<&Platform>,
    is_quiet: bool,
    reporter: &Reporter,
) -> Result<(), Error> {
    if !is_quiet {
        return images.load(body, platform, reporter).map(drop);
    }
    let (inner, mut rx) = progress::channel();
    std::thread::scope(|scope| {
        // Only what there is to read in the end.
        scope.spawn(move || {
            while let Some(line) = rx.blocking_recv() {
                if line.stream.is_some() {
                    reporter.send_blocking(line);
                }
            }
        });
        let result = images.load(body, platform, &inner).map(drop);
        drop(inner);
        result
    })
}

/// `GET /images/get?names=…`.
pub(super) async fn save(
    State(state): State<ImageState>,
    query: Query,
) -> Result<Response, ApiError> {
    save_names(state, query.all("names").map(str::to_owned).collect()).await
}

/// An archive of the images with these names.
pub(super) async fn save_names(
    state: ImageState,
    names: Vec<String>,
) -> Result<Response, ApiError> {
    let images = state.images;
    let finder = images.clone();
    let saved = blocking(move || finder.select_saved(&names)).await?;
    let (tx, rx) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let pieces = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(tx.clone()));
        if let Err(error) = images.save(&saved, pieces) {
            tracing::info!(%error, "save broke off");
            // The client must not take what it has for the whole.
            tx.blocking_send(Err(io::Error::other(error))).ok();
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(rx)));
    let tar = http::HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(http::header::CONTENT_TYPE, tar);
    Ok(response)
}

/// Sends what is written to a body.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(buffer);
        match self.0.blocking_send(Ok(piece)) {
            Ok(()) => Ok(buffer.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request's body for code that blocks. To be read on a thread for that.
fn reader(body: Body) -> impl Read + Send {
    let stream = body.into_data_stream().map_err(io::Error::other);
    SyncIoBridge::new(StreamReader::new(stream))
}

/// Takes what a client still sends after a failure: one that finds its connection closed while it
/// writes does not read the reason.
fn drain_after<T>(result: &Result<T, Error>, body: impl Read) {
    if result.is_err() {
        // A client that goes away has read enough.
        io::copy(&mut body.take(DRAIN_BYTES_MAX), &mut io::sink()).ok();
    }
}

/// Who asks, by the request's header.
pub(crate) fn credentials(headers: &HeaderMap) -> Result<Credentials, engine::registry::Error> {
    let header = headers.get(REGISTRY_AUTH).and_then(|value| value.to_str().ok());
    Credentials::from_header(header.unwrap_or_default())
}

/// A name with a tag or digest beside it, as old routes take them.
fn named(name: &str, tag: &str) -> Result<Reference, ApiError> {
    let reference: Reference = name.parse().map_err(Error::from)?;
    if tag.is_empty() {
        return Ok(reference);
    }
    match tag.parse() {
        Ok(digest) => Ok(reference.with_digest(digest)),
        Err(_) => Ok(reference.with_tag(tag).map_err(Error::from)?),
    }
}

/// A platform as text, or as JSON, which newer clients send.
fn platform(text: &str) -> Result<Option<Platform>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with('{') {
        let platform: ImagePlatform = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("failed to parse platform: {error}")))?;
        let text = format!("{}/{}/{}", platform.os, platform.architecture, platform.variant);
        return Ok(Some(text.trim_end_matches('/').parse().map_err(Error::from)?));
    }
    Ok(Some(text.parse().map_err(Error::from)?))
}

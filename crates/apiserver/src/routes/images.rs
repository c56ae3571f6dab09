//! `/images`: list, inspect, tag, remove, prune; what moves content is in `images/transfer.rs`.

mod transfer;

pub(super) use transfer::credentials;

use std::sync::Arc;

use axum::extract::{FromRef, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json as Answer, Router};
use docker_types::image::{
    DeleteItem, HistoryItem, ImageInspect, ImageSummary, ImagesPruneResponse,
};
use engine::containers::Phase;
use engine::images::list::ListOptions;
use engine::images::reference::Reference;
use engine::images::remove::RemoveOptions;
use engine::images::{Error, Images};
use engine::times;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::state::ApiState;
use crate::version::ApiVersion;

/// Since this version sizes have one name only.
const ONE_SIZE: ApiVersion = ApiVersion::new(1, 44);
/// Since this version an image without names has none, instead of `<none>`.
const NO_NONE: ApiVersion = ApiVersion::new(1, 43);
/// Since this version an image's configuration lacks what only containers have.
const IMAGE_CONFIG: ApiVersion = ApiVersion::new(1, 50);
/// What only containers have.
const CONTAINER_KEYS: [&str; 8] = [
    "Hostname",
    "Domainname",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
];

/// What the routes of images need of the daemon.
#[derive(Clone)]
pub(crate) struct ImageState {
    pub(crate) images: Images,
    /// Whether a container is running, by its id.
    pub(crate) is_running: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl FromRef<ApiState> for ImageState {
    fn from_ref(state: &ApiState) -> Self {
        let engine = Arc::clone(&state.engine);
        let is_running = move |id: &str| {
            let status = engine.containers.status(id);
            status.is_ok_and(|s| s.phase.is_up() || s.phase == Phase::Restarting)
        };
        Self { images: state.engine.images.clone(), is_running: Arc::new(is_running) }
    }
}

pub(crate) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ImageState: FromRef<S>,
{
    Router::new()
        .route("/images/json", get(list))
        .route("/images/search", get(search))
        .route("/images/prune", post(prune))
        .route("/images/create", post(transfer::create))
        .route("/images/load", post(transfer::load))
        .route("/images/get", get(transfer::save))
        // An image's name has slashes of its own, so what is wanted of it stands at the end.
        .route("/images/{*name}", get(read))
        .route("/images/{*name}", post(act))
        .route("/images/{*name}", delete(remove))
}

async fn list(
    State(state): State<ImageState>,
    version: ApiVersion,
    query: Query,
) -> Result<Answer<Vec<ImageSummary>>, ApiError> {
    let accepted = ["before", "dangling", "label", "reference", "since", "until"];
    let filters = query.filters(&accepted)?;
    let mut options = options(&filters)?;
    options.all = query.flag("all");
    options.shared_size = query.flag("shared-size");
    // The parameter that there was before the filter of that meaning.
    options.references.extend(query.get("filter").map(str::to_owned));
    let images = state.images;
    let mut summaries = blocking(move || images.list(&options)).await?;
    for summary in &mut summaries {
        summary.virtual_size = (version < ONE_SIZE).then_some(summary.size);
        if version < NO_NONE && summary.repo_tags.is_empty() && summary.repo_digests.is_empty() {
            summary.repo_tags.push("<none>:<none>".to_owned());
            summary.repo_digests.push("<none>@<none>".to_owned());
        }
    }
    Ok(Answer(summaries))
}

fn options(filters: &Filters) -> Result<ListOptions, ApiError> {
    let first = |key: &str| filters.get(key).first().cloned();
    let until = match filters.get("until") {
        [] => None,
        [text] => {
            let moment = times::parse(text, Timestamp::now());
            Some(moment.ok_or_else(|| Filters::invalid("until", text))?.as_second())
        }
        many => return Err(Filters::invalid("until", &many.join(" "))),
    };
    Ok(ListOptions {
        before: first("before"),
        since: first("since"),
        dangling: filters.flag("dangling")?,
        labels: filters.get("label").to_vec(),
        labels_not: filters.get("label!").to_vec(),
        references: filters.get("reference").to_vec(),
        until,
        ..ListOptions::default()
    })
}

async fn search() -> ApiError {
    ApiError::not_implemented("searching Docker Hub is not supported")
}

async fn prune(
    State(state): State<ImageState>,
    query: Query,
) -> Result<Answer<ImagesPruneResponse>, ApiError> {
    let filters = query.filters(&["dangling", "until", "label", "label!"])?;
    let options = options(&filters)?;
    let pruned = blocking(move || state.images.prune(&options, &*state.is_running)).await?;
    Ok(Answer(ImagesPruneResponse {
        images_deleted: (!pruned.items.is_empty()).then_some(pruned.items),
        space_reclaimed: pruned.bytes,
    }))
}

/// `GET /images/{name}/json`, `…/history` and `…/get`.
async fn read(
    State(state): State<ImageState>,
    Path(path): Path<String>,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    let (name, what) = split(&path)?;
    let name = name.to_owned();
    match what {
        "json" => Ok(Answer(inspect(state, name, version).await?).into_response()),
        "history" => Ok(Answer(history(state, name).await?).into_response()),
        "get" => transfer::save_names(state, vec![name]).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// `POST /images/{name}/tag` and `…/push`.
async fn act(
    State(state): State<ImageState>,
    Path(path): Path<String>,
    headers: http::HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let (name, what) = split(&path)?;
    match what {
        "tag" => tag(state, name.to_owned(), &query).await.map(IntoResponse::into_response),
        "push" => transfer::push(state, name, &query, &headers).await,
        _ => Err(ApiError::page_not_found()),
    }
}

fn split(path: &str) -> Result<(&str, &str), ApiError> {
    path.rsplit_once('/').filter(|(name, _)| !name.is_empty()).ok_or_else(ApiError::page_not_found)
}

async fn inspect(state: ImageState, name: String, version: ApiVersion) -> Result<Value, ApiError> {
    let mut inspect: ImageInspect = blocking(move || state.images.inspect(&name)).await?;
    inspect.virtual_size = (version < ONE_SIZE).then_some(inspect.size);
    let mut value = serde_json::to_value(inspect).expect("text keys and plain values");
    if version >= IMAGE_CONFIG
        && let Some(config) = value.get_mut("Config").and_then(Value::as_object_mut)
    {
        config.retain(|key, _| !CONTAINER_KEYS.contains(&key.as_str()) && key != "Image");
    }
    Ok(value)
}

async fn history(state: ImageState, name: String) -> Result<Vec<HistoryItem>, ApiError> {
    blocking(move || state.images.history(&name)).await
}

async fn tag(state: ImageState, name: String, query: &Query) -> Result<StatusCode, ApiError> {
    let mut reference: Reference = query.text("repo").parse().map_err(Error::from)?;
    if let Some(tag) = query.get("tag") {
        reference = reference.with_tag(tag).map_err(Error::from)?;
    }
    blocking(move || {
        let image = state.images.find(&name)?;
        state.images.tag(&image, &reference)
    })
    .await?;
    Ok(StatusCode::CREATED)
}

async fn remove(
    State(state): State<ImageState>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Answer<Vec<DeleteItem>>, ApiError> {
    let options = RemoveOptions { force: query.flag("force"), no_prune: query.flag("noprune") };
    let items = blocking(move || state.images.remove(&name, options, &*state.is_running)).await?;
    Ok(Answer(items))
}

/// Runs what reads and writes files on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")),
    }
}

#[cfg(test)]
mod tests;

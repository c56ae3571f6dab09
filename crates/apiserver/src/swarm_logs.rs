//! Logs of services and tasks: those of their containers, merged as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use engine::containers::Phase;
use engine::logs::{LogOptions, LogRecord};
use futures::StreamExt;
use http::header;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{Service, Task};

use crate::error::ApiError;
use crate::hijack::Framing;
use crate::logs::{self, LineForm};
use crate::query::Query;
use crate::state::ApiState;
use crate::stream;
use crate::version::ApiVersion;

const SERVICE_LABEL: &str = "com.docker.swarm.service.id";
const TASK_LABEL: &str = "com.docker.swarm.task.id";
const NODE_LABEL: &str = "com.docker.swarm.node.id";

/// Frames held for a slow client; beyond this the readers wait.
const FRAMES_MAX: usize = 256;

/// What is read, and how it is laid on the stream.
#[derive(Clone)]
struct Reading {
    options: LogOptions,
    form: LineForm,
    details: bool,
}

/// The logs of every container of a service; with `follow` also of those that come later.
pub(crate) fn of_service(
    state: &ApiState,
    service: &Arc<Service>,
    query: &Query,
    request: &Request,
) -> Result<Response, ApiError> {
    let is_tty = service.spec.task.container.tty;
    let reading = reading(query, is_tty)?;
    let label = (SERVICE_LABEL, service.id.to_string());
    respond(state, label, reading, request)
}

/// The logs of one task's container.
pub(crate) fn of_task(
    state: &ApiState,
    snapshot: &store::Snapshot,
    task: &Arc<Task>,
    query: &Query,
    request: &Request,
) -> Result<Response, ApiError> {
    let template = snapshot.template_of(task);
    let is_tty = template.is_some_and(|template| template.task.container.tty);
    let label = (TASK_LABEL, task.id.to_string());
    respond(state, label, reading(query, is_tty)?, request)
}

fn reading(query: &Query, is_tty: bool) -> Result<Reading, ApiError> {
    let form = LineForm { framing: Framing::of_tty(is_tty), timestamps: query.flag("timestamps") };
    Ok(Reading { options: logs::options(query)?, form, details: query.flag("details") })
}

fn respond(
    state: &ApiState,
    label: (&'static str, String),
    reading: Reading,
    request: &Request,
) -> Result<Response, ApiError> {
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let version = request.extensions().get().copied().unwrap_or(ApiVersion::NEWEST);
    let media_type = reading.form.framing.media_type(version);
    tokio::spawn(read_all(state.engine.clone(), label, reading, frames));
    let mut response = stream::respond("", ReceiverStream::new(receiver));
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

/// Reads every container with the label until each has ended, or until the client has gone.
async fn read_all(
    engine: Arc<engine::Engine>,
    label: (&'static str, String),
    reading: Reading,
    frames: mpsc::Sender<Bytes>,
) {
    let mut changes = engine.containers.changes();
    let mut seen = std::collections::BTreeSet::new();
    let mut readers = tokio::task::JoinSet::new();
    loop {
        for found in engine.containers.find(&[(label.0, Some(label.1.as_str()))]) {
            // One that has not started has no log yet, and its reader would take that for the end.
            let has_started = found.status.phase != Phase::Created;
            if has_started && seen.insert(found.id.clone()) {
                readers.spawn(read_one(
                    engine.clone(),
                    found.id,
                    found.labels,
                    reading.clone(),
                    frames.clone(),
                ));
            }
        }
        if !reading.options.follow {
            break;
        }
        // A new container of the service shows as a change; a lagging subscription looks again too.
        tokio::select! {
            () = frames.closed() => return,
            change = changes.recv() => {
                if matches!(change, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                    break;
                }
            }
        }
    }
    drop(frames);
    while readers.join_next().await.is_some() {}
}

async fn read_one(
    engine: Arc<engine::Engine>,
    container: String,
    labels: Arc<BTreeMap<String, String>>,
    reading: Reading,
    frames: mpsc::Sender<Bytes>,
) {
    let Ok(records) = engine.containers.logs(&container, reading.options.clone()) else { return };
    let mut records = std::pin::pin!(records);
    while let Some(Ok(record)) = records.next().await {
        if frames.send(frame(&record, &labels, &reading)).await.is_err() {
            return;
        }
    }
}

/// One record as the client reads it.
fn frame(record: &LogRecord, labels: &BTreeMap<String, String>, reading: &Reading) -> Bytes {
    let details = if reading.details { details(record, labels) } else { String::new() };
    reading.form.encode(record, &details)
}

/// `key=value,…`: where the line comes from, and the attributes of the container's log options.
fn details(record: &LogRecord, labels: &BTreeMap<String, String>) -> String {
    let own = [NODE_LABEL, SERVICE_LABEL, TASK_LABEL];
    let own = own.into_iter().filter_map(|key| Some((key, labels.get(key)?.as_str())));
    let attributes = record.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let all: BTreeMap<_, _> = attributes.chain(own).collect();
    let pairs: Vec<_> = all.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

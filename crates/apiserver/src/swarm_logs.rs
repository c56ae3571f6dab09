//! Logs of services and tasks: those of their containers, merged as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use engine::logs::{LogOptions, LogRecord, LogSource};
use futures::StreamExt;
use http::header;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{Service, Task};

use crate::error::ApiError;
use crate::hijack::Framing;
use crate::query::Query;
use crate::state::ApiState;
use crate::stream;

const SERVICE_LABEL: &str = "com.docker.swarm.service.id";
const TASK_LABEL: &str = "com.docker.swarm.task.id";
const NODE_LABEL: &str = "com.docker.swarm.node.id";

/// Frames held for a slow client; beyond this the readers wait.
const FRAMES_MAX: usize = 256;

/// What is read, and how it is laid on the stream.
#[derive(Clone)]
struct Reading {
    options: LogOptions,
    timestamps: bool,
    details: bool,
    framing: Framing,
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
    task: &Arc<Task>,
    query: &Query,
    request: &Request,
) -> Result<Response, ApiError> {
    let snapshot = state.swarm.manager()?.snapshot();
    let template = snapshot.template_of(task);
    let is_tty = template.is_some_and(|template| template.task.container.tty);
    let label = (TASK_LABEL, task.id.to_string());
    respond(state, label, reading(query, is_tty)?, request)
}

fn reading(query: &Query, is_tty: bool) -> Result<Reading, ApiError> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request("must specify at least one of 'stdout' or 'stderr'"));
    }
    Ok(Reading {
        options: LogOptions {
            stdout,
            stderr,
            since: moment(query, "since")?,
            until: moment(query, "until")?,
            // Anything but a number means all, as in Docker.
            tail: query.text("tail").parse().ok(),
            follow: query.flag("follow"),
        },
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
        framing: Framing::of_tty(is_tty),
    })
}

/// Seconds since 1970, perhaps with a fraction.
fn moment(query: &Query, key: &str) -> Result<Option<jiff::Timestamp>, ApiError> {
    let Some(text) = query.get(key).filter(|text| *text != "0") else { return Ok(None) };
    let invalid = || ApiError::bad_request(format!("invalid value for \"{key}\": {text}"));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = seconds.parse().map_err(|_| invalid())?;
    let nanoseconds = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    jiff::Timestamp::new(seconds, nanoseconds).map(Some).map_err(|_| invalid())
}

fn respond(
    state: &ApiState,
    label: (&'static str, String),
    reading: Reading,
    request: &Request,
) -> Result<Response, ApiError> {
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let version = request.extensions().get().copied().unwrap_or(crate::version::NEWEST);
    let media_type = reading.framing.media_type(version);
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
            if seen.insert(found.id.clone()) {
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
    labels: BTreeMap<String, String>,
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

/// One record as the client reads it: time, details, line, framed by stream.
fn frame(record: &LogRecord, labels: &BTreeMap<String, String>, reading: &Reading) -> Bytes {
    let mut line = Vec::with_capacity(record.line.len() + 64);
    if reading.timestamps {
        line.extend(format!("{:.9}", record.time).as_bytes());
        line.push(b' ');
    }
    if reading.details {
        line.extend(details(record, labels).as_bytes());
        line.push(b' ');
    }
    line.extend(&record.line);
    if reading.framing == Framing::Raw {
        return line.into();
    }
    let source = match record.source {
        LogSource::Stdout => 1,
        LogSource::Stderr => 2,
    };
    let mut frame = BytesMut::with_capacity(line.len() + 8);
    frame.put_u32(source << 24);
    frame.put_u32(u32::try_from(line.len()).expect("a log line is below 4 GiB"));
    frame.put_slice(&line);
    frame.freeze()
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

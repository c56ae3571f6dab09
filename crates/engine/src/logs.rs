//! Reads containers' logs: files of one JSON object a line, which the shim writes and rotates.
//!
//! A log is `<base>`, the current file, and `<base>.1`, `<base>.2`… (perhaps with `.gz`), ever older. Reading
//! goes from the oldest to the newest; following goes on from there whenever the kernel reports a change.

mod entry;
mod files;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::containers::{Status, blocking};
use crate::error::Error;

pub(crate) use files::Cursor;
pub(crate) use watcher::Watcher;

/// Records in one batch from the reading thread, and batches under way: what a slow client makes us hold.
const BATCH_RECORDS_MAX: usize = 512;
const BATCHES_MAX: usize = 4;

/// Which of its two outputs a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    Stdout,
    Stderr,
}

/// One line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    pub time: Timestamp,
    pub source: LogSource,
    /// As written, with its line feed where there was one.
    pub line: Bytes,
    /// Labels and variables that the container's log options name.
    pub attributes: BTreeMap<String, String>,
}

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// This many lines at the end; `None` is all.
    pub tail: Option<usize>,
    /// Whether to go on with what is written from now on, until the container ends.
    pub follow: bool,
}

impl LogOptions {
    fn wants(&self, record: &LogRecord) -> bool {
        let source = match record.source {
            LogSource::Stdout => self.stdout,
            LogSource::Stderr => self.stderr,
        };
        source && self.since.is_none_or(|since| record.time >= since)
    }

    fn is_past(&self, record: &LogRecord) -> bool {
        self.until.is_some_and(|until| record.time > until)
    }
}

/// A log as it is read.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogRecord, Error>> + Send>>;

/// Reads the log at `base`. With `follow`, `status` tells when there is no more to come.
pub(crate) fn read(
    base: PathBuf,
    options: LogOptions,
    follow: Option<(Watcher, watch::Receiver<Status>)>,
) -> LogStream {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    tokio::spawn(async move {
        if let Err(error) = produce(base, options, follow, &sender).await {
            // Nobody listens any more if this fails.
            let _ = sender.send(Err(error)).await;
        }
    });
    let batches = futures::stream::unfold(receiver, |mut receiver| async move {
        let batch = match receiver.recv().await? {
            Ok(records) => records.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        Some((futures::stream::iter(batch), receiver))
    });
    Box::pin(futures::StreamExt::flatten(batches))
}

type Sender = mpsc::Sender<Result<Vec<LogRecord>, Error>>;

async fn produce(
    base: PathBuf,
    options: LogOptions,
    follow: Option<(Watcher, watch::Receiver<Status>)>,
    sender: &Sender,
) -> Result<(), Error> {
    // Watched before the first read, so that nothing written in between goes unseen.
    let mut follow = match follow {
        Some((watcher, status)) => {
            let directory = base.parent().map(PathBuf::from).unwrap_or_default();
            Some((watcher.watch(&directory)?, status))
        }
        None => None,
    };
    let tail = options.tail;
    let mut cursor = blocking(move || Cursor::open(base, tail)).await?;
    loop {
        // Asked before reading: what is written before the end is then surely read.
        let is_over = follow.as_ref().is_none_or(|(_, status)| is_over(&status.borrow()));
        let drained;
        (cursor, drained) = drain(cursor, &options, sender).await?;
        if is_over || !drained {
            return Ok(());
        }
        let Some((changes, status)) = &mut follow else { return Ok(()) };
        if !changed(changes, status, &options, sender).await {
            return Ok(());
        }
    }
}

/// Sends all that can be read now. False when the reader should stop: the client left or `until` has passed.
async fn drain(
    mut cursor: Cursor,
    options: &LogOptions,
    sender: &Sender,
) -> Result<(Cursor, bool), Error> {
    loop {
        let (records, next) = blocking(move || {
            let records = cursor.next_batch(BATCH_RECORDS_MAX)?;
            Ok((records, cursor))
        })
        .await?;
        cursor = next;
        if records.is_empty() {
            return Ok((cursor, true));
        }
        let is_past = records.iter().any(|record| options.is_past(record));
        let wanted: Vec<_> = records
            .into_iter()
            .filter(|record| options.wants(record) && !options.is_past(record))
            .collect();
        if (!wanted.is_empty() && sender.send(Ok(wanted)).await.is_err()) || is_past {
            return Ok((cursor, false));
        }
    }
}

/// Waits for more to read. False when nobody wants it any more.
async fn changed(
    changes: &mut watcher::Watch,
    status: &mut watch::Receiver<Status>,
    options: &LogOptions,
    sender: &Sender,
) -> bool {
    let until = async {
        let Some(until) = options.until else { return std::future::pending().await };
        let left = std::time::Duration::try_from(until.duration_since(Timestamp::now()));
        tokio::time::sleep(left.unwrap_or_default()).await;
    };
    tokio::select! {
        () = changes.changed() => true,
        // A container that is gone counts as ended, which the next round sees.
        _ = status.changed() => true,
        () = until => false,
        () = sender.closed() => false,
    }
}

/// Whether no process will write to the log any more.
fn is_over(status: &Status) -> bool {
    use crate::containers::Phase;
    status.removed || !matches!(status.phase, Phase::Running | Phase::Paused | Phase::Restarting)
}

/// Reads a log of these bytes, from its beginning and from its end.
#[cfg(fuzzing)]
pub(crate) fn fuzz(folder: &std::path::Path, bytes: &[u8]) {
    let base = folder.join("log");
    std::fs::write(&base, bytes).expect("the log is written");
    for tail in [None, Some(0), Some(3)] {
        let Ok(mut cursor) = files::Cursor::open(base.clone(), tail) else { continue };
        let mut count = 0;
        while let Ok(records) = cursor.next_batch(16)
            && !records.is_empty()
        {
            count += records.len();
            assert!(count <= bytes.len(), "more lines than bytes");
        }
        assert!(tail.is_none_or(|tail| count <= tail), "more lines than asked for");
    }
}

#[cfg(test)]
mod tests;

//! Downloads of layers: streamed to disk, hashed on the way, resumed where they broke off.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::blobs::BlobWriter;
use super::digest::Digest;
use super::error::{Error, io_error};
use super::load::throttled;
use super::manifest::Descriptor;
use super::progress::{Progress, Reporter};
use super::store::{Images, Pins};
use crate::registry::{self, Session};

/// Attempts to bring a blob here, as in Docker.
const ATTEMPTS_MAX: u32 = 5;
/// Pieces between the network and the disk: some MiB, which evens out their speeds.
const PIECES_MAX: usize = 64;

/// What the network tells the thread that writes.
enum Piece {
    Data(Bytes),
    /// The registry sends the blob from its beginning.
    Restart,
    /// That was all.
    End,
}

/// The threads of one operation, which hold its pins until they end.
#[derive(Debug)]
pub(super) struct Work {
    pins: Arc<Pins>,
    threads: TaskTracker,
}

impl Work {
    /// Whoever drops this before [`Pins::finish`] leaves garbage, which is then collected.
    pub(super) fn new(pins: Pins) -> Self {
        pins.begin();
        Self { pins: Arc::new(pins), threads: TaskTracker::new() }
    }

    /// Runs what blocks on a thread for that, which goes on even when nobody waits for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        join(self.spawn(work)).await
    }

    /// Waits until all threads have ended.
    pub(super) async fn rest(&self) {
        self.threads.close();
        self.threads.wait().await;
    }

    pub(super) fn pins(&self) -> Arc<Pins> {
        Arc::clone(&self.pins)
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> JoinHandle<Result<T, Error>> {
        let pins = Arc::clone(&self.pins);
        self.threads.spawn_blocking(move || {
            let result = work();
            drop(pins);
            result
        })
    }
}

impl Images {
    /// Brings a blob into the store. The caller has pinned it.
    ///
    /// # Errors
    /// [`Error::Verification`] when the content is another one; what is there so far is kept for a
    /// later attempt otherwise.
    pub(super) async fn download(
        &self,
        session: &Session,
        blob: &Descriptor,
        work: &Work,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let id = blob.digest.short();
        let _alone = self.0.transfers.blob(&blob.digest).await;
        if self.0.blobs.size(&blob.digest).is_none() {
            let _turn = self.0.transfers.download(&id, reporter).await;
            self.download_attempts(session, blob, work, reporter).await?;
        }
        reporter.send(Progress::of(id, "Download complete")).await;
        Ok(())
    }

    async fn download_attempts(
        &self,
        session: &Session,
        blob: &Descriptor,
        work: &Work,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.download_once(session, blob, work, reporter).await {
                Err(Error::Registry(error)) if error.is_temporary() && attempt < ATTEMPTS_MAX => {
                    tracing::debug!(blob = %blob.digest, attempt, %error, "download broke off");
                    wait(attempt, &blob.digest.short(), reporter).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn download_once(
        &self,
        session: &Session,
        blob: &Descriptor,
        work: &Work,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let blobs = self.0.blobs.clone();
        let digest = blob.digest;
        let writer = work.run(move || blobs.resume(&digest)).await?;
        let resumed = writer.size();
        let (tx, rx) = mpsc::channel(PIECES_MAX);
        let writing = work.spawn(move || write(writer, &digest, rx));
        let received = receive(session, blob, resumed, &tx, reporter).await;
        if received.is_ok() {
            reporter.send(Progress::of(digest.short(), "Verifying Checksum")).await;
            // A writer that is gone has an error to tell, which comes first below.
            tx.send(Piece::End).await.ok();
        }
        drop(tx);
        let written = join(writing).await;
        received?;
        match written {
            // What was kept from an earlier attempt may be what is wrong.
            Err(Error::Verification { .. }) if resumed > 0 => {
                Err(registry::Error::broken(session.url_of(&digest)).into())
            }
            written => written,
        }
    }
}

async fn receive(
    session: &Session,
    blob: &Descriptor,
    resumed: u64,
    tx: &mpsc::Sender<Piece>,
    reporter: &Reporter,
) -> Result<(), Error> {
    // All of it may be here already, and no range can be asked for.
    let wanted = if resumed >= blob.size { 0 } else { resumed };
    let mut download = session.blob(&blob.digest, wanted).await?;
    if download.offset == 0 && resumed > 0 {
        tx.send(Piece::Restart).await.ok();
    }
    let report = throttled(reporter.clone(), blob.digest.short(), "Downloading", blob.size);
    let mut done = download.offset;
    while let Some(data) = download.next().await? {
        done += data.len() as u64;
        if done > blob.size {
            return Err(Error::Verification { what: "filesystem layer", expected: blob.digest });
        }
        report(done);
        if tx.send(Piece::Data(data)).await.is_err() {
            // The disk is full, or such; the writer says what it was.
            return Ok(());
        }
    }
    if done < blob.size {
        return Err(registry::Error::broken(session.url_of(&blob.digest)).into());
    }
    Ok(())
}

/// Writes what comes, on a thread of its own. When the pieces end without an end, what there is
/// stays for the next attempt.
fn write(
    mut writer: BlobWriter,
    digest: &Digest,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<(), Error> {
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Data(data) => {
                let path = writer.path().to_owned();
                writer.write_all(&data).map_err(io_error("write", &path))?;
            }
            Piece::Restart => writer.restart()?,
            Piece::End => {
                let finished = writer.finish()?;
                if finished.digest != *digest {
                    let what = "filesystem layer";
                    return Err(Error::Verification { what, expected: *digest });
                }
                return finished.commit().map(drop);
            }
        }
    }
    writer.park(digest)
}

/// The first repetition is at once: most breaks are the connection's, not the registry's.
pub(super) async fn wait(attempt: u32, id: &str, reporter: &Reporter) {
    let seconds = 1u64 << attempt.saturating_sub(1);
    if attempt == 1 {
        return;
    }
    for left in (1..=seconds).rev() {
        let unit = if left == 1 { "second" } else { "seconds" };
        reporter.send(Progress::of(id, format!("Retrying in {left} {unit}"))).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Runs what blocks on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    join(tokio::task::spawn_blocking(work)).await
}

async fn join<T>(task: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Cancelled),
    }
}

//! Progress of long operations, in the lines that Docker's clients show.

use tokio::sync::mpsc;

/// Lines that may wait for a slow client before the work waits for it.
const LINES_MAX: usize = 256;

/// One line of progress. Its fields are those of Docker's JSON messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What the line is about: a layer's short id, or a tag.
    pub id: Option<String>,
    pub status: Option<String>,
    /// Bytes done and bytes in all, each 0 when unknown; `None` where the line is no step of
    /// something that goes on.
    pub detail: Option<(u64, u64)>,
    /// Text to print as it is.
    pub stream: Option<String>,
    /// A result that only programs read.
    pub aux: Option<Aux>,
}

/// Results within a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aux {
    /// What a push made.
    Push { tag: String, digest: String, size: u64 },
}

impl Progress {
    /// A line without subject.
    pub fn status(status: impl Into<String>) -> Self {
        Self { status: Some(status.into()), ..Self::default() }
    }

    /// A remark about `id`.
    pub fn remark(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..Self::status(status) }
    }

    /// A step of `id`.
    pub fn of(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self::remark(id, status).with_detail(0, 0)
    }

    /// A result.
    pub fn aux(aux: Aux) -> Self {
        Self { aux: Some(aux), ..Self::default() }.with_detail(0, 0)
    }

    /// Plain text.
    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: Some(text.into()), ..Self::default() }
    }

    /// Adds bytes done and bytes in all.
    #[must_use]
    pub fn with_detail(mut self, current: u64, total: u64) -> Self {
        self.detail = Some((current, total));
        self
    }
}

/// Where progress goes. Cloned freely; a reporter without receiver swallows everything.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Option<mpsc::Sender<Progress>>);

/// Makes a reporter and the end that reads it.
pub fn channel() -> (Reporter, mpsc::Receiver<Progress>) {
    let (tx, rx) = mpsc::channel(LINES_MAX);
    (Reporter(Some(tx)), rx)
}

impl Reporter {
    /// One that nobody reads.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Reports a line that must not be lost, waiting while the client is behind.
    pub async fn send(&self, line: Progress) {
        if let Some(tx) = &self.0 {
            // A client that went away needs no progress.
            tx.send(line).await.ok();
        }
    }

    /// The same from a thread that may block.
    pub fn send_blocking(&self, line: Progress) {
        if let Some(tx) = &self.0 {
            tx.blocking_send(line).ok();
        }
    }

    /// Reports a line that later ones replace: dropped when the client is behind.
    pub fn tick(&self, line: Progress) {
        if let Some(tx) = &self.0 {
            tx.try_send(line).ok();
        }
    }

    /// Whether somebody was listening and is no more.
    pub fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_some_and(mpsc::Sender::is_closed)
    }
}

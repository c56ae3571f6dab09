//! Keeps the node's work on disk, so that the next daemon knows it even where no manager can be reached.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;
use types::assignment::AssignmentSet;

use crate::board::Board;
use crate::state::Files;

/// Changes come in bursts; what is written is always the newest.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) struct Keeper {
    newest: watch::Sender<AssignmentSet>,
    writer: JoinHandle<()>,
}

impl Keeper {
    /// What was told of networks is taken from `board`.
    pub(crate) fn start(files: Files, board: Arc<Board>) -> Self {
        let (newest, changes) = watch::channel(AssignmentSet::default());
        Self { newest, writer: tokio::spawn(write(files, board, changes)) }
    }

    /// Keeps the node's work, and what the board says by the time it is written.
    pub(crate) fn keep(&self, held: AssignmentSet) {
        self.newest.send_replace(held);
    }

    /// Ends when the newest is on disk.
    pub(crate) async fn end(self) {
        drop(self.newest);
        // It ends by itself, and does not panic.
        let _ = self.writer.await;
    }
}

async fn write(files: Files, board: Arc<Board>, mut changes: watch::Receiver<AssignmentSet>) {
    while changes.changed().await.is_ok() {
        let mut held = changes.borrow_and_update().clone();
        let (files, board) = (files.clone(), board.clone());
        let written = tokio::task::spawn_blocking(move || {
            held.networks = board.all().iter().map(|(id, told)| told.whole(*id)).collect();
            files.save_assignment(&held)
        });
        if let Ok(Err(error)) = written.await {
            warn!(error = format!("{error:#}"), "this node's work is not kept for its next start");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

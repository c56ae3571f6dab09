//! Removes directories behind the caller's back: unmounting a root file system has the kernel write
//! its files to disk, and deleting a large tree takes its time, neither of which anybody waits for.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::blobs::Temporary;
use super::error::{Error, io_error};
use super::rootfs::unmount;

/// Directories that wait for removal; beyond it the caller removes its own.
const WAITING_MAX: usize = 4096;

/// A thread that removes what it is given.
#[derive(Debug)]
pub(super) struct Reaper {
    /// `None` once the end has begun.
    tx: Option<SyncSender<PathBuf>>,
    thread: Option<JoinHandle<()>>,
    pending: Arc<Pending>,
}

/// How many are not removed yet.
#[derive(Debug, Default)]
struct Pending {
    count: Mutex<usize>,
    is_none: Condvar,
}

impl Reaper {
    pub(super) fn start() -> Result<Self, Error> {
        let (tx, rx) = sync_channel(WAITING_MAX);
        let pending = Arc::new(Pending::default());
        let done = Arc::clone(&pending);
        let work = move || {
            for path in rx {
                remove(path);
                done.change(|count| count - 1);
            }
        };
        let thread = std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(work)
            .map_err(io_error("start a thread to remove from", Path::new("images")))?;
        Ok(Self { tx: Some(tx), thread: Some(thread), pending })
    }

    /// Has a directory removed, with the root file system that may be mounted within.
    pub(super) fn remove(&self, path: PathBuf) {
        self.pending.change(|count| count + 1);
        let tx = self.tx.as_ref().expect("present until the drop");
        if let Err(TrySendError::Full(path) | TrySendError::Disconnected(path)) = tx.try_send(path)
        {
            remove(path);
            self.pending.change(|count| count - 1);
        }
    }

    /// Waits until everything given so far is gone.
    pub(super) fn flush(&self) {
        let count = self.pending.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.pending.is_none.wait_while(count, |count| *count > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.tx.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that removes directories panicked");
        }
    }
}

impl Pending {
    fn change(&self, to: impl Fn(usize) -> usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = to(*count);
        if *count == 0 {
            self.is_none.notify_all();
        }
    }
}

fn remove(path: PathBuf) {
    if let Err(error) = unmount(&path.join("merged")) {
        tracing::warn!(path = %path.display(), %error, "root file system stays mounted");
        return;
    }
    drop(Temporary(path));
}

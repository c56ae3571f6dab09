//! Tells followers that something changed in a log's directory: one inotify instance for all of them, since
//! the kernel grants a user few instances but many watches.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Attempt, Error};

/// Room for the kernel's events in one read, in bytes; each is 16 bytes and a name.
const EVENT_BUFFER_BYTES: usize = 16 * 1024;

/// Watches directories. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: AsyncFd<Arc<OwnedFd>>,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    by_descriptor: HashMap<i32, Entry>,
    by_path: HashMap<PathBuf, i32>,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    changes: watch::Sender<u64>,
}

/// A directory under watch, until dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    descriptor: i32,
    changes: watch::Receiver<u64>,
}

impl Watcher {
    /// Opens the kernel's queue and reads it in a task of its own.
    ///
    /// # Errors
    /// The user has no inotify instance left.
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            crate::sys::async_fd(Arc::new(fd))
        };
        let fd = open().attempt(|| "open inotify".to_owned())?;
        let shared = Arc::new(Shared { fd, watched: Mutex::default() });
        let reader = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(shared) = reader.upgrade() {
                if shared.dispatch().await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { shared })
    }

    /// Watches a directory for writes, new files and renames.
    pub(crate) fn watch(&self, directory: &Path) -> Result<Watch, Error> {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = match watched.by_path.get(directory) {
            Some(descriptor) => *descriptor,
            None => {
                let flags = WatchFlags::MODIFY
                    | WatchFlags::CREATE
                    | WatchFlags::MOVED_TO
                    | WatchFlags::ONLYDIR;
                let descriptor = inotify::add_watch(self.shared.fd.get_ref(), directory, flags)
                    .attempt(|| format!("watch {}", directory.display()))?;
                let entry = Entry { path: directory.to_owned(), changes: watch::Sender::new(0) };
                watched.by_descriptor.insert(descriptor, entry);
                watched.by_path.insert(directory.to_owned(), descriptor);
                descriptor
            }
        };
        let changes = watched.by_descriptor[&descriptor].changes.subscribe();
        Ok(Watch { shared: Arc::clone(&self.shared), descriptor, changes })
    }
}

impl Watch {
    /// Waits for a change since the last call.
    pub(crate) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The directory is gone; its container's status tells so too.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // Our own receiver is still counted.
        let is_last = watched
            .by_descriptor
            .get(&self.descriptor)
            .is_some_and(|entry| entry.changes.receiver_count() <= 1);
        if is_last && let Some(entry) = watched.by_descriptor.remove(&self.descriptor) {
            watched.by_path.remove(&entry.path);
            let _ = inotify::remove_watch(self.shared.fd.get_ref(), self.descriptor);
        }
    }
}

impl Shared {
    /// Waits for events and tells who follows.
    async fn dispatch(&self) -> std::io::Result<()> {
        let mut guard = self.fd.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER_BYTES];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => self.tell(event.wd(), event.events()),
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn tell(&self, descriptor: i32, events: inotify::ReadFlags) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if events.contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
            // Which directories changed is lost, so all may have.
            for entry in watched.by_descriptor.values() {
                entry.changes.send_modify(|count| *count += 1);
            }
            return;
        }
        if events.contains(inotify::ReadFlags::IGNORED) {
            if let Some(entry) = watched.by_descriptor.remove(&descriptor) {
                watched.by_path.remove(&entry.path);
            }
            return;
        }
        if let Some(entry) = watched.by_descriptor.get(&descriptor) {
            entry.changes.send_modify(|count| *count += 1);
        }
    }
}

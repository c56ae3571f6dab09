//! Whose turn it is to transfer: how many blobs at once, and each blob once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::digest::Digest;
use super::progress::{Progress, Reporter};

/// Blobs downloaded at once on this node, as in Docker.
const DOWNLOADS_MAX: usize = 3;
/// Blobs uploaded at once on this node, as in Docker.
const UPLOADS_MAX: usize = 5;
/// Layers unpacked or compressed at once on this node: the work is the processor's.
const WORKERS_MAX: usize = 4;

/// The turns of one node.
#[derive(Debug)]
pub(super) struct Transfers {
    downloads: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    blobs: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            downloads: Arc::new(Semaphore::new(DOWNLOADS_MAX)),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            workers: Arc::new(Semaphore::new(WORKERS_MAX)),
            blobs: Mutex::new(HashMap::new()),
        }
    }
}

impl Transfers {
    /// Waits for a turn to download, saying so.
    pub(super) async fn download(&self, id: &str, reporter: &Reporter) -> OwnedSemaphorePermit {
        turn(&self.downloads, id, reporter).await
    }

    /// Waits for a turn to upload, saying so.
    pub(super) async fn upload(&self, id: &str, reporter: &Reporter) -> OwnedSemaphorePermit {
        turn(&self.uploads, id, reporter).await
    }

    /// Waits for a turn to work.
    pub(super) async fn work(&self) -> OwnedSemaphorePermit {
        let workers = Arc::clone(&self.workers);
        workers.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits until nobody else transfers the same blob.
    pub(super) async fn blob(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks that only this map knows are of no use any more.
            blobs.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(blobs.entry(*digest).or_default())
        };
        lock.lock_owned().await
    }
}

async fn turn(semaphore: &Arc<Semaphore>, id: &str, reporter: &Reporter) -> OwnedSemaphorePermit {
    if let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() {
        return permit;
    }
    reporter.send(Progress::of(id, "Waiting")).await;
    let semaphore = Arc::clone(semaphore);
    semaphore.acquire_owned().await.expect("the semaphore is never closed")
}

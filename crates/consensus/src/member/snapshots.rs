//! Snapshots that a member takes of itself: when the log has grown enough, and when the key has changed.

use std::sync::Arc;

use crate::Error;
use crate::cipher::DataKey;
use crate::disk::Disk;
use crate::log::to_batch;
use crate::snapshot_file::{self, StoredSnapshot};
use crate::wal::file_error;

use super::{ENTRIES_KEPT, LOG_BYTES_MAX, Member};

/// The state to be written as a snapshot. It may be written while the member goes on.
#[derive(Debug)]
pub struct SnapshotJob {
    disk: Arc<dyn Disk>,
    key: DataKey,
    snapshot: StoredSnapshot,
    kept_old: usize,
}

impl SnapshotJob {
    /// Writes the snapshot; the result goes to [`Member::snapshot_done`].
    pub fn run(&self) -> (u64, Result<(), Error>) {
        let result = snapshot_file::save(&*self.disk, &self.key, &self.snapshot, self.kept_old);
        (self.snapshot.index, result)
    }
}

/// Whether something on the disk is sealed with a key that is out of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyChange {
    pub(super) is_pending: bool,
    /// The snapshot that ends it is being written.
    pub(super) is_being_written: bool,
}

impl Member {
    /// A snapshot to be written, when the log has grown enough or a key has changed. After one that was not written the
    /// next is due with the next entry.
    pub fn due_snapshot(&mut self) -> Option<SnapshotJob> {
        let entries = self.applied - self.snapshot_index;
        let is_grown = entries >= self.snapshot_interval || self.wal.bytes() >= LOG_BYTES_MAX;
        // What is sealed with the key that is out of use goes when a snapshot holds all of it.
        let renews =
            !self.is_rekeyed() && self.wal.outdated().is_none_or(|last| last <= self.applied);
        let is_refused = self.snapshot_refused_at == Some(self.applied);
        if self.snapshot_running || is_refused || !(renews || is_grown && entries > 0) {
            return None;
        }
        (self.snapshot_running, self.key_change.is_being_written) = (true, renews);
        let conf = self.node.raft.prs().conf().to_conf_state();
        let term = raft::Storage::term(self.node.store(), self.applied).unwrap_or(0);
        let snapshot = StoredSnapshot {
            index: self.applied,
            term,
            voters: conf.voters,
            learners: conf.learners,
            state: self.state(),
        };
        let (disk, key) = (self.disk.clone(), self.key.clone());
        let kept_old = if renews { 0 } else { self.kept_old };
        Some(SnapshotJob { disk, key, snapshot, kept_old })
    }

    /// Seals everything with `key` from now on. What is there is written anew with the next snapshot, which is due as
    /// soon as it can hold all of it; see [`Member::is_rekeyed`].
    ///
    /// # Errors
    /// When the disk refuses; everything is as before then.
    pub fn rekey(&mut self, key: DataKey) -> Result<(), Error> {
        if self.is_stuck() {
            return Err(Error::DiskFull);
        }
        if key != self.key {
            self.wal.rekey(key.clone())?;
            self.key = key;
            // A snapshot that is being written is sealed with the key of before.
            self.key_change = KeyChange { is_pending: true, is_being_written: false };
        }
        Ok(())
    }

    /// Whether nothing on the disk needs a key of before any more.
    pub fn is_rekeyed(&self) -> bool {
        !self.key_change.is_pending
    }

    /// Lets go of the log that a written snapshot holds.
    ///
    /// # Errors
    /// When the snapshot was not written or the log cannot be shortened; both are kept then.
    pub fn snapshot_done(&mut self, index: u64, result: Result<(), Error>) -> Result<(), Error> {
        self.snapshot_running = false;
        let renews = std::mem::take(&mut self.key_change.is_being_written);
        if result.is_err() {
            // At once it would fail again.
            self.snapshot_refused_at = Some(self.applied);
        }
        result?;
        // A newer state may have been taken over from a leader meanwhile.
        self.snapshot_index = self.snapshot_index.max(index);
        self.node.mut_store().compact(index.saturating_sub(ENTRIES_KEPT));
        // Term and vote may stand only in a segment that is about to go.
        let hard_state = self.node.store().hard_state.clone();
        self.wal.append(&to_batch(Some(&hard_state), &[]))?;
        self.wal.compact(index)?;
        if renews {
            // A file that comes back after a loss of power would need a key that is forgotten.
            self.disk.sync().map_err(file_error("flush", &*self.disk, ""))?;
            self.key_change.is_pending = false;
        }
        Ok(())
    }
}

//! The log as raft reads it: entries in memory, behind them the snapshot they follow.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{self, ConfState, Entry, EntryType, HardState};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use store::Snapshot;

use crate::live::Live;
use crate::snapshot_file::StoredSnapshot;
use crate::wal::{Batch, StoredEntry, StoredHardState};

/// States kept for followers that are being sent one. They share most of their memory.
const OFFERED_MAX: usize = 8;

/// Everything raft may ask for. The WAL holds the same, durably.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    /// Entries up to and with this one are only in the snapshot.
    base_index: u64,
    base_term: u64,
    entries: VecDeque<Entry>,
    /// The newest applied state, for followers whose next entry is compacted, and its index and term.
    state: Live,
    applied: (u64, u64),
    /// States that raft has been offered, by their index. Raft's own messages carry only the index.
    offered: RefCell<BTreeMap<u64, StoredSnapshot>>,
}

impl Log {
    /// Begins behind the entry `base`, which is an index and a term, where the state is `state`.
    pub(crate) fn new(base: (u64, u64), conf_state: ConfState, state: Live) -> Self {
        let (base_index, base_term) = base;
        let hard_state = HardState { term: base_term, commit: base_index, ..HardState::default() };
        let (entries, offered) = (VecDeque::new(), RefCell::default());
        Self {
            hard_state,
            conf_state,
            base_index,
            base_term,
            entries,
            state,
            applied: base,
            offered,
        }
    }

    /// Takes what was read from the WAL, oldest first. What the snapshot already holds is skipped.
    pub(crate) fn replay(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            if batch.replaced_by.is_some_and(|index| index <= self.base_index) {
                self.entries.clear();
            }
            for stored in batch.entries {
                if stored.index > self.base_index {
                    self.append(&[to_entry(stored)]);
                }
            }
            if let Some(stored) = batch.hard_state {
                self.hard_state.term = stored.term;
                self.hard_state.vote = stored.vote;
                self.hard_state.commit = self.hard_state.commit.max(stored.commit);
            }
        }
        self.hard_state.commit = self.hard_state.commit.min(self.last());
    }

    /// Appends entries; one that has the index of an older one replaces it and all after it.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let kept = usize::try_from(first.index - self.base_index - 1).unwrap_or(usize::MAX);
        self.entries.truncate(kept);
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets entries up to and with `index`, which a snapshot holds.
    pub(crate) fn compact(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.index <= index) {
            if let Some(entry) = self.entries.pop_front() {
                (self.base_index, self.base_term) = (entry.index, entry.term);
            }
        }
    }

    /// Says which entry the state holds as its last, by index and term.
    pub(crate) fn set_applied(&mut self, applied: (u64, u64)) {
        self.applied = applied;
    }

    /// The state that a message about a snapshot of this index speaks of.
    pub(crate) fn offered(&self, index: u64) -> Option<StoredSnapshot> {
        self.offered.borrow().get(&index).cloned()
    }

    /// Begins anew behind a snapshot.
    pub(crate) fn reset(&mut self, base_index: u64, base_term: u64, conf_state: ConfState) {
        self.entries.clear();
        (self.base_index, self.base_term, self.conf_state) = (base_index, base_term, conf_state);
        self.hard_state.commit = self.hard_state.commit.max(base_index);
    }

    /// All entries behind `index`.
    pub(crate) fn after(&self, index: u64) -> Vec<Entry> {
        self.entries.iter().filter(|entry| entry.index > index).cloned().collect()
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.back().map_or(self.base_index, |entry| entry.index)
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.base_index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base_index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let mut entries: Vec<_> = (low..high).filter_map(|index| self.at(index)).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base_index {
            return Ok(self.base_term);
        }
        if index < self.base_index {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.at(index).ok_or(StorageError::Unavailable)?;
        Ok(entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        let unavailable = || raft::Error::from(StorageError::SnapshotTemporarilyUnavailable);
        let (index, term) = self.applied;
        if index < request_index {
            return Err(unavailable());
        }
        let ConfState { voters, learners, .. } = self.conf_state.clone();
        let state = Snapshot::clone(&self.state.copy());
        let stored = StoredSnapshot { index, term, voters, learners, state };
        let told = to_snapshot(&stored);
        let mut offered = self.offered.borrow_mut();
        offered.insert(index, stored);
        while offered.len() > OFFERED_MAX {
            offered.pop_first();
        }
        Ok(told)
    }
}

/// What raft is told of a state: everything but its content.
pub(crate) fn to_snapshot(stored: &StoredSnapshot) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (stored.index, stored.term);
    metadata.set_conf_state((stored.voters.clone(), stored.learners.clone()).into());
    snapshot
}

/// What must be durable before raft goes on.
pub(crate) fn to_batch(hard_state: Option<&HardState>, entries: &[Entry]) -> Batch {
    let hard_state = hard_state.map(|state| StoredHardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    });
    let entries = entries.iter().map(|entry| StoredEntry {
        kind: entry.get_entry_type() as i32,
        term: entry.term,
        index: entry.index,
        data: entry.data.to_vec(),
        context: entry.context.to_vec(),
    });
    Batch { hard_state, entries: entries.collect(), replaced_by: None }
}

fn to_entry(stored: StoredEntry) -> Entry {
    let kind = match stored.kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    };
    let mut entry = Entry { term: stored.term, index: stored.index, ..Entry::default() };
    entry.set_entry_type(kind);
    entry.data = stored.data.into();
    entry.context = stored.context.into();
    entry
}

//! The thread around raft-rs: takes commands, keeps the log, applies what is agreed.
//!
//! One turn: take all waiting commands, let raft decide, make its entries durable with one flush, apply what is
//! committed, answer those who wait. Group commit follows from the order.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use raft::eraftpb::{Entry, EntryType};
use raft::{RawNode, StateRole};
use store::{ChangeSet, Snapshot, apply};
use tokio::sync::{broadcast, oneshot, watch};
use tracing::{error, info};

use crate::Error;
use crate::cipher::DataKey;
use crate::handle::{Applied, Config, Leadership};
use crate::log::{Log, to_batch};
use crate::snapshot_file::{self, StoredSnapshot};
use crate::wal::Wal;

/// One raft tick. Ten of them without a leader begin an election.
const TICK: Duration = Duration::from_millis(100);
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// Commands taken in one turn. Beyond this the first ones would wait too long for their flush.
const COMMANDS_PER_TURN: usize = 1_024;

/// Entries between two snapshots until the cluster's setting is known: Docker's default.
const SNAPSHOT_INTERVAL: u64 = 10_000;

/// Bytes of log after which a snapshot is taken however few entries it has: bounds disk and restart time.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Entries kept in memory behind a snapshot, for followers that are a little behind: Docker's default.
const ENTRIES_KEPT: u64 = 500;

#[derive(Debug)]
pub(crate) enum Command {
    Propose { data: Vec<u8>, reply: oneshot::Sender<Result<(), Error>> },
    SnapshotInterval(u64),
    SnapshotDone { index: u64, result: Result<(), Error> },
    Stop,
}

/// Where the driver's results go.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) state: Arc<ArcSwap<Snapshot>>,
    pub(crate) feed: broadcast::Sender<Applied>,
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Lets the thread that writes a snapshot report back.
    pub(crate) snapshot_done: SyncSender<Command>,
}

pub(crate) struct Driver {
    directory: PathBuf,
    key: DataKey,
    node: RawNode<Log>,
    wal: Wal,
    state: Snapshot,
    applied: u64,
    snapshot_index: u64,
    snapshot_interval: u64,
    snapshot_running: bool,
    waiting: HashMap<u64, oneshot::Sender<Result<(), Error>>>,
    next_proposal: u64,
    outputs: Outputs,
}

impl Driver {
    pub(crate) fn new(
        config: &Config,
        stored: StoredSnapshot,
        log: Log,
        wal: Wal,
        outputs: Outputs,
    ) -> Result<Self, Error> {
        let raft_config = raft::Config {
            id: config.raft_id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            applied: stored.index,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, log, &logger)?;
        Ok(Self {
            directory: config.directory.clone(),
            key: config.key.clone(),
            node,
            wal,
            state: stored.state,
            applied: stored.index,
            snapshot_index: stored.index,
            snapshot_interval: SNAPSHOT_INTERVAL,
            snapshot_running: false,
            waiting: HashMap::new(),
            next_proposal: 0,
            outputs,
        })
    }

    /// Elects a member that is alone and applies everything in its log.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        if self.is_alone() {
            self.node.campaign()?;
        }
        while self.node.has_ready() {
            self.turn()?;
        }
        self.outputs.state.store(Arc::new(self.state.clone()));
        Ok(())
    }

    /// Runs until told to stop. A log that cannot be written ends the member: it must not acknowledge anything more.
    pub(crate) fn run(mut self, inbox: &Receiver<Command>) {
        let mut last_tick = Instant::now();
        loop {
            let first = if self.is_alone() {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                inbox.recv_timeout(TICK.saturating_sub(last_tick.elapsed()))
            };
            match first {
                Ok(command) => {
                    if !self.take(command, inbox) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.is_alone() && last_tick.elapsed() >= TICK {
                self.node.tick();
                last_tick = Instant::now();
            }
            while self.node.has_ready() {
                if let Err(error) = self.turn() {
                    error!(error = %Chain(&error), "the log cannot be kept; this manager stops");
                    return;
                }
            }
            self.snapshot_when_due();
        }
    }

    fn is_alone(&self) -> bool {
        let status = self.node.raft.prs().conf().to_conf_state();
        status.voters.len() == 1 && status.learners.is_empty()
    }

    /// Takes a command and those already waiting behind it; false when it is time to stop.
    fn take(&mut self, first: Command, inbox: &Receiver<Command>) -> bool {
        let waiting = std::iter::from_fn(|| inbox.try_recv().ok()).take(COMMANDS_PER_TURN);
        for command in std::iter::once(first).chain(waiting) {
            match command {
                Command::Propose { data, reply } => self.propose(data, reply),
                Command::SnapshotInterval(entries) => self.snapshot_interval = entries.max(1),
                Command::SnapshotDone { index, result } => self.snapshot_done(index, result),
                Command::Stop => return false,
            }
        }
        true
    }

    fn propose(&mut self, data: Vec<u8>, reply: oneshot::Sender<Result<(), Error>>) {
        self.next_proposal += 1;
        let number = self.next_proposal;
        match self.node.propose(number.to_le_bytes().to_vec(), data) {
            Ok(()) => drop(self.waiting.insert(number, reply)),
            Err(raft::Error::ProposalDropped) => drop(reply.send(Err(Error::NoLeader))),
            Err(error) => drop(reply.send(Err(Error::Raft(error)))),
        }
    }

    /// One round of raft's [`raft::Ready`], in the order its documentation demands.
    fn turn(&mut self) -> Result<(), Error> {
        let mut ready = self.node.ready();
        if let Some(soft_state) = ready.ss() {
            let is_leader = soft_state.raft_state == StateRole::Leader;
            let term = self.node.raft.term;
            let leadership = Leadership { is_leader, leader: soft_state.leader_id, term };
            info!(leader = leadership.leader, term, is_leader, "leadership changed");
            self.outputs.leadership.send_replace(leadership);
        }
        let hard_state = ready.hs().cloned();
        let entries = ready.take_entries();
        if !entries.is_empty() || ready.must_sync() {
            self.wal.append(&to_batch(hard_state.as_ref(), &entries))?;
        }
        let log = self.node.mut_store();
        log.append(&entries);
        if let Some(hard_state) = hard_state {
            log.hard_state = hard_state;
        }
        self.apply(ready.take_committed_entries());
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().hard_state.commit = commit;
        }
        self.apply(light.take_committed_entries());
        self.node.advance_apply();
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let (mut answers, mut news) = (Vec::new(), Vec::new());
        for entry in entries {
            self.applied = entry.index;
            if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
                continue;
            }
            let outcome = self.apply_one(&entry, &mut news);
            let number = entry.context.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            if let Some(reply) = number.and_then(|number| self.waiting.remove(&number)) {
                answers.push((reply, outcome));
            }
        }
        // Published before anybody hears of it or is answered: who is told of a change must find it in the state.
        self.outputs.state.store(Arc::new(self.state.clone()));
        for applied in news {
            // Nobody listening is no failure.
            let _ = self.outputs.feed.send(applied);
        }
        for (reply, outcome) in answers {
            let _ = reply.send(outcome);
        }
    }

    fn apply_one(&mut self, entry: &Entry, news: &mut Vec<Applied>) -> Result<(), Error> {
        let set: ChangeSet = rmp_serde::from_slice(&entry.data)
            .expect("entries are written by `propose` and sealed against change");
        let (next, events) = apply(&self.state, &set)?;
        self.state = next;
        news.push(Applied { snapshot: self.state.clone(), events: events.into() });
        Ok(())
    }

    /// Writes a snapshot on a thread of its own when the log has grown enough.
    fn snapshot_when_due(&mut self) {
        let entries = self.applied - self.snapshot_index;
        let due = entries >= self.snapshot_interval || self.wal.bytes() >= LOG_BYTES_MAX;
        if self.snapshot_running || !due || entries == 0 {
            return;
        }
        let conf_state = self.node.raft.prs().conf().to_conf_state();
        let term = raft::Storage::term(self.node.store(), self.applied).unwrap_or(0);
        let snapshot = StoredSnapshot {
            index: self.applied,
            term,
            voters: conf_state.voters,
            learners: conf_state.learners,
            state: self.state.clone(),
        };
        let (directory, key) = (self.directory.clone(), self.key.clone());
        let done = self.outputs.snapshot_done.clone();
        let write = move || {
            let index = snapshot.index;
            let result = snapshot_file::save(&directory, &key, &snapshot, 0);
            let _ = done.send(Command::SnapshotDone { index, result });
        };
        let thread = std::thread::Builder::new().name("snapshot".into()).spawn(write);
        self.snapshot_running = thread.is_ok();
    }

    fn snapshot_done(&mut self, index: u64, result: Result<(), Error>) {
        self.snapshot_running = false;
        let compact = result.and_then(|()| {
            self.snapshot_index = index;
            self.node.mut_store().compact(index.saturating_sub(ENTRIES_KEPT));
            // Term and vote may stand only in a segment that is about to go.
            let hard_state = self.node.store().hard_state.clone();
            self.wal.append(&to_batch(Some(&hard_state), &[]))?;
            self.wal.compact(index)
        });
        if let Err(error) = compact {
            error!(error = %Chain(&error), "snapshot not written; the log is kept");
        }
    }
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

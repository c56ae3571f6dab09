//! What the rest of a manager holds of the consensus.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use store::{ChangeSet, Event, Snapshot};
use tokio::sync::{broadcast, oneshot, watch};
use types::limits::{ENTRY_BYTES_MAX, FEED_EVENTS_MAX, PROPOSALS_MAX};

use crate::cipher::DataKey;
use crate::driver::{Command, Driver};
use crate::snapshot_file::{self, StoredSnapshot};
use crate::wal::{Wal, file_error};
use crate::{Error, log::Log};

/// Where the consensus keeps its state, and who it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds log segments and snapshots.
    pub directory: PathBuf,
    /// This member's number; never reused within a cluster, never 0.
    pub raft_id: u64,
    pub key: DataKey,
}

/// Whether this member leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub is_leader: bool,
    /// 0 while there is none.
    pub leader: u64,
    pub term: u64,
}

/// One change set that became part of the state.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The state with it.
    pub snapshot: Snapshot,
    pub events: Arc<[Event]>,
}

/// A running member. Dropping it stops its thread after what was begun is done.
#[derive(Debug)]
pub struct Consensus {
    commands: SyncSender<Command>,
    state: Arc<ArcSwap<Snapshot>>,
    feed: broadcast::Sender<Applied>,
    leadership: watch::Receiver<Leadership>,
    thread: Option<JoinHandle<()>>,
}

/// Resolves when the change set is applied, which is after a majority has it on disk.
#[derive(Debug)]
pub struct Proposal(oneshot::Receiver<Result<(), Error>>);

impl Future for Proposal {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(answer.unwrap_or(Err(Error::Stopped)))
    }
}

impl Consensus {
    /// Makes the state of a new cluster with this one member.
    pub fn bootstrap(config: &Config) -> Result<(), Error> {
        let directory = &config.directory;
        std::fs::create_dir_all(directory).map_err(file_error("create", directory))?;
        let first = StoredSnapshot {
            index: 0,
            term: 0,
            voters: vec![config.raft_id],
            learners: Vec::new(),
            state: Snapshot::default(),
        };
        snapshot_file::save(directory, &config.key, &first, 0)
    }

    /// Reads log and snapshot and starts the member. Everything once committed is applied when this returns
    /// on a member that is alone.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::DamagedSnapshot`] where the files are not as they were written.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let directory = &config.directory;
        let stored = snapshot_file::load(directory, &config.key)?
            .ok_or_else(|| Error::NotBootstrapped { path: directory.clone() })?;
        let (wal, batches) = Wal::open(directory, &config.key)?;
        let conf_state = (stored.voters.clone(), stored.learners.clone()).into();
        let mut log = Log::new(stored.index, stored.term, conf_state);
        log.replay(batches);
        let state = Arc::new(ArcSwap::from_pointee(stored.state.clone()));
        let (feed, _) = broadcast::channel(FEED_EVENTS_MAX);
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let (commands, inbox) = sync_channel(PROPOSALS_MAX);
        let mut driver = Driver::new(
            config,
            stored,
            log,
            wal,
            crate::driver::Outputs {
                state: state.clone(),
                feed: feed.clone(),
                leadership: leadership_tx,
                snapshot_done: commands.clone(),
            },
        )?;
        driver.start()?;
        let thread = std::thread::Builder::new()
            .name("consensus".into())
            .spawn(move || driver.run(&inbox))
            .map_err(file_error("start a thread for", directory))?;
        Ok(Self { commands, state, feed, leadership, thread: Some(thread) })
    }

    /// The newest applied state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.load_full()
    }

    /// Change sets from now on. A receiver that lags begins again from [`Consensus::snapshot`].
    pub fn subscribe(&self) -> broadcast::Receiver<Applied> {
        self.feed.subscribe()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Offers `set` for agreement. Proposals of one caller are agreed to in the order of the calls.
    pub fn propose(&self, set: &ChangeSet) -> Proposal {
        let (reply, answer) = oneshot::channel();
        let data = rmp_serde::to_vec_named(set).expect("a change set is plain data");
        if data.len() > ENTRY_BYTES_MAX {
            let _ =
                reply.send(Err(Error::EntryTooLarge { bytes: data.len(), limit: ENTRY_BYTES_MAX }));
            return Proposal(answer);
        }
        if let Err(refused) = self.commands.try_send(Command::Propose { data, reply }) {
            let (command, error) = match refused {
                TrySendError::Full(command) => (command, Error::Busy(PROPOSALS_MAX)),
                TrySendError::Disconnected(command) => (command, Error::Stopped),
            };
            if let Command::Propose { reply, .. } = command {
                let _ = reply.send(Err(error));
            }
        }
        Proposal(answer)
    }

    /// How many log entries may follow the newest snapshot before the next is taken.
    pub fn set_snapshot_interval(&self, entries: u64) {
        let _ = self.commands.try_send(Command::SnapshotInterval(entries));
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

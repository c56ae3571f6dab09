//! What the rest of a manager holds of the consensus.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use store::{ChangeSet, Event, Snapshot};
use tokio::sync::{broadcast, oneshot, watch};
use types::Peers;
use types::limits::{FEED_EVENTS_MAX, PROPOSALS_MAX};

use crate::Error;
use crate::cipher::{DataKey, DataKeys};
use crate::disk::Folder;
use crate::driver::{Command, Driver, Outputs, Reply};
use crate::live::Live;
use crate::member::{Member, MemberConfig, MembershipChange};
use crate::message::{Message, StateTransfer};
use crate::offer::Offer;
use crate::wire::{Alarm, Wire};

/// Where the consensus keeps its state, and who it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds log segments and snapshots.
    pub directory: PathBuf,
    /// This member's number; never reused within a cluster, never 0.
    pub raft_id: u64,
    pub keys: DataKeys,
}

/// Whether this member leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether it leads and has applied all that was agreed before.
    pub is_leader: bool,
    /// 0 while there is none.
    pub leader: u64,
    pub term: u64,
}

/// One change set that became part of the state.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The state with it, where that is wanted: see [`MemberConfig::tells_states`].
    pub state: Option<Snapshot>,
    pub events: Arc<[Event]>,
    /// The state was replaced as a whole: what changed is not told.
    pub is_reset: bool,
}

/// A running member. Dropping it stops its thread after what was begun is done.
#[derive(Debug)]
pub struct Consensus {
    commands: SyncSender<Command>,
    alarm: Alarm,
    state: Live,
    feed: broadcast::Sender<Applied>,
    frame: watch::Receiver<u64>,
    leadership: watch::Receiver<Leadership>,
    peers: watch::Receiver<Peers>,
    is_disk_full: watch::Receiver<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Resolves when what was asked for is applied, which is after a majority has it on disk.
#[derive(Debug)]
pub struct Proposal(oneshot::Receiver<Result<(), Error>>);

impl Future for Proposal {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(answer.unwrap_or(Err(Error::Stopped)))
    }
}

fn member_config(config: &Config) -> Result<MemberConfig, Error> {
    let folder = Folder::new(&config.directory).map_err(|source| Error::File {
        action: "create",
        path: config.directory.clone(),
        source,
    })?;
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).expect("the kernel gives random bytes");
    Ok(MemberConfig {
        disk: Arc::new(folder),
        raft_id: config.raft_id,
        keys: config.keys.clone(),
        seed: u64::from_le_bytes(seed),
        tells_states: false,
    })
}

impl Consensus {
    /// Makes the state of a new cluster with this one member, beginning with `state`.
    pub fn bootstrap(config: &Config, state: Snapshot) -> Result<(), Error> {
        Member::bootstrap(&member_config(config)?, state)
    }

    /// Makes the empty state of a member that a leader is going to fill.
    pub fn prepare_join(config: &Config) -> Result<(), Error> {
        Member::prepare_join(&member_config(config)?)
    }

    /// Makes this member the only one of its cluster, with everything it knows.
    pub fn force_alone(config: &Config) -> Result<(), Error> {
        Member::force_alone(&member_config(config)?)
    }

    /// Reads log and snapshot and starts the member. Everything known to be agreed is applied when this returns.
    /// It hears other members and speaks to them by `wire`.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::DamagedSnapshot`] where the files are not as they were written.
    pub fn open(config: &Config, wire: Box<dyn Wire>) -> Result<Self, Error> {
        let member = Member::open(&member_config(config)?)?;
        let state = member.live();
        let (feed, _) = broadcast::channel(FEED_EVENTS_MAX);
        let (frame_tx, frame) = watch::channel(0);
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let (peers_tx, peers) = watch::channel(Peers::default());
        let (full_tx, is_disk_full) = watch::channel(false);
        let (commands, inbox) = sync_channel(PROPOSALS_MAX);
        let outputs = Outputs {
            feed: feed.clone(),
            frame: frame_tx,
            leadership: leadership_tx,
            peers: peers_tx,
            is_disk_full: full_tx,
            snapshot_done: commands.clone(),
        };
        let alarm = Alarm::new(wire.bell());
        let mut driver = Driver::new(member, outputs, wire, alarm.clone());
        driver.start()?;
        let thread = std::thread::Builder::new()
            .name("consensus".into())
            .spawn(move || driver.run(&inbox))
            .map_err(|source| Error::File {
                action: "start a thread for",
                path: config.directory.clone(),
                source,
            })?;
        Ok(Self {
            commands,
            alarm,
            state,
            feed,
            frame,
            leadership,
            peers,
            is_disk_full,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The newest applied state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.copy()
    }

    /// The sequence of the newest applied state.
    pub fn sequence(&self) -> u64 {
        self.state.sequence()
    }

    /// Waits until [`Consensus::snapshot`] holds every write that was answered anywhere before this call.
    ///
    /// # Errors
    /// [`Error::NoLeader`] when no majority says so in time.
    pub fn caught_up(&self) -> Proposal {
        self.request(|reply| Command::Read { reply })
    }

    /// Change sets from now on. A receiver that lags begins again from [`Consensus::snapshot`].
    pub fn subscribe(&self) -> broadcast::Receiver<Applied> {
        self.feed.subscribe()
    }

    /// Counts the changes of the cluster object and of nodes: for those who need not wake for every service and task.
    pub fn frame(&self) -> watch::Receiver<u64> {
        self.frame.clone()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    pub fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.clone()
    }

    /// Whether writes are refused because the disk is full.
    pub fn is_disk_full(&self) -> bool {
        *self.is_disk_full.borrow()
    }

    /// Whether the member has ended by itself, because its log could not be kept.
    pub fn has_failed(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the member after what was begun is done; blocks until it has ended.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        self.alarm.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Offers `set` for agreement. Proposals of one caller are agreed to in the order of the calls.
    pub fn propose(&self, set: ChangeSet) -> Proposal {
        match Offer::new(set) {
            Ok(offer) => self.request(|reply| Command::Propose { offer: Box::new(offer), reply }),
            Err(error) => {
                let (reply, answer) = oneshot::channel();
                let _ = reply.send(Err(error));
                Proposal(answer)
            }
        }
    }

    /// Adds, promotes or removes a member.
    ///
    /// # Errors
    /// Those of [`Member::change_membership`].
    pub fn change_membership(&self, change: MembershipChange) -> Proposal {
        self.request(|reply| Command::ChangeMembership { change, reply })
    }

    fn request(&self, command: impl FnOnce(Reply) -> Command) -> Proposal {
        let (reply, answer) = oneshot::channel();
        if let Err(refused) = self.queue(command(reply)) {
            let (command, error) = match refused {
                TrySendError::Full(command) => (command, Error::Busy(PROPOSALS_MAX)),
                TrySendError::Disconnected(command) => (command, Error::Stopped),
            };
            if let Command::Propose { reply, .. }
            | Command::Read { reply }
            | Command::ChangeMembership { reply, .. }
            | Command::Rekey { reply, .. } = command
            {
                let _ = reply.send(Err(error));
            }
        }
        Proposal(answer)
    }

    fn queue(&self, command: Command) -> Result<(), TrySendError<Command>> {
        self.commands.try_send(command)?;
        self.alarm.wake();
        Ok(())
    }

    /// Seals log and snapshots with `key` from now on; resolves when nothing on the disk needs another one any more.
    ///
    /// # Errors
    /// [`Error::DiskFull`] and others of the disk; what is there stays readable with the key of before.
    pub fn rekey(&self, key: DataKey) -> Proposal {
        self.request(|reply| Command::Rekey { key, reply })
    }

    /// Hands leadership to another member, if this one leads and there is one that can.
    pub fn transfer_leadership(&self) {
        let _ = self.queue(Command::TransferLeadership);
    }

    /// Takes the leader's whole state.
    pub fn step_snapshot(&self, message: Message, state: StateTransfer) {
        let _ = self.queue(Command::StepSnapshot(Box::new((message, state))));
    }

    /// A state was delivered to `to`, or not.
    pub fn report_snapshot(&self, to: u64, is_delivered: bool) {
        let _ = self.queue(Command::SnapshotSent { to, is_delivered });
    }

    /// How many log entries may follow the newest snapshot before the next is taken, and how many older ones are kept.
    pub fn set_snapshot_interval(&self, entries: u64, kept_old: usize) {
        let _ = self.queue(Command::SnapshotInterval { entries, kept_old });
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.stop();
    }
}

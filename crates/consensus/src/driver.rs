//! The thread around a [`Member`]: takes commands, lets time pass, and carries results to those who wait.
//!
//! One turn: take all waiting commands, let the member decide, make its entries durable with one flush, apply what is
//! committed, answer those who wait. Group commit follows from the order.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use store::{Event, Key};
use tokio::sync::{broadcast, oneshot, watch};
use tracing::{error, info, warn};
use types::Peers;

use crate::Error;
use crate::cipher::DataKey;
use crate::handle::{Applied, Leadership};
use crate::member::{Member, MembershipChange, Output, Ticket};
use crate::message::{Message, StateTransfer};
use crate::offer::Offer;
use crate::wire::{Alarm, Arrival, Wire};

/// One raft tick.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How long the others may wait to hear how far the log is agreed to, if no entry tells them before. Reads
/// do not wait for it: the leader's answer to them says it too.
const TOLD_WITHIN: Duration = Duration::from_millis(1);

/// Commands taken in one turn. Beyond this the first ones would wait too long for their flush.
const COMMANDS_PER_TURN: usize = 1_024;

/// Between two attempts to write to a disk that is full.
const FULL_DISK_RETRY: Duration = Duration::from_millis(500);

pub(crate) type Reply = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
pub(crate) enum Command {
    Propose { offer: Box<Offer>, reply: Reply },
    Read { reply: Reply },
    ChangeMembership { change: MembershipChange, reply: Reply },
    Rekey { key: DataKey, reply: Reply },
    TransferLeadership,
    StepSnapshot(Box<(Message, StateTransfer)>),
    SnapshotSent { to: u64, is_delivered: bool },
    SnapshotInterval { entries: u64, kept_old: usize },
    SnapshotDone { index: u64, result: Result<(), Error> },
    Stop,
}

/// Where the driver's results go.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) feed: broadcast::Sender<Applied>,
    pub(crate) frame: watch::Sender<u64>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) peers: watch::Sender<Peers>,
    pub(crate) is_disk_full: watch::Sender<bool>,
    /// Lets the thread that writes a snapshot report back.
    pub(crate) snapshot_done: SyncSender<Command>,
}

pub(crate) struct Driver {
    member: Member,
    waiting: HashMap<Ticket, Reply>,
    /// Who waits for everything to be sealed with the newest key.
    rekeying: Vec<Reply>,
    next_ticket: Ticket,
    outputs: Outputs,
    wire: Box<dyn Wire>,
    alarm: Alarm,
}

impl Driver {
    pub(crate) fn new(member: Member, outputs: Outputs, wire: Box<dyn Wire>, alarm: Alarm) -> Self {
        let (waiting, rekeying) = (HashMap::new(), Vec::new());
        Self { member, waiting, rekeying, next_ticket: 0, outputs, wire, alarm }
    }

    /// Applies everything known to be agreed, and elects a member that is alone.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.member.campaign_alone()?;
        self.settle()?;
        self.outputs.peers.send_replace(self.member.peers());
        Ok(())
    }

    /// Runs until told to stop. A log that cannot be written ends the member: it must not acknowledge anything more.
    pub(crate) fn run(mut self, inbox: &Receiver<Command>) {
        let mut last_tick = Instant::now();
        let mut untold_since = None;
        loop {
            let is_alone = self.member.is_alone();
            let untold = (!is_alone && self.member.has_untold())
                .then(|| *untold_since.get_or_insert_with(Instant::now));
            untold_since = untold;
            let patience = (!is_alone).then(|| {
                let tick = TICK.saturating_sub(last_tick.elapsed());
                untold.map_or(tick, |since| tick.min(TOLD_WITHIN.saturating_sub(since.elapsed())))
            });
            match self.alarm.sleep(&mut *self.wire, inbox, patience) {
                Ok(command) => {
                    if !self.take(command, inbox) {
                        return;
                    }
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            }
            self.hear();
            if untold_since.is_some_and(|since| since.elapsed() >= TOLD_WITHIN) {
                self.member.tell();
            }
            // One tick however long it took: a thread that was held up has not been left by its leader.
            if !is_alone && last_tick.elapsed() >= TICK {
                self.member.tick();
                last_tick = Instant::now();
                self.note_peers();
            }
            if !self.settle_or_wait(inbox) {
                return;
            }
            self.snapshot_when_due();
            if self.member.is_rekeyed() {
                self.rekeying.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
            }
        }
    }

    /// Takes a command and those already waiting behind it; false when it is time to stop.
    fn take(&mut self, first: Command, inbox: &Receiver<Command>) -> bool {
        let waiting = std::iter::from_fn(|| inbox.try_recv().ok()).take(COMMANDS_PER_TURN);
        for command in std::iter::once(first).chain(waiting) {
            match command {
                Command::Propose { offer, reply } => {
                    self.request(reply, |member, ticket| member.propose(ticket, *offer));
                }
                Command::Read { reply } => self.request(reply, |member, ticket| {
                    member.read_index(ticket);
                    Ok(())
                }),
                Command::ChangeMembership { change, reply } => {
                    self.request(reply, |member, ticket| member.change_membership(ticket, change));
                }
                Command::Rekey { key, reply } => match self.member.rekey(key) {
                    Ok(()) => self.rekeying.push(reply),
                    Err(error) => drop(reply.send(Err(error))),
                },
                Command::TransferLeadership => drop(self.member.transfer_leadership()),
                Command::StepSnapshot(arrived) => self.member.step_snapshot(arrived.0, arrived.1),
                Command::SnapshotSent { to, is_delivered } => {
                    self.member.report_snapshot(to, is_delivered);
                }
                Command::SnapshotInterval { entries, kept_old } => {
                    self.member.set_snapshot_interval(entries, kept_old);
                }
                Command::SnapshotDone { index, result } => {
                    if let Err(error) = self.member.snapshot_done(index, result) {
                        error!(error = %Chain(&error), "snapshot not written; the log is kept");
                    }
                }
                Command::Stop => return false,
            }
        }
        true
    }

    /// Takes what other members have sent.
    fn hear(&mut self) {
        let Self { member, wire, .. } = self;
        wire.receive(&mut |arrival| match arrival {
            Arrival::Message(message) => member.step(message),
            Arrival::Unreachable(id) => member.report_unreachable(id),
        });
    }

    fn request(
        &mut self,
        reply: Reply,
        ask: impl FnOnce(&mut Member, Ticket) -> Result<(), Error>,
    ) {
        self.next_ticket += 1;
        match ask(&mut self.member, self.next_ticket) {
            Ok(()) => drop(self.waiting.insert(self.next_ticket, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn settle(&mut self) -> Result<(), Error> {
        while self.member.has_work() {
            let wire = &mut self.wire;
            let output = self.member.advance(&mut |messages| wire.send(messages))?;
            self.publish(output);
        }
        Ok(())
    }

    /// Settles; false when the member has to stop. While the disk is full it goes on trying, refuses writes, and
    /// answers reads from what is there.
    fn settle_or_wait(&mut self, inbox: &Receiver<Command>) -> bool {
        loop {
            match self.settle() {
                Ok(()) => {
                    if self.outputs.is_disk_full.send_replace(false) {
                        info!("the disk has room again; the log goes on");
                    }
                    return true;
                }
                Err(error) if error.is_disk_full() => {
                    if !self.outputs.is_disk_full.send_replace(true) {
                        warn!(error = %Chain(&error), "the disk is full; this manager is read-only");
                    }
                    // Nobody knows when there will be room. What was proposed may still come about then.
                    for (_, reply) in self.waiting.drain() {
                        let _ = reply.send(Err(Error::DiskFull));
                    }
                    if !self.refuse_while_full(inbox) {
                        return false;
                    }
                }
                Err(error) => {
                    error!(error = %Chain(&error), "the log cannot be kept; this manager stops");
                    return false;
                }
            }
        }
    }

    fn refuse_while_full(&mut self, inbox: &Receiver<Command>) -> bool {
        let until = Instant::now() + FULL_DISK_RETRY;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let found = self.alarm.sleep(&mut *self.wire, inbox, Some(left));
            // What comes meanwhile is lost: to the others this member is away.
            self.hear();
            match found {
                Ok(
                    Command::Propose { reply, .. }
                    | Command::ChangeMembership { reply, .. }
                    | Command::Rekey { reply, .. },
                ) => {
                    let _ = reply.send(Err(Error::DiskFull));
                }
                Ok(Command::Read { reply }) => drop(reply.send(Ok(()))),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Ok(Command::SnapshotDone { index, .. }) => {
                    let _ = self.member.snapshot_done(index, Err(Error::DiskFull));
                }
                Ok(_) | Err(TryRecvError::Empty) => {}
            }
        }
    }

    fn publish(&mut self, output: Output) {
        if output.is_membership_changed {
            self.note_peers();
        }
        if output.applied.iter().any(concerns_frame) {
            self.outputs.frame.send_modify(|count| *count += 1);
        }
        if let Some(leadership) = output.leadership {
            let Leadership { is_leader, leader, term } = leadership;
            info!(leader, term, is_leader, "leadership changed");
            self.note_peers();
            self.outputs.leadership.send_replace(leadership);
        }
        for (ticket, answer) in output.answers {
            if let Some(reply) = self.waiting.remove(&ticket) {
                let _ = reply.send(answer);
            }
        }
        for applied in output.applied {
            // Nobody listening is no failure.
            let _ = self.outputs.feed.send(applied);
        }
    }

    fn note_peers(&self) {
        let peers = self.member.peers();
        self.outputs.peers.send_if_modified(|known| {
            let is_news = *known != peers;
            *known = peers;
            is_news
        });
    }

    /// Writes a snapshot on a thread of its own when the log has grown enough.
    fn snapshot_when_due(&mut self) {
        let Some(job) = self.member.due_snapshot() else { return };
        let (done, alarm) = (self.outputs.snapshot_done.clone(), self.alarm.clone());
        let write = move || {
            let (index, result) = job.run();
            let _ = done.send(Command::SnapshotDone { index, result });
            alarm.wake();
        };
        let thread = std::thread::Builder::new().name("snapshot".into()).spawn(write);
        if thread.is_err() {
            let _ = self.member.snapshot_done(0, Err(Error::Stopped));
        }
    }
}

fn concerns_frame(applied: &Applied) -> bool {
    let is_frame = |event: &Event| matches!(event.key, Key::Cluster | Key::Node(_));
    applied.is_reset || applied.events.iter().any(is_frame)
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

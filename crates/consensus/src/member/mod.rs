//! One member of the consensus as a deterministic machine: commands, messages and ticks go in, messages, answers and
//! applied changes come out. It has no clock, no thread and no socket; its only effect is on its [`Disk`].
//!
//! [`crate::Consensus`] runs it on a thread with a real disk, the simulator in virtual time with a disk that fails.

mod snapshots;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, HardState};
use raft::{RawNode, Ready, SnapshotStatus, StateRole};
use store::{ChangeSet, Event, Snapshot, apply_to};
use tracing::{debug, info};
use types::Peers;

use crate::cipher::{DataKey, DataKeys};
use crate::disk::Disk;
use crate::handle::{Applied, Leadership};
use crate::live::Live;
use crate::log::{Log, to_batch};
use crate::message::{Message, Outgoing, StateTransfer};
use crate::offer::{Offer, Waiting, read};
use crate::random::Random;
use crate::snapshot_file::{self, StoredSnapshot};
use crate::wal::Wal;
use crate::{Error, reads::Reads};

use snapshots::KeyChange;
pub use snapshots::SnapshotJob;

/// Ticks without a leader before an election may begin; each member adds up to [`ELECTION_JITTER`] of its own.
/// With ticks of 100 ms a dead leader is replaced in 0.9 to 1.4 s.
pub const ELECTION_TICKS: usize = 8;
const ELECTION_JITTER: usize = 6;

/// Ticks between two heartbeats of the leader.
const HEARTBEAT_TICKS: usize = 2;

/// Ticks without a word after which a member counts as unreachable.
const REACHABLE_TICKS: u64 = 15;

/// Entries between two snapshots until the cluster's setting is known: Docker's default.
const SNAPSHOT_INTERVAL: u64 = 10_000;

/// Bytes of log after which a snapshot is taken however few entries it has: bounds disk and restart time.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Entries kept in memory behind a snapshot, for followers that are a little behind: Docker's default.
const ENTRIES_KEPT: u64 = 500;

/// Bytes of entries in one message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Messages to one follower that may be without an answer.
const MESSAGES_IN_FLIGHT_MAX: usize = 256;

/// Names a request in [`Output::answers`].
pub type Ticket = u64;

/// What takes messages that belong together: they leave before the member goes on.
pub type Send<'a> = dyn FnMut(Vec<Outgoing>) + 'a;

/// A step of the membership. One is made at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that gets everything and has no vote.
    AddLearner(u64),
    /// Gives a learner its vote.
    Promote(u64),
    Remove(u64),
}

/// What a member is made of.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    pub disk: Arc<dyn Disk>,
    /// This member's number; never reused within a cluster, never 0.
    pub raft_id: u64,
    pub keys: DataKeys,
    /// Decides how long it waits before elections.
    pub seed: u64,
    /// Whether [`Output::applied`] has the state after each change set, for who compares them. It costs copies.
    pub tells_states: bool,
}

/// What one [`Member::advance`] brought about.
#[derive(Debug, Default)]
pub struct Output {
    pub applied: Vec<Applied>,
    pub answers: Vec<(Ticket, Result<(), Error>)>,
    pub leadership: Option<Leadership>,
    /// Whether somebody became a member, a voter, or neither any more.
    pub is_membership_changed: bool,
}

pub struct Member {
    disk: Arc<dyn Disk>,
    key: DataKey,
    node: RawNode<Log>,
    wal: Wal,
    state: Live,
    tells_states: bool,
    applied: u64,
    snapshot_index: u64,
    snapshot_interval: u64,
    kept_old: usize,
    snapshot_running: bool,
    /// What was applied when a snapshot could not be written.
    snapshot_refused_at: Option<u64>,
    key_change: KeyChange,
    /// Proposals of ours by the entry's index.
    waiting: BTreeMap<u64, Waiting>,
    reads: Reads,
    /// A state received with the message that raft is thinking about.
    incoming: Option<StoredSnapshot>,
    /// What could not be written yet.
    unsaved: Option<Ready>,
    random: Random,
    election_timeout: usize,
    /// The term and role that the timeout was chosen for.
    timeout_of: (u64, StateRole),
    ticks: u64,
    /// The tick at which each other member was last heard.
    heard: BTreeMap<u64, u64>,
    leadership: Leadership,
    /// How far the others were told that the log is agreed to.
    told: u64,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("raft_id", &self.node.raft.id)
            .field("leadership", &self.leadership)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl Member {
    /// Writes the first state of a new cluster whose only member this is.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn bootstrap(config: &MemberConfig, state: Snapshot) -> Result<(), Error> {
        // Index 1, not 0: members that join have nothing, so they are sent this state and learn who is in it.
        Self::write_first(config, 1, vec![config.raft_id], state)
    }

    /// Writes the empty state of a member that a leader is going to fill.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn prepare_join(config: &MemberConfig) -> Result<(), Error> {
        Self::write_first(config, 0, Vec::new(), Snapshot::default())
    }

    fn write_first(
        config: &MemberConfig,
        index: u64,
        voters: Vec<u64>,
        state: Snapshot,
    ) -> Result<(), Error> {
        let first = StoredSnapshot { index, term: index, voters, learners: Vec::new(), state };
        snapshot_file::save(&*config.disk, &config.keys.current, &first, 0)
    }

    /// Makes this member the only one, with everything that is in its log. For clusters that lost their quorum.
    ///
    /// # Errors
    /// As [`Member::open`].
    pub fn force_alone(config: &MemberConfig) -> Result<(), Error> {
        let (mut member, stored_index) = Self::read(config)?;
        // Also what was not known to be agreed: an answer may have been given for it.
        let last = member.node.store().last();
        let entries = member.node.store().after(member.applied);
        let mut output = Output::default();
        for entry in entries {
            member.applied = entry.index;
            if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                let _ = member.apply_one(read(&entry), &mut output.applied);
            }
        }
        // One past the log: the file of the state that is there keeps its place until this one is whole.
        let index = last.max(stored_index) + 1;
        let term = member.node.store().hard_state.term;
        let voters = vec![config.raft_id];
        let alone =
            StoredSnapshot { index, term, voters, learners: Vec::new(), state: member.state() };
        let replaced =
            crate::wal::Batch { hard_state: None, entries: Vec::new(), replaced_by: Some(index) };
        member.wal.append(&replaced)?;
        snapshot_file::save(&*config.disk, &config.keys.current, &alone, 0)
    }

    /// Reads log and snapshot. What was known to be agreed is applied by the first [`Member::advance`].
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::DamagedSnapshot`] where the files are not as they were written.
    pub fn open(config: &MemberConfig) -> Result<Self, Error> {
        let (member, _) = Self::read(config)?;
        Ok(member)
    }

    fn read(config: &MemberConfig) -> Result<(Self, u64), Error> {
        let disk = config.disk.clone();
        let (stored, is_current) = snapshot_file::load(&*disk, &config.keys)?
            .ok_or_else(|| Error::NotBootstrapped { path: disk.path("") })?;
        let (wal, batches) = Wal::open(disk.clone(), &config.keys)?;
        let is_pending = !is_current || wal.outdated().is_some();
        let key_change = KeyChange { is_pending, is_being_written: false };
        let conf_state = (stored.voters.clone(), stored.learners.clone()).into();
        let state = Live::new(stored.state);
        let mut log = Log::new((stored.index, stored.term), conf_state, state.clone());
        log.replay(batches);
        let raft_config = raft::Config {
            id: config.raft_id,
            election_tick: ELECTION_TICKS,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: ELECTION_TICKS + ELECTION_JITTER,
            heartbeat_tick: HEARTBEAT_TICKS,
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            // What is proposed together travels together.
            batch_append: true,
            applied: stored.index,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, log, &logger)?;
        let mut member = Self {
            disk,
            key: config.keys.current.clone(),
            node,
            wal,
            applied: stored.index,
            snapshot_index: stored.index,
            state,
            tells_states: config.tells_states,
            snapshot_interval: SNAPSHOT_INTERVAL,
            kept_old: 0,
            snapshot_running: false,
            snapshot_refused_at: None,
            key_change,
            waiting: BTreeMap::new(),
            reads: Reads::new(config.raft_id),
            incoming: None,
            unsaved: None,
            random: Random::new(config.seed),
            election_timeout: ELECTION_TICKS,
            timeout_of: (u64::MAX, StateRole::Follower),
            ticks: 0,
            heard: BTreeMap::new(),
            leadership: Leadership::default(),
            told: 0,
        };
        // See `Member::tell`.
        member.node.raft.skip_bcast_commit(true);
        Ok((member, stored.index))
    }

    pub fn raft_id(&self) -> u64 {
        self.node.raft.id
    }

    /// The newest applied state.
    pub fn state(&self) -> Snapshot {
        Snapshot::clone(&self.state.copy())
    }

    pub(crate) fn live(&self) -> Live {
        self.state.clone()
    }

    /// Raft's index of the newest applied entry.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn leadership(&self) -> Leadership {
        self.leadership
    }

    /// Whether there is nobody else: then nothing happens by the passing of time.
    pub fn is_alone(&self) -> bool {
        let conf = self.node.raft.prs().conf().to_conf_state();
        conf.voters == [self.node.raft.id] && conf.learners.is_empty()
    }

    /// Elects a member that is alone. Call it when everything agreed is applied: only then it is known who is in.
    ///
    /// # Errors
    /// When raft refuses, which it does not for a voter.
    pub fn campaign_alone(&mut self) -> Result<(), Error> {
        if self.is_alone() && self.node.raft.state != StateRole::Leader {
            self.node.campaign()?;
        }
        Ok(())
    }

    /// Who is in, and what the leader knows of them.
    pub fn peers(&self) -> Peers {
        let conf = self.node.raft.prs().conf().to_conf_state();
        let reachable = |id: &u64| self.is_reachable(*id);
        let everyone = || conf.voters.iter().chain(&conf.learners);
        let committed = self.node.raft.raft_log.committed;
        let caught_up = |id: &&u64| {
            let progress = self.node.raft.prs().get(**id);
            progress.is_some_and(|progress| progress.matched + ENTRIES_KEPT / 2 >= committed)
        };
        Peers {
            reachable: everyone().copied().filter(reachable).collect(),
            caught_up: conf.learners.iter().filter(caught_up).copied().collect(),
            voters: conf.voters.iter().copied().collect(),
            learners: conf.learners.iter().copied().collect(),
        }
    }

    fn is_reachable(&self, id: u64) -> bool {
        let heard = self.heard.get(&id);
        id == self.node.raft.id
            || heard.is_some_and(|tick| self.ticks.saturating_sub(*tick) <= REACHABLE_TICKS)
    }

    /// How many log entries may follow the newest snapshot before the next, and how many older snapshots are kept.
    pub fn set_snapshot_interval(&mut self, entries: u64, kept_old: usize) {
        (self.snapshot_interval, self.kept_old) = (entries.max(1), kept_old);
    }

    /// Offers a change set for agreement.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::NoLeader`], [`Error::DiskFull`].
    pub fn propose(&mut self, ticket: Ticket, offer: Offer) -> Result<(), Error> {
        self.must_lead()?;
        let proposed = self.node.propose(Vec::new(), offer.data);
        self.proposed(proposed, ticket, Some(offer.set))
    }

    fn proposed(
        &mut self,
        proposed: raft::Result<()>,
        ticket: Ticket,
        set: Option<ChangeSet>,
    ) -> Result<(), Error> {
        match proposed {
            Ok(()) => {
                let waiting = Waiting { term: self.term(), ticket, set };
                self.waiting.insert(self.last_index(), waiting);
                Ok(())
            }
            Err(raft::Error::ProposalDropped) => Err(Error::NoLeader),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for the point in the log that every write answered so far is before; the answer comes when it is applied.
    pub fn read_index(&mut self, ticket: Ticket) {
        self.reads.ask(ticket);
    }

    /// Offers a change of the membership.
    ///
    /// # Errors
    /// [`Error::NotLeader`]; [`Error::MembershipBusy`] while another change is under way; [`Error::QuorumLoss`] when
    /// those left could not agree on anything; [`Error::UnknownMember`].
    pub fn change_membership(
        &mut self,
        ticket: Ticket,
        change: MembershipChange,
    ) -> Result<(), Error> {
        self.must_lead()?;
        if self.node.raft.has_pending_conf() {
            return Err(Error::MembershipBusy);
        }
        let conf = self.node.raft.prs().conf().to_conf_state();
        let (kind, id) = match change {
            MembershipChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            MembershipChange::Promote(id) => {
                if !conf.learners.contains(&id) {
                    return Err(Error::UnknownMember(id));
                }
                (ConfChangeType::AddNode, id)
            }
            MembershipChange::Remove(id) => {
                let peers = self.peers();
                if !peers.contains(id) {
                    return Err(Error::UnknownMember(id));
                }
                if !peers.can_spare(id) {
                    return Err(Error::QuorumLoss);
                }
                (ConfChangeType::RemoveNode, id)
            }
        };
        let mut conf_change = ConfChange { node_id: id, ..ConfChange::default() };
        conf_change.set_change_type(kind);
        let proposed = self.node.propose_conf_change(Vec::new(), conf_change);
        self.proposed(proposed, ticket, None)
    }

    /// Asks the reachable voter that is furthest to lead in this one's place; false when there is none, or this one
    /// does not lead.
    pub fn transfer_leadership(&mut self) -> bool {
        if self.node.raft.state != StateRole::Leader || self.is_stuck() {
            return false;
        }
        let conf = self.node.raft.prs().conf().to_conf_state();
        let others =
            conf.voters.iter().filter(|id| **id != self.raft_id() && self.is_reachable(**id));
        let matched =
            |id: &&u64| self.node.raft.prs().get(**id).map_or(0, |progress| progress.matched);
        let Some(next) = others.max_by_key(matched).copied() else { return false };
        info!(next, "leadership is handed over");
        self.node.transfer_leader(next);
        true
    }

    /// Whether something waits for room on the disk. Raft wants its changes saved in order, so until then this member
    /// hears nothing, says nothing and does not age; to the others it is away.
    fn is_stuck(&self) -> bool {
        self.unsaved.is_some()
    }

    fn must_lead(&self) -> Result<(), Error> {
        if self.is_stuck() {
            return Err(Error::DiskFull);
        }
        match (self.leadership.is_leader, self.node.raft.leader_id) {
            (true, _) => Ok(()),
            (false, leader) if leader == 0 || leader == self.raft_id() => Err(Error::NoLeader),
            (false, leader) => Err(Error::NotLeader { leader }),
        }
    }

    fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The newest entry of the log, agreed or not.
    pub(crate) fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Takes a message of another member. One that raft finds wrong is dropped, as the network might have.
    pub fn step(&mut self, message: Message) {
        // A state comes with its content or not at all.
        if !message.is_snapshot() {
            self.step_any(message);
        }
    }

    /// Takes a message together with the state it speaks of.
    pub fn step_snapshot(&mut self, message: Message, state: StateTransfer) {
        let metadata = message.0.get_snapshot().get_metadata();
        let fits = (metadata.index, metadata.term) == (state.0.index, state.0.term);
        if !message.is_snapshot() || !fits || self.node.snap().is_some() || self.is_stuck() {
            return;
        }
        self.incoming = Some(state.0);
        self.step_any(message);
        let is_wanted = self.node.snap().is_some();
        if !is_wanted {
            self.incoming = None;
        }
    }

    fn step_any(&mut self, message: Message) {
        if self.is_stuck() {
            return;
        }
        if self.node.raft.prs().get(message.from()).is_some() {
            self.heard.insert(message.from(), self.ticks);
        }
        if let Err(error) = self.node.step(message.0) {
            debug!(%error, "message dropped");
        }
        self.vary_timeout();
    }

    /// A message to this member could not be delivered.
    pub fn report_unreachable(&mut self, id: u64) {
        if self.is_stuck() {
            return;
        }
        self.node.report_unreachable(id);
    }

    /// A state was delivered to this member, or not.
    pub fn report_snapshot(&mut self, id: u64, is_delivered: bool) {
        if self.is_stuck() {
            return;
        }
        let status = if is_delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(id, status);
    }

    /// Lets one unit of time pass.
    pub fn tick(&mut self) {
        if self.is_stuck() {
            return;
        }
        self.ticks += 1;
        self.node.tick();
        self.vary_timeout();
        self.reads.tick();
    }

    /// Raft chooses a random timeout at each change of term or role. Ours takes its place, so that a seed decides
    /// everything.
    fn vary_timeout(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.timeout_of {
            self.timeout_of = now;
            let jitter = self.random.below(ELECTION_JITTER as u64);
            self.election_timeout = ELECTION_TICKS + usize::try_from(jitter).expect("small");
        }
        self.node.raft.set_randomized_election_timeout(self.election_timeout);
    }

    /// Whether [`Member::advance`] has something to do.
    pub fn has_work(&self) -> bool {
        self.unsaved.is_some() || self.reads.has_unasked() || self.node.has_ready()
    }

    /// Makes durable what raft wants durable, sends what it wants sent, applies what is agreed. Call it again while
    /// [`Member::has_work`].
    ///
    /// # Errors
    /// When the log cannot be written. After [`Error::is_disk_full`] it may be called again; after any other error
    /// the member must not be used any more: nothing it would say could be trusted.
    pub fn advance(&mut self, send: &mut Send<'_>) -> Result<Output, Error> {
        let mut output = Output::default();
        if !self.is_stuck() {
            self.ask_reads();
            self.reads.give_up(&mut output.answers);
        }
        let ready = match self.unsaved.take() {
            Some(ready) => ready,
            None if !self.node.has_ready() => return Ok(output),
            None => {
                let mut ready = self.node.ready();
                // The leader's entries may travel while they are being written here.
                self.send(ready.take_messages(), send);
                ready
            }
        };
        if let Err(error) = self.save(&ready) {
            self.unsaved = Some(ready);
            return Err(error);
        }
        self.finish(ready, send, &mut output);
        Ok(output)
    }

    fn ask_reads(&mut self) {
        if let Some(context) = self.reads.next_context() {
            self.node.read_index(context);
        }
        for context in self.reads.repeated() {
            self.node.read_index(context);
        }
    }

    fn save(&mut self, ready: &Ready) -> Result<(), Error> {
        if *ready.snapshot() != raft::eraftpb::Snapshot::default() {
            self.save_snapshot(ready)?;
        }
        if !ready.entries().is_empty() || ready.must_sync() {
            // Always with the newest term, vote and commit: an earlier change of the commit alone was not written.
            let hard_state = ready.hs().unwrap_or(&self.node.store().hard_state).clone();
            self.wal.append(&to_batch(Some(&hard_state), ready.entries()))?;
        }
        Ok(())
    }

    /// First a mark in the log, then the snapshot that makes it count: a crash between the two leaves the old state.
    fn save_snapshot(&mut self, ready: &Ready) -> Result<(), Error> {
        let index = ready.snapshot().get_metadata().index;
        let stored = self.incoming.as_ref().filter(|stored| stored.index == index);
        let stored = stored.expect("raft restores only the state that was just received");
        let hard_state = ready.hs().unwrap_or(&self.node.store().hard_state);
        let mut batch = to_batch(Some(hard_state), &[]);
        batch.replaced_by = Some(index);
        self.wal.append(&batch)?;
        snapshot_file::save(&*self.disk, &self.key, stored, self.kept_old)
    }

    fn finish(&mut self, mut ready: Ready, send: &mut Send<'_>, output: &mut Output) {
        if *ready.snapshot() != raft::eraftpb::Snapshot::default() {
            self.install(output);
        }
        let entries = ready.take_entries();
        self.keep(ready.hs().cloned(), &entries);
        self.send(ready.take_persisted_messages(), send);
        self.note_leadership(output);
        self.note_reads(ready.take_read_states());
        self.apply(ready.take_committed_entries(), output);
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().hard_state.commit = commit;
        }
        self.send(light.take_messages(), send);
        self.apply(light.take_committed_entries(), output);
        self.node.advance_apply();
        self.note_leadership(output);
        self.reads.settle(self.applied, &mut output.answers);
    }

    fn keep(&mut self, hard_state: Option<HardState>, entries: &[Entry]) {
        let log = self.node.mut_store();
        log.append(entries);
        if let Some(hard_state) = hard_state {
            log.hard_state = hard_state;
        }
    }

    /// Takes over a state that the leader sent.
    fn install(&mut self, output: &mut Output) {
        let stored = self.incoming.take().expect("it was saved just now");
        info!(index = stored.index, "state taken over from the leader");
        let conf_state = (stored.voters.clone(), stored.learners.clone()).into();
        let log = self.node.mut_store();
        log.reset(stored.index, stored.term, conf_state);
        log.set_applied((stored.index, stored.term));
        (self.applied, self.snapshot_index) = (stored.index, stored.index);
        self.state.change(|state| *state = stored.state);
        output.is_membership_changed = true;
        output.applied.push(self.news(Arc::from([]), true));
    }

    fn send(&mut self, messages: Vec<raft::eraftpb::Message>, send: &mut Send<'_>) {
        self.note_told(&messages);
        let with_state = |message| {
            let message = Message(message);
            if !message.is_snapshot() {
                return Some(Outgoing { message, state: None });
            }
            let index = message.0.get_snapshot().get_metadata().index;
            let state = self.node.store().offered(index).map(StateTransfer)?;
            Some(Outgoing { message, state: Some(state) })
        };
        let messages: Vec<_> = messages.into_iter().filter_map(with_state).collect();
        if !messages.is_empty() {
            send(messages);
        }
    }

    /// A leader counts as one when an entry of its own term is applied: only then its state holds all that its
    /// predecessors agreed to.
    fn note_leadership(&mut self, output: &mut Output) {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader;
        let is_ready = raft::Storage::term(self.node.store(), self.applied).ok() == Some(raft.term);
        let now =
            Leadership { is_leader: leads && is_ready, leader: raft.leader_id, term: raft.term };
        if now == self.leadership {
            return;
        }
        if self.leadership.is_leader && (!now.is_leader || now.term != self.leadership.term) {
            let lost = std::mem::take(&mut self.waiting);
            output
                .answers
                .extend(lost.into_values().map(|lost| (lost.ticket, Err(Error::LostLeadership))));
        }
        if now.is_leader {
            // Followers do not hear each other: everyone is given the time to speak.
            let conf = self.node.raft.prs().conf().to_conf_state();
            let everyone = conf.voters.into_iter().chain(conf.learners);
            self.heard = everyone.map(|id| (id, self.ticks)).collect();
        }
        self.leadership = now;
        output.leadership = Some(now);
    }

    fn note_reads(&mut self, states: Vec<raft::ReadState>) {
        for state in states {
            self.reads.known(&state.request_ctx, state.index);
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, output: &mut Output) {
        let Some(last) = entries.last().map(|entry| (entry.index, entry.term)) else { return };
        for entry in entries {
            self.applied = entry.index;
            let waiting = self.waiting.remove(&entry.index);
            let (own, others) = match waiting {
                Some(waiting) if waiting.term == entry.term => (Some(waiting), None),
                waiting => (None, waiting),
            };
            // Its place was taken by another leader's entry.
            let lost = others.map(|waiting| (waiting.ticket, Err(Error::LostLeadership)));
            output.answers.extend(lost);
            let (ticket, set) = own.map_or((None, None), |own| (Some(own.ticket), own.set));
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => Ok(()),
                EntryType::EntryNormal => {
                    let set = set.unwrap_or_else(|| read(&entry));
                    self.apply_one(set, &mut output.applied)
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    output.is_membership_changed = true;
                    self.apply_membership(&entry)
                }
            };
            output.answers.extend(ticket.map(|ticket| (ticket, outcome)));
        }
        self.node.mut_store().set_applied(last);
    }

    fn apply_one(&mut self, set: ChangeSet, news: &mut Vec<Applied>) -> Result<(), Error> {
        let events = self.state.change(|state| apply_to(state, set))?;
        news.push(self.news(events.into(), false));
        Ok(())
    }

    fn news(&self, events: Arc<[Event]>, is_reset: bool) -> Applied {
        Applied { state: self.tells_states.then(|| self.state()), events, is_reset }
    }

    fn apply_membership(&mut self, entry: &Entry) -> Result<(), Error> {
        let mut change = ConfChange::default();
        protobuf::Message::merge_from_bytes(&mut change, &entry.data)
            .expect("changes of the membership are written by raft itself");
        let conf_state = self.node.apply_conf_change(&change)?;
        info!(voters = ?conf_state.voters, learners = ?conf_state.learners, "members changed");
        let known: BTreeSet<u64> =
            conf_state.voters.iter().chain(&conf_state.learners).copied().collect();
        self.heard.retain(|id, _| known.contains(id));
        // A new member is given the time to speak before it counts as unreachable.
        for id in known {
            self.heard.entry(id).or_insert(self.ticks);
        }
        self.node.mut_store().conf_state = conf_state;
        Ok(())
    }
}

//! The run itself: one queue of events in virtual time.

use std::collections::{BTreeMap, BTreeSet};

use agent::{Action as Deed, Event as AgentEvent, Exit, Found, FoundState, Started};
use consensus::{
    DataKey, Leadership, Member, MemberConfig, MembershipChange, Outgoing, SnapshotJob, Ticket,
};
use planner::managers::{Step, next_step, write_step};
use store::Draft;
use types::assignment::{SessionMessage, StatusReport};
use types::node::{Availability, Description, ManagerStatus, Reachability, Role};
use types::service::Mode;
use types::{NodeId, TaskId};

use crate::Outcome;
use crate::clock::{Clock, Millis};
use crate::host::{Container, Daemon, Host, Link};
use crate::invariants::{
    AcknowledgedWrites, EqualReplicas, OneLeader, OneNodePerTask, Violation, Written,
    check_converged, check_forward, check_order,
};
use crate::leading::{Leading, PERIOD, Stream};
use crate::network::{HostId, LinkId, Network, Parcel, Wire};
use crate::operator::{self, Wanted};
use crate::plan::{Action, BUSY, FIRST_MANAGERS, HOSTS, QUIET, What};
use crate::random::Random;

const TICK: Millis = 100;
/// Between two looks of a leader at sessions and seats.
const LOOK: Millis = 100;
/// A look that comes later than this was held up, and nobody was heard meanwhile.
const STALL: Millis = 300;
const AGENT: Millis = 250;
/// How long a node waits for the answer to a heartbeat.
const HEARTBEAT_TIMEOUT: Millis = 1_200;
const SEAT_TIMEOUT: Millis = 25_000;
/// After a plan that was not agreed to.
const RETRY: Millis = 200;

/// Events of a whole run: some ten times of what a busy one has. More means that something turns in a circle.
const EVENTS_MAX: u64 = 600_000;

/// Events that wait at a time: queues and messages stay within limits (design, section 8).
const QUEUE_MAX: usize = 60_000;

#[derive(Debug)]
enum Happening {
    Tick(HostId, u64),
    Look { host: HostId, run: u64, due: Millis },
    Wake(HostId, u64),
    Agent(HostId, u64),
    Arrive { from: HostId, to: HostId, parcel: Parcel },
    Deed { host: HostId, run: u64, deed: Deed },
    Snapshot { host: HostId, run: u64, job: SnapshotJob },
    Plan(usize),
    Start(HostId),
    HealNetwork,
    DiskHasRoom(HostId),
    DiskIsFast(HostId),
    Settle,
    Activate,
}

/// Whom an answer of the consensus is for.
#[derive(Debug)]
enum Purpose {
    Planning,
    Operator(Written),
    Report { link: LinkId, reports: Vec<StatusReport> },
    Seat { host: HostId, raft_id: u64 },
    Seated { host: HostId, raft_id: u64 },
    Membership,
}

pub(crate) struct World {
    now: Millis,
    sequence: u64,
    queue: BTreeMap<(Millis, u64), Happening>,
    random: Random,
    seed: u64,
    plan: Vec<Action>,
    hosts: Vec<Host>,
    network: Network,
    members: BTreeMap<u64, HostId>,
    roles: BTreeMap<HostId, Role>,
    purposes: BTreeMap<(HostId, u64, Ticket), Purpose>,
    next_ticket: Ticket,
    next_write: u64,
    events: u64,
    leaders: OneLeader,
    replicas: EqualReplicas,
    tasks: OneNodePerTask,
    written: AcknowledgedWrites,
    violation: Option<Violation>,
}

impl World {
    pub(crate) fn new(seed: u64, plan: &[Action]) -> Self {
        let mut random = Random::new(seed);
        let host = |random: &mut Random| {
            let ahead = i64::try_from(random.below(4_000)).expect("small") - 2_000;
            Host::new(NodeId::from_random(random.id()), Clock { ahead })
        };
        let hosts = (0..HOSTS).map(|_| host(&mut random)).collect();
        let mut world = Self {
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            random,
            seed,
            plan: plan.to_vec(),
            hosts,
            network: Network::new(),
            members: BTreeMap::new(),
            roles: BTreeMap::new(),
            purposes: BTreeMap::new(),
            next_ticket: 0,
            next_write: 0,
            events: 0,
            leaders: OneLeader::default(),
            replicas: EqualReplicas::default(),
            tasks: OneNodePerTask::default(),
            written: AcknowledgedWrites::default(),
            violation: None,
        };
        world.bootstrap();
        world
    }

    fn bootstrap(&mut self) {
        let raft_id = self.random.next() | 1;
        self.hosts[0].seat = Some(raft_id);
        self.members.insert(raft_id, 0);
        Member::bootstrap(&self.member_config(0, raft_id)).expect("an empty disk takes it");
        self.start(0);
        let role = |host| if host < FIRST_MANAGERS { Role::Manager } else { Role::Worker };
        let nodes: Vec<_> =
            self.hosts.iter().enumerate().map(|(host, known)| (known.node, role(host))).collect();
        let own = nodes[0].0;
        self.write(0, Purpose::Planning, |draft| {
            operator::write_cluster(draft, &nodes);
            let node = draft.node(own).cloned().expect("just put");
            draft.update_node(&node, |node| node.manager = Some(seat(raft_id)));
        });
        for host in 1..HOSTS {
            self.start(host);
        }
        for index in 0..self.plan.len() {
            self.at(self.plan[index].at + 3_000, Happening::Plan(index));
        }
        self.at(3_000 + BUSY + 15_000, Happening::Settle);
    }

    /// Runs to the end, or to the first broken promise.
    pub(crate) fn run(mut self) -> Outcome {
        let end = 3_000 + BUSY + 15_000 + QUIET;
        while self.violation.is_none() {
            let Some(((at, _), happening)) = self.queue.pop_first() else { break };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            self.events += 1;
            self.happen(happening);
            if self.events > EVENTS_MAX || self.queue.len() > QUEUE_MAX {
                let last = format!("{:?}", self.queue.values().next());
                let last: String = last.chars().take(120).collect();
                let what =
                    format!("{} events, {} wait, first {last}", self.events, self.queue.len());
                self.fail("bounded", Err(what));
            }
        }
        if self.violation.is_none() {
            self.check_end();
        }
        Outcome { violation: self.violation, events: self.events, acknowledged: self.written.count }
    }

    fn at(&mut self, at: Millis, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    fn after(&mut self, pause: Millis, happening: Happening) {
        self.at(self.now + pause, happening);
    }

    fn fail(&mut self, invariant: &'static str, outcome: Result<(), String>) {
        if let (Err(what), None) = (outcome, &self.violation) {
            self.violation = Some(Violation { invariant, at: self.now, what });
        }
    }

    fn happen(&mut self, happening: Happening) {
        let acting = match &happening {
            Happening::Tick(host, run)
            | Happening::Wake(host, run)
            | Happening::Agent(host, run) => Some((*host, Some(*run))),
            Happening::Look { host, run, .. }
            | Happening::Deed { host, run, .. }
            | Happening::Snapshot { host, run, .. } => Some((*host, Some(*run))),
            Happening::Arrive { to, .. } => Some((*to, None)),
            _ => None,
        };
        if let Some((host, run)) = acting {
            let known = &self.hosts[host];
            if known.daemon.is_none() || run.is_some_and(|run| run != known.run) {
                self.lost(happening);
                return;
            }
            if known.frozen_until > self.now {
                let thaw = known.frozen_until;
                self.at(thaw, happening);
                return;
            }
        }
        match happening {
            Happening::Tick(host, run) => self.tick(host, run),
            Happening::Look { host, run, due } => self.look(host, run, due),
            Happening::Wake(host, _) => self.wake(host),
            Happening::Agent(host, run) => self.agent_turn(host, run),
            Happening::Arrive { from, to, parcel } => self.arrive(from, to, parcel),
            Happening::Deed { host, deed, .. } => self.deed_done(host, deed),
            Happening::Snapshot { host, job, .. } => self.snapshot_written(host, &job),
            Happening::Plan(index) => self.act(&self.plan[index].what.clone()),
            Happening::Start(host) => self.start(host),
            Happening::HealNetwork => self.network.heal(),
            Happening::DiskHasRoom(host) => self.hosts[host].disk.set_full(false),
            Happening::DiskIsFast(host) => self.hosts[host].is_disk_slow = false,
            Happening::Settle => self.settle(),
            Happening::Activate => self.activate(),
        }
    }

    /// What was under way in a daemon that is not there any more.
    fn lost(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive { parcel: Parcel::Link { link, .. }, .. } => {
                self.network.break_link(link);
            }
            // The container may have been made before the daemon ended.
            Happening::Deed { host, deed: Deed::Prepare { task, .. }, .. }
                if self.random.chance(50) =>
            {
                self.hosts[host].containers.entry(task.id).or_insert(Container::Created);
            }
            _ => {}
        }
    }

    // The daemon.

    fn member_config(&self, host: HostId, raft_id: u64) -> MemberConfig {
        MemberConfig {
            disk: std::sync::Arc::new(self.hosts[host].disk.clone()),
            raft_id,
            key: DataKey::new([7; 32]),
            seed: self.seed ^ raft_id ^ self.hosts[host].run,
        }
    }

    fn start(&mut self, host: HostId) {
        if self.hosts[host].daemon.is_some() {
            return;
        }
        self.hosts[host].run += 1;
        let run = self.hosts[host].run;
        let daemon =
            Daemon { member: None, leading: None, agent: agent::Agent::default(), link: None };
        self.hosts[host].daemon = Some(daemon);
        if let Some(raft_id) = self.hosts[host].seat {
            self.open_member(host, raft_id);
        }
        let found: Vec<_> = self.hosts[host].containers.iter().map(|(id, c)| (*id, *c)).collect();
        let since = self.hosts[host].clock.read(self.now);
        for (task, container) in found {
            let state = match container {
                Container::Created => FoundState::Created,
                Container::Running => FoundState::Running { started: Started::default(), since },
                Container::Exited { code } => {
                    FoundState::Exited { exit: Exit { code, message: String::new() } }
                }
            };
            let container = Found { container: task.to_string(), state };
            self.tell_agent(host, AgentEvent::Found { task, container });
        }
        let (tick, pause) = (self.random.below(TICK), self.random.below(AGENT));
        self.after(tick, Happening::Tick(host, run));
        self.after(pause, Happening::Agent(host, run));
        let due = self.now + LOOK;
        self.at(due, Happening::Look { host, run, due });
    }

    fn open_member(&mut self, host: HostId, raft_id: u64) {
        match Member::open(&self.member_config(host, raft_id)) {
            Ok(member) => {
                if let Some(daemon) = &mut self.hosts[host].daemon {
                    daemon.member = Some(member);
                }
                self.drive(host);
                if let Some(member) = self.member(host) {
                    member.campaign_alone().expect("a voter may campaign");
                }
                self.drive(host);
            }
            // A disk that is full takes no new segment; the daemon does not start.
            Err(error) if error.is_disk_full() => self.stop(host, Some(2_000)),
            Err(error) => self.fail("acknowledged_writes", Err(format!("host {host}: {error}"))),
        }
    }

    fn member(&mut self, host: HostId) -> Option<&mut Member> {
        self.hosts[host].daemon.as_mut()?.member.as_mut()
    }

    fn stop(&mut self, host: HostId, back_after: Option<Millis>) {
        let known = &mut self.hosts[host];
        if known.daemon.take().is_none() {
            return;
        }
        known.frozen_until = 0;
        if let Some(pause) = back_after {
            self.after(pause, Happening::Start(host));
        }
    }

    /// Lets the member do everything it can do now, and passes on what comes of it.
    fn drive(&mut self, host: HostId) {
        loop {
            let mut sent = Vec::new();
            let Some(member) = self.member(host) else { return };
            if !member.has_work() {
                break;
            }
            let output = member.advance(&mut |outgoing| sent.push(outgoing));
            for outgoing in sent {
                self.send_raft(host, outgoing);
            }
            match output {
                Ok(output) => self.take_output(host, output),
                Err(error) if error.is_disk_full() => return,
                Err(error) => {
                    self.fail("acknowledged_writes", Err(format!("host {host}: {error}")));
                    return;
                }
            }
        }
        if self.hosts[host].is_disk_slow {
            let busy = self.random.between(20, 800);
            let until = self.now + busy;
            self.hosts[host].frozen_until = self.hosts[host].frozen_until.max(until);
        }
        let run = self.hosts[host].run;
        if let Some(job) = self.member(host).and_then(Member::due_snapshot) {
            let pause = self.random.between(1, 500);
            self.after(pause, Happening::Snapshot { host, run, job });
        }
    }

    fn take_output(&mut self, host: HostId, output: consensus::Output) {
        for applied in &output.applied {
            let outcome = self.replicas.note(&applied.snapshot);
            self.fail("equal_replicas", outcome);
            self.fail("forward_states", check_forward(&applied.events));
            self.fail("order_of_state", check_order(&applied.snapshot));
            self.dispatch(host, &applied.events);
        }
        if let Some(leadership) = output.leadership {
            self.lead(host, leadership);
        }
        for (ticket, answer) in output.answers {
            let run = self.hosts[host].run;
            if let Some(purpose) = self.purposes.remove(&(host, run, ticket)) {
                self.answered(host, purpose, answer);
            }
        }
    }

    fn lead(&mut self, host: HostId, leadership: Leadership) {
        let (run, now) = (self.hosts[host].run, self.hosts[host].clock.read(self.now));
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(member) = &daemon.member else { return };
        if !leadership.is_leader {
            daemon.leading = None;
            return;
        }
        let raft_id = member.raft_id();
        if daemon.leading.as_ref().is_none_or(|leading| leading.term != leadership.term) {
            daemon.leading = Some(Leading::new(leadership.term, member.state(), now));
            let outcome = self.leaders.note(leadership.term, raft_id);
            self.fail("one_leader", outcome);
            self.after(0, Happening::Wake(host, run));
        }
    }

    /// Writes as the leader's writer does; false when this host does not lead or the write was refused.
    fn write(&mut self, host: HostId, purpose: Purpose, change: impl FnOnce(&mut Draft)) -> bool {
        self.next_ticket += 1;
        let (ticket, run, clock) = (self.next_ticket, self.hosts[host].run, self.hosts[host].clock);
        let now = clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return false };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &mut daemon.member) else {
            return false;
        };
        let written = leading.write(member, ticket, now, &mut self.random, change);
        match (leading.wake_at.map(|at| clock.until(at)), &written) {
            (_, Err(_)) => self.after(RETRY, Happening::Wake(host, run)),
            (Some(wake), Ok(_)) => self.at(wake, Happening::Wake(host, run)),
            (None, Ok(_)) => {}
        }
        match written {
            Ok(Some(_)) => drop(self.purposes.insert((host, run, ticket), purpose)),
            Ok(None) => self.answered(host, purpose, Ok(())),
            Err(_) => return false,
        }
        self.drive(host);
        true
    }

    fn answered(&mut self, host: HostId, purpose: Purpose, answer: Result<(), consensus::Error>) {
        if answer.is_err()
            && let Some(leading) =
                self.hosts[host].daemon.as_mut().and_then(|daemon| daemon.leading.as_mut())
        {
            leading.fall_back();
            let run = self.hosts[host].run;
            self.after(RETRY, Happening::Wake(host, run));
        }
        match purpose {
            Purpose::Operator(written) if answer.is_ok() => self.written.note(written),
            Purpose::Report { link, reports } => {
                let wire = match answer {
                    Ok(()) => Wire::Reported(reports),
                    Err(_) => Wire::NotLeader,
                };
                self.send_link(host, link, link.0, wire);
            }
            Purpose::Seat { host: joining, raft_id } => match answer {
                Ok(()) => self.add_learner(host, joining, raft_id),
                Err(_) => self.unseat(joining, raft_id),
            },
            Purpose::Seated { host: joining, raft_id } => match answer {
                Ok(()) => {
                    let own = self.member(joining).map(|member| member.raft_id());
                    if own == Some(raft_id) {
                        self.hosts[joining].seat = Some(raft_id);
                    }
                }
                Err(_) => self.unseat(joining, raft_id),
            },
            _ => {}
        }
    }

    // Time.

    fn tick(&mut self, host: HostId, run: u64) {
        if let Some(member) = self.member(host)
            && !member.is_alone()
        {
            member.tick();
        }
        self.drive(host);
        // Clocks of hosts run a little fast or slow.
        let skew = self.random.below(7);
        self.after(TICK - 3 + skew, Happening::Tick(host, run));
    }

    fn wake(&mut self, host: HostId) {
        let now = self.hosts[host].clock.read(self.now);
        let leading = self.hosts[host].daemon.as_ref().and_then(|daemon| daemon.leading.as_ref());
        let is_due = leading.and_then(|leading| leading.wake_at).is_some_and(|at| at <= now);
        if is_due {
            self.write(host, Purpose::Planning, |_| {});
        }
    }

    fn look(&mut self, host: HostId, run: u64, due: Millis) {
        let next = self.now + LOOK;
        self.at(next, Happening::Look { host, run, due: next });
        if !self.hosts[host].is_leading() {
            return;
        }
        let late = self.now - due;
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &mut daemon.member) else {
            return;
        };
        if late > STALL {
            leading.dispatcher.postpone(std::time::Duration::from_millis(late));
            return;
        }
        let expired = leading.dispatcher.expire(now);
        for node in &expired {
            leading.streams.remove(node);
        }
        let step = next_step(member.state(), &member.peers(), member.raft_id());
        for node in expired {
            self.write(host, Purpose::Planning, |draft| {
                dispatcher::write_down(draft, node, "heartbeat failure");
            });
        }
        if let Some(step) = step {
            self.take_step(host, &step);
        }
    }

    fn take_step(&mut self, host: HostId, step: &Step) {
        match step {
            Step::GiveVote(raft_id) => self.change(host, MembershipChange::Promote(*raft_id)),
            Step::Remove(raft_id) => self.change(host, MembershipChange::Remove(*raft_id)),
            Step::HandOver => {
                if let Some(member) = self.member(host) {
                    member.transfer_leadership();
                }
                self.drive(host);
            }
            Step::ClearSeat(_) | Step::WriteReachability(_) => {
                self.write(host, Purpose::Planning, |draft| write_step(draft, step));
            }
        }
    }

    fn change(&mut self, host: HostId, change: MembershipChange) {
        self.request_change(host, change, Purpose::Membership);
    }

    fn request_change(&mut self, host: HostId, change: MembershipChange, purpose: Purpose) -> bool {
        self.next_ticket += 1;
        let (ticket, run) = (self.next_ticket, self.hosts[host].run);
        let asked = self.member(host).map(|member| member.change_membership(ticket, change));
        let is_asked = matches!(asked, Some(Ok(())));
        if is_asked {
            self.purposes.insert((host, run, ticket), purpose);
        }
        self.drive(host);
        is_asked
    }

    fn snapshot_written(&mut self, host: HostId, job: &SnapshotJob) {
        let (index, result) = job.run();
        if let Some(member) = self.member(host) {
            // A disk that is full keeps the log; the next snapshot comes later.
            let _ = member.snapshot_done(index, result);
        }
        self.drive(host);
    }

    // Seats.

    fn take_seat(&mut self, host: HostId) {
        self.hosts[host].seat_asked = Some(self.now);
        let Some(leader) = self.leader_for(host) else { return };
        let raft_id = self.random.next() | 1;
        self.hosts[host].disk.wipe();
        if Member::prepare_join(&self.member_config(host, raft_id)).is_err() {
            return;
        }
        self.members.insert(raft_id, host);
        self.open_member(host, raft_id);
        let node = self.hosts[host].node;
        let is_written = self.write(leader, Purpose::Seat { host, raft_id }, |draft| {
            let known = draft.node(node).filter(|node| node.spec.role == Role::Manager).cloned();
            if let Some(known) = known {
                draft.update_node(&known, |node| node.manager = Some(seat(raft_id)));
            }
        });
        if !is_written {
            self.unseat(host, raft_id);
        }
    }

    fn add_learner(&mut self, leader: HostId, joining: HostId, raft_id: u64) {
        let purpose = Purpose::Seated { host: joining, raft_id };
        let change = MembershipChange::AddLearner(raft_id);
        if !self.request_change(leader, change, purpose) {
            self.unseat(joining, raft_id);
        }
    }

    /// Gives up a seat that was not given; another one is asked for later.
    fn unseat(&mut self, host: HostId, raft_id: u64) {
        let is_own = self.member(host).is_some_and(|member| member.raft_id() == raft_id);
        if is_own && let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.member = None;
            daemon.leading = None;
        }
    }

    // Nodes.

    /// A host that leads and can be reached.
    fn leader_for(&self, from: HostId) -> Option<HostId> {
        let leads = |host: &HostId| {
            let known = &self.hosts[*host];
            known.is_leading()
                && known.frozen_until <= self.now
                && self.network.connects(from, *host)
        };
        (0..HOSTS).find(leads)
    }

    fn agent_turn(&mut self, host: HostId, run: u64) {
        let pause = self.random.between(AGENT - 20, AGENT + 20);
        self.after(pause, Happening::Agent(host, run));
        self.follow_role(host);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(link) = &daemon.link else {
            self.open_link(host);
            return;
        };
        let (id, manager, session) = (link.id, link.manager, link.session);
        let is_silent = self.now - link.last_heard > HEARTBEAT_TIMEOUT;
        if is_silent || self.network.is_broken(id) {
            daemon.link = None;
            self.tell_agent(host, AgentEvent::Disconnected);
        } else if let Some(session) = session {
            self.send_link(host, id, manager, Wire::Heartbeat { session });
        }
    }

    /// Does what the node's steward does.
    fn follow_role(&mut self, host: HostId) {
        let role = self.roles.get(&host).copied();
        let has_member = self.member(host).is_some();
        let asked = self.hosts[host].seat_asked;
        let waited = asked.map_or(Millis::MAX, |asked| self.now - asked);
        match role {
            Some(Role::Manager) if !has_member && waited > 1_000 => self.take_seat(host),
            Some(Role::Manager)
                if has_member && self.hosts[host].seat.is_none() && waited > SEAT_TIMEOUT =>
            {
                let raft_id = self.member(host).map_or(0, |member| member.raft_id());
                self.unseat(host, raft_id);
            }
            Some(Role::Worker) if has_member => {
                let raft_id = self.member(host).map_or(0, |member| member.raft_id());
                self.unseat(host, raft_id);
                self.hosts[host].seat = None;
                self.hosts[host].disk.wipe();
            }
            _ => {}
        }
    }

    fn open_link(&mut self, host: HostId) {
        let managers: Vec<_> = (0..HOSTS)
            .filter(|other| {
                self.hosts[*other].daemon.as_ref().is_some_and(|daemon| daemon.member.is_some())
            })
            .collect();
        if managers.is_empty() {
            return;
        }
        let manager = managers[self.random.index(managers.len())];
        self.hosts[host].links += 1;
        let id = (host, self.hosts[host].links);
        let link = Link { id, manager, session: None, last_heard: self.now };
        if let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.link = Some(link);
        }
        self.send_link(host, id, manager, Wire::Open);
    }

    fn send_link(&mut self, from: HostId, link: LinkId, to: HostId, wire: Wire) {
        self.send(from, to, Parcel::Link { link, wire });
    }

    fn send_raft(&mut self, from: HostId, outgoing: Outgoing) {
        let Some(to) = self.members.get(&outgoing.message.to()).copied() else { return };
        self.send(from, to, Parcel::Raft(Box::new(outgoing)));
    }

    fn send(&mut self, from: HostId, to: HostId, parcel: Parcel) {
        let arrivals = self.network.arrivals(self.now, (from, to), &parcel, &mut self.random);
        if let (Parcel::Raft(outgoing), true) = (&parcel, arrivals.is_empty()) {
            let (id, is_state) = (outgoing.message.to(), outgoing.state.is_some());
            if let Some(member) = self.member(from) {
                match is_state {
                    true => member.report_snapshot(id, false),
                    false => member.report_unreachable(id),
                }
            }
        }
        for at in arrivals {
            self.at(at, Happening::Arrive { from, to, parcel: parcel.clone() });
        }
    }

    fn arrive(&mut self, from: HostId, to: HostId, parcel: Parcel) {
        match parcel {
            Parcel::Raft(outgoing) => {
                let Outgoing { message, state } = *outgoing;
                let id = message.to();
                let Some(member) = self.member(to).filter(|member| member.raft_id() == id) else {
                    return;
                };
                match state {
                    None => member.step(message),
                    Some(state) => {
                        member.step_snapshot(message, state);
                        if let Some(sender) = self.member(from) {
                            sender.report_snapshot(id, true);
                        }
                    }
                }
                self.drive(to);
            }
            Parcel::Link { link, wire } => {
                if self.network.is_broken(link) {
                    return;
                }
                let is_answer = matches!(
                    wire,
                    Wire::Opened { .. }
                        | Wire::NotLeader
                        | Wire::Message(_)
                        | Wire::Heard
                        | Wire::Reported(_)
                );
                if is_answer {
                    self.at_node(to, link, wire);
                } else {
                    self.at_manager(to, link, wire);
                }
            }
        }
    }

    fn at_node(&mut self, host: HostId, id: LinkId, wire: Wire) {
        let now = self.now;
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(link) = daemon.link.as_mut().filter(|link| link.id == id) else { return };
        link.last_heard = now;
        match wire {
            Wire::Opened { session } => {
                link.session = Some(session);
                self.tell_agent(host, AgentEvent::Connected);
            }
            Wire::NotLeader => {
                daemon.link = None;
                self.tell_agent(host, AgentEvent::Disconnected);
            }
            Wire::Message(message) => match *message {
                SessionMessage::Assignments(set) => {
                    self.tell_agent(host, AgentEvent::Assigned(set));
                }
                SessionMessage::News(news) => drop(self.roles.insert(host, news.role)),
            },
            Wire::Reported(reports) => self.tell_agent(host, AgentEvent::Reported(reports)),
            Wire::Heard | Wire::Open | Wire::Heartbeat { .. } | Wire::Report { .. } => {}
        }
    }

    fn at_manager(&mut self, host: HostId, link: LinkId, wire: Wire) {
        let node = self.hosts[link.0].node;
        if !self.hosts[host].is_leading() {
            self.send_link(host, link, link.0, Wire::NotLeader);
            return;
        }
        match wire {
            Wire::Open => self.open_session(host, link, node),
            Wire::Heartbeat { session } => {
                let now = self.hosts[host].clock.read(self.now);
                let leading = self.leading(host);
                let heard = leading.dispatcher.heartbeat(node, session, PERIOD, now);
                let wire = if heard.is_ok() { Wire::Heard } else { Wire::NotLeader };
                self.send_link(host, link, link.0, wire);
            }
            Wire::Report { session, reports } => {
                let is_current = self.leading(host).dispatcher.is_current(node, session);
                if !is_current {
                    self.send_link(host, link, link.0, Wire::NotLeader);
                } else {
                    let kept = reports.clone();
                    self.write(host, Purpose::Report { link, reports: kept }, |draft| {
                        dispatcher::write_reports(draft, node, &reports);
                    });
                }
            }
            _ => {}
        }
    }

    fn leading(&mut self, host: HostId) -> &mut Leading {
        let daemon = self.hosts[host].daemon.as_mut().expect("asked only while it runs");
        daemon.leading.as_mut().expect("asked only while it leads")
    }

    fn open_session(&mut self, host: HostId, link: LinkId, node: NodeId) {
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &daemon.member) else { return };
        let (session, first) = leading.dispatcher.register(member.state(), node, PERIOD, now);
        leading.streams.insert(node, Stream { link, session });
        self.send_link(host, link, link.0, Wire::Opened { session });
        for message in first {
            self.send_link(host, link, link.0, Wire::Message(Box::new(message)));
        }
        self.write(host, Purpose::Planning, |draft| {
            dispatcher::write_ready(draft, node, &Description::default(), "");
        });
    }

    fn dispatch(&mut self, host: HostId, events: &[store::Event]) {
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &daemon.member) else { return };
        let mut sends = Vec::new();
        for send in leading.dispatcher.changed(member.state(), events) {
            let stream = leading.streams.get(&send.node);
            if let Some(stream) = stream.filter(|stream| stream.session == send.session) {
                sends.push((stream.link, send.message));
            }
        }
        for (link, message) in sends {
            self.send_link(host, link, link.0, Wire::Message(Box::new(message)));
        }
    }

    // Containers.

    fn tell_agent(&mut self, host: HostId, event: AgentEvent) {
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let deeds = daemon.agent.handle(event, now);
        let run = self.hosts[host].run;
        for deed in deeds {
            let pause = match &deed {
                Deed::Prepare { .. } => self.random.between(20, 500),
                Deed::Start { .. } | Deed::Remove { .. } => self.random.between(5, 50),
                Deed::Stop { .. } => self.random.between(10, 3_000),
                Deed::Report(reports) => {
                    self.report(host, reports.clone());
                    continue;
                }
                Deed::Publish { .. } => continue,
            };
            self.after(pause, Happening::Deed { host, run, deed });
        }
    }

    fn report(&mut self, host: HostId, reports: Vec<StatusReport>) {
        let link = self.hosts[host].daemon.as_ref().and_then(|daemon| daemon.link.as_ref());
        let open = link.and_then(|link| Some((link.id, link.manager, link.session?)));
        if let Some((id, manager, session)) = open {
            self.send_link(host, id, manager, Wire::Report { session, reports });
        }
    }

    fn deed_done(&mut self, host: HostId, deed: Deed) {
        let node = self.hosts[host].node;
        let containers = &mut self.hosts[host].containers;
        let event = match deed {
            Deed::Prepare { task, .. } => {
                containers.entry(task.id).or_insert(Container::Created);
                AgentEvent::Prepared { task: task.id, result: Ok(task.id.to_string()) }
            }
            Deed::Start { task, .. } => {
                containers.insert(task, Container::Running);
                let outcome = self.tasks.started(task, node);
                self.fail("one_node_per_task", outcome);
                AgentEvent::Started { task, result: Ok(Started::default()) }
            }
            Deed::Stop { task, .. } => {
                let exit = Exit { code: 143, message: String::new() };
                containers.insert(task, Container::Exited { code: 143 });
                AgentEvent::Stopped { task, exit }
            }
            Deed::Remove { task, .. } => {
                containers.remove(&task);
                AgentEvent::Removed { task }
            }
            Deed::Report(_) | Deed::Publish { .. } => return,
        };
        self.tell_agent(host, event);
    }

    fn exit_container(&mut self, host: HostId, task: TaskId, code: i32) {
        self.hosts[host].containers.insert(task, Container::Exited { code });
        let exit = Exit { code, message: String::new() };
        self.tell_agent(host, AgentEvent::Exited { task, exit });
    }

    // What operators and fate do.

    fn act(&mut self, what: &What) {
        match *what {
            What::Service { number, replicas, image, is_start_first } => {
                self.write_service(number, Mode::Replicated { replicas }, image, is_start_first);
            }
            What::Global { number } => self.write_service(number, Mode::Global, 0, false),
            What::RemoveService { number } => self.remove_service(number),
            What::Availability { host, word } => {
                let word = match word {
                    0 => Availability::Active,
                    1 => Availability::Pause,
                    _ => Availability::Drain,
                };
                self.set_availability(host, word);
            }
            What::Promote { host } => self.set_role(host, Role::Manager),
            What::Demote { host } => self.set_role(host, Role::Worker),
            What::Kill { host, back_after } => self.stop(host, Some(back_after)),
            What::PowerLoss { host, back_after } => self.lose_power(host, back_after),
            What::Freeze { host, duration } => {
                self.hosts[host].frozen_until = self.now + duration;
            }
            What::Partition { mask, duration } => {
                let side = |bit: u64| -> BTreeSet<HostId> {
                    (0..HOSTS).filter(|host| (mask >> host) & 1 == bit).collect()
                };
                self.network.partition(vec![side(0), side(1)]);
                self.after(duration, Happening::HealNetwork);
            }
            What::Unreliable { loss, delay, duration } => {
                (self.network.loss, self.network.delay) = (loss, delay);
                self.after(duration, Happening::HealNetwork);
            }
            What::FullDisk { host, duration } => {
                self.hosts[host].disk.set_full(true);
                self.after(duration, Happening::DiskHasRoom(host));
            }
            What::SlowDisk { host, duration } => {
                self.hosts[host].is_disk_slow = true;
                self.after(duration, Happening::DiskIsFast(host));
            }
            What::Crash { host } => {
                let running = self.hosts[host].containers.iter();
                let running: Vec<_> = running
                    .filter(|(_, container)| **container == Container::Running)
                    .map(|(task, _)| *task)
                    .collect();
                if !running.is_empty() {
                    let task = running[self.random.index(running.len())];
                    self.exit_container(host, task, 1);
                }
            }
            What::HandOver => {
                if let Some(leader) = self.leader_for(0) {
                    self.take_step(leader, &Step::HandOver);
                }
            }
        }
    }

    /// The leader, found by way of a host that happens to be asked.
    fn asked_leader(&mut self) -> Option<HostId> {
        let asked = self.random.index(HOSTS);
        self.leader_for(asked)
    }

    fn write_service(&mut self, number: u64, mode: Mode, image: u64, is_start_first: bool) {
        let Some(leader) = self.asked_leader() else { return };
        self.next_write += 1;
        let write = self.next_write;
        let wanted = Wanted {
            name: format!("s{number}"),
            mode,
            image: format!("image:{image}"),
            is_start_first,
            write,
        };
        let new_id = self.random.id();
        let head = self.member(leader).map(|member| member.state().clone());
        let known = head.and_then(|state| Some(state.service_by_name(&wanted.name)?.id));
        let id = known.unwrap_or_else(|| types::ServiceId::from_random(new_id));
        // The head may know of a service that the agreed state does not; such a write is not judged.
        let purpose = Purpose::Operator(Written::Service { id, write });
        let mut found = id;
        self.write_judged(leader, purpose, |draft| {
            found = operator::write_service(draft, &wanted, new_id);
            found == id
        });
    }

    /// Writes; what turns out to speak of another object than its purpose says is not judged.
    fn write_judged(
        &mut self,
        leader: HostId,
        purpose: Purpose,
        change: impl FnOnce(&mut Draft) -> bool,
    ) {
        let mut fits = true;
        let before = self.next_ticket + 1;
        self.write(leader, purpose, |draft| fits = change(draft));
        if !fits {
            let run = self.hosts[leader].run;
            self.purposes.remove(&(leader, run, before));
        }
    }

    fn remove_service(&mut self, number: u64) {
        let Some(leader) = self.asked_leader() else { return };
        let name = format!("s{number}");
        let state = self.member(leader).map(|member| member.state().clone());
        let Some(id) = state.and_then(|state| Some(state.service_by_name(&name)?.id)) else {
            return;
        };
        self.next_write += 1;
        let write = self.next_write;
        self.written.removal_asked(id);
        let purpose = Purpose::Operator(Written::Removed { id, write });
        self.write_judged(leader, purpose, |draft| {
            operator::remove_service(draft, &name) == Some(id)
        });
    }

    fn set_availability(&mut self, host: HostId, availability: Availability) {
        let Some(leader) = self.asked_leader() else { return };
        let node = self.hosts[host].node;
        self.write(leader, Purpose::Planning, |draft| {
            operator::set_availability(draft, node, availability);
        });
    }

    fn set_role(&mut self, host: HostId, role: Role) {
        let Some(leader) = self.asked_leader() else { return };
        let node = self.hosts[host].node;
        let peers = self.member(leader).map(|member| member.peers()).unwrap_or_default();
        self.write(leader, Purpose::Planning, |draft| {
            operator::set_role(draft, node, role, |seat| peers.can_spare(seat));
        });
    }

    fn lose_power(&mut self, host: HostId, back_after: Millis) {
        self.stop(host, Some(back_after));
        let disk = self.hosts[host].disk.clone();
        disk.lose_power(&mut self.random);
        for container in self.hosts[host].containers.values_mut() {
            if *container == Container::Running {
                *container = Container::Exited { code: 137 };
            }
        }
    }

    /// The end of all faults.
    fn settle(&mut self) {
        self.network.heal();
        for host in 0..HOSTS {
            self.hosts[host].disk.set_full(false);
            self.hosts[host].is_disk_slow = false;
            self.hosts[host].frozen_until = 0;
            self.start(host);
        }
        for pause in [5_000, 10_000, 20_000] {
            self.after(pause, Happening::Activate);
        }
    }

    fn activate(&mut self) {
        for host in 0..HOSTS {
            self.set_availability(host, Availability::Active);
        }
    }

    fn check_end(&mut self) {
        let Some(leader) = self.leader_for(0) else {
            self.fail("converged", Err("nobody leads".into()));
            return;
        };
        let Some(state) = self.member(leader).map(|member| member.state().clone()) else { return };
        let outcome = self.written.check(&state);
        self.fail("acknowledged_writes", outcome);
        let containers: Vec<_> =
            self.hosts.iter().map(|host| (host.node, &host.containers)).collect();
        let outcome = check_converged(&state, &containers);
        self.fail("converged", outcome);
    }
}

fn seat(raft_id: u64) -> ManagerStatus {
    ManagerStatus { raft_id, address: String::new(), reachability: Reachability::Reachable }
}

//! The run itself: one queue of events in virtual time.

mod containers;
mod fate;
mod manager;
mod session;

use std::collections::BTreeMap;

use agent::Action as Deed;
use consensus::{Member, SnapshotJob, Ticket};
use store::Snapshot;
use types::NodeId;
use types::assignment::StatusReport;
use types::node::{ManagerStatus, Reachability, Role};

use crate::Outcome;
use crate::clock::{Clock, Millis};
use crate::host::{Container, Host};
use crate::invariants::{
    AcknowledgedWrites, EqualReplicas, OneLeader, OneNodePerTask, Violation, Written,
    check_converged, check_told,
};
use crate::network::{HostId, LinkId, Network, Parcel};
use crate::operator;
use crate::plan::{Action, BUSY, FIRST_MANAGERS, HOSTS, QUIET};
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
    Snapshot { host: HostId, run: u64, job: Box<SnapshotJob> },
    Plan(usize),
    Start(HostId),
    Join(HostId),
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
    Ready { link: LinkId },
    Down { nodes: Vec<NodeId> },
    Operator(Written),
    Report { link: LinkId, reports: Vec<StatusReport> },
    Seat { host: HostId, raft_id: u64 },
    Seated { host: HostId, raft_id: u64 },
    Membership,
    Join(HostId),
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
    /// Nodes that were left by their hosts.
    left: Vec<NodeId>,
    purposes: BTreeMap<(HostId, u64, Ticket), Purpose>,
    next_ticket: Ticket,
    next_write: u64,
    events: u64,
    leaders: OneLeader,
    replicas: EqualReplicas,
    tasks: OneNodePerTask,
    written: AcknowledgedWrites,
    violation: Option<Violation>,
    tell: Option<fn(&str)>,
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
            left: Vec::new(),
            purposes: BTreeMap::new(),
            next_ticket: 0,
            next_write: 0,
            events: 0,
            leaders: OneLeader::default(),
            replicas: EqualReplicas::default(),
            tasks: OneNodePerTask::default(),
            written: AcknowledgedWrites::default(),
            violation: None,
            tell: None,
        };
        world.bootstrap();
        world
    }

    fn bootstrap(&mut self) {
        let raft_id = self.random.next() | 1;
        self.hosts[0].seat = Some(raft_id);
        self.members.insert(raft_id, 0);
        Member::bootstrap(&self.member_config(0, raft_id), Snapshot::default())
            .expect("an empty disk takes it");
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

    /// Has every event told, but for what comes again and again.
    pub(crate) fn told(mut self, tell: fn(&str)) -> Self {
        self.tell = Some(tell);
        self
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
            if let Some(tell) = self.tell
                && !matches!(
                    happening,
                    Happening::Tick(..) | Happening::Agent(..) | Happening::Look { .. }
                )
            {
                tell(&format!("{at} {happening:?}"));
            }
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
            Happening::Join(host) => self.join(host),
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

    fn check_end(&mut self) {
        let Some(leader) = self.leader_for(0) else {
            self.fail("converged", Err("nobody leads".into()));
            return;
        };
        let Some(state) = self.member(leader).map(|member| member.state()) else { return };
        let outcome = self.written.check(&state);
        self.fail("acknowledged_writes", outcome);
        let containers: Vec<_> =
            self.hosts.iter().map(|host| (host.node, &host.containers)).collect();
        let outcome = check_converged(&state, &containers);
        self.fail("converged", outcome);
        let daemons = self.hosts.iter().filter_map(|host| Some((host.node, host.daemon.as_ref()?)));
        let told: Vec<_> = daemons.map(|(node, daemon)| (node, &daemon.told)).collect();
        let outcome = check_told(&state, &told);
        self.fail("told_networks", outcome);
    }
}

fn seat(raft_id: u64) -> ManagerStatus {
    ManagerStatus { raft_id, address: String::new(), reachability: Reachability::Reachable }
}

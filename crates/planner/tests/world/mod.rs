//! A small cluster under test: a snapshot, the incremental planner, virtual time, and agents that obey.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test file uses its own part"
)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use planner::Planner;
use planner::check::check;
use planner::services;
use store::{ChangeSet, Draft, Key, Snapshot, apply};
use types::network::{Network, NetworkSpec, Subnet};
use types::node::{Availability, Description, NodeSpec, NodeState, NodeStatus};
use types::resources::{Requirements, Resources};
use types::service::Mode;
use types::{Meta, NetworkId, Node, NodeId, ServiceId, ServiceSpec, Task, TaskState, Timestamp};

pub struct World {
    pub snapshot: Snapshot,
    pub planner: Planner,
    pub now: Timestamp,
    pub wake_at: Option<Timestamp>,
    ids: u128,
}

/// The network that every swarm begins with.
fn ingress() -> Network {
    let subnet = "10.255.0.0/16".parse().expect("a subnet");
    let gateway = "10.255.0.1".parse().expect("an address");
    Network {
        id: NetworkId::from_random(u128::MAX),
        meta: Meta::default(),
        spec: NetworkSpec { is_ingress: true, ..NetworkSpec::default() },
        vni: 4_096,
        subnets: vec![Subnet { subnet, range: None, gateway }],
    }
}

impl Default for World {
    fn default() -> Self {
        let snapshot = Snapshot::default();
        let planner = Planner::new(&snapshot);
        Self { snapshot, planner, now: Timestamp(1_000_000_000), wake_at: None, ids: 0 }
    }
}

impl World {
    pub fn with_nodes(count: u128) -> Self {
        let mut world = Self::default();
        world.write(|draft| draft.put(ingress()));
        for number in 1..=count {
            world.add_node(number);
        }
        world.plan();
        world
    }

    pub fn add_node(&mut self, number: u128) {
        let node = Node {
            id: node_id(number),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: Description {
                hostname: format!("n{number}"),
                resources: Resources {
                    nano_cpus: 4_000_000_000,
                    memory_bytes: 1 << 30,
                    ..Resources::default()
                },
                ..Description::default()
            },
            status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
            manager: None,
        };
        self.write(|draft| draft.put(node));
    }

    pub fn node(&mut self, number: u128, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.snapshot.node(node_id(number)).cloned() {
            self.write(|draft| draft.update_node(&node, change));
        }
    }

    /// Creates or updates a service as control does.
    pub fn service(&mut self, number: u128, change: impl FnOnce(&mut ServiceSpec)) {
        let id = ServiceId::from_random(number);
        let known = self.snapshot.service(id).cloned();
        let mut spec = known.as_ref().map_or_else(ServiceSpec::default, |s| (*s.spec).clone());
        spec.annotations.name = format!("s{number}");
        change(&mut spec);
        self.write(|draft| match known {
            Some(known) => services::update(draft, &known, spec),
            None => services::create(draft, id, spec),
        });
    }

    pub fn replicas(&mut self, number: u128, replicas: u64) {
        self.service(number, |spec| spec.mode = Mode::Replicated { replicas });
    }

    pub fn remove_service(&mut self, number: u128) {
        self.write(|draft| draft.delete(Key::Service(ServiceId::from_random(number))));
    }

    pub fn write(&mut self, change: impl FnOnce(&mut Draft)) {
        let mut draft = Draft::new(self.snapshot.clone(), self.now);
        change(&mut draft);
        self.commit(&draft.finish(), true);
    }

    fn commit(&mut self, set: &ChangeSet, by_others: bool) {
        let (snapshot, events) = apply(&self.snapshot, set).expect("made from this snapshot");
        self.snapshot = snapshot;
        if by_others {
            self.planner.observe(&self.snapshot, &events);
        }
    }

    /// Plans once; holds the incremental pass equal to the full pass, and the result to the linter.
    pub fn plan(&mut self) {
        let (full, full_wake) = self.pass(&mut Planner::new(&self.snapshot), self.ids);
        let mut planner = std::mem::replace(&mut self.planner, Planner::new(&Snapshot::default()));
        let ids = self.ids;
        let (set, wake_at) = self.pass(&mut planner, ids);
        self.ids += 1 << 20;
        self.planner = planner;
        assert_eq!(set, full, "the incremental pass differs from the full pass");
        assert_eq!(wake_at, full_wake, "the incremental pass wakes at another time");
        self.wake_at = wake_at;
        self.commit(&set, false);
        assert_eq!(check(&self.snapshot), vec![], "{}", self.show());
        let (again, _) = self.pass(&mut Planner::new(&self.snapshot), self.ids);
        assert_eq!(again.changes, vec![], "a second pass finds more to do");
    }

    fn pass(&self, planner: &mut Planner, mut ids: u128) -> (ChangeSet, Option<Timestamp>) {
        let mut draft = Draft::new(self.snapshot.clone(), self.now);
        let mut random = || {
            ids += 1;
            ids
        };
        let wake_at = planner.plan(&mut draft, &mut random);
        (draft.finish(), wake_at)
    }

    /// Reports a task's next state.
    pub fn report(&mut self, task: &Arc<Task>, state: TaskState) {
        let now = self.now;
        if !task.status.state.may_become(state) {
            return;
        }
        self.write(|draft| {
            draft.update_task(task, |task| {
                task.status.state = state;
                task.status.at = now;
                if state == TaskState::Running {
                    task.status.running_since = Some(now);
                }
            });
        });
    }

    /// One round of obedience: each agent brings its tasks where they shall be.
    pub fn agents_obey(&mut self) {
        let tasks: Vec<_> = self.snapshot.tasks().cloned().collect();
        for task in tasks {
            let alive = task
                .node
                .and_then(|node| self.snapshot.node(node))
                .is_some_and(|node| node.status.state == NodeState::Ready);
            if !alive || task.status.state.is_terminal() {
                continue;
            }
            match task.desired_state {
                TaskState::Ready => self.report(&task, TaskState::Ready),
                TaskState::Running => self.report(&task, TaskState::Running),
                _ => self.report(&task, TaskState::Shutdown),
            }
        }
    }

    /// Plans, obeys and lets time pass until nothing moves.
    pub fn settle(&mut self) {
        for _ in 0..400 {
            let before = self.snapshot.sequence();
            self.plan();
            self.agents_obey();
            if self.snapshot.sequence() == before + 1 {
                match self.wake_at {
                    Some(wake) => self.now = self.now.max(wake),
                    None => return,
                }
            }
        }
        panic!("nothing settled:\n{}", self.show());
    }

    pub fn sleep(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    pub fn drain(&mut self, number: u128) {
        self.node(number, |node| node.spec.availability = Availability::Drain);
    }

    pub fn tasks(&self, number: u128) -> Vec<Arc<Task>> {
        self.snapshot.tasks_of(ServiceId::from_random(number)).cloned().collect()
    }

    pub fn running(&self, number: u128) -> Vec<Arc<Task>> {
        let mut tasks = self.tasks(number);
        tasks.retain(|task| task.is_wanted() && task.status.state == TaskState::Running);
        tasks.sort_by_key(|task| task.slot);
        tasks
    }

    /// Tasks as lines: service.slot, template, node, desired and observed state, reason.
    pub fn show(&self) -> String {
        let mut lines: Vec<_> = self.snapshot.tasks().cloned().collect();
        lines.sort_by_key(|task| (task.service, task.slot, task.meta.created_at, task.id));
        let mut text = String::new();
        for task in lines {
            let name = self.snapshot.template_of(&task).map_or("?", |t| t.service_name.as_str());
            let hostname = task.node.and_then(|node| self.snapshot.node(node));
            let hostname = hostname.map_or("-", |node| node.description.hostname.as_str());
            let (desired, state) = (task.desired_state.as_str(), task.status.state.as_str());
            let slot = match task.slot {
                types::task::Slot::Replica(number) => number.to_string(),
                types::task::Slot::Node(_) => "node".into(),
            };
            let image =
                self.snapshot.template_of(&task).map_or("", |t| t.task.container.image.as_str());
            let _ =
                write!(text, "{name}.{slot} {image} on {hostname}: wants {desired}, is {state}");
            let _ = match task.status.err.as_str() {
                "" => writeln!(text),
                err => writeln!(text, " ({err})"),
            };
        }
        text
    }
}

pub fn node_id(number: u128) -> NodeId {
    NodeId::from_random(number)
}

pub fn reserve_memory(bytes: i64) -> Option<Requirements> {
    let reservations = Resources { memory_bytes: bytes, ..Resources::default() };
    Some(Requirements { reservations: Some(reservations), ..Requirements::default() })
}

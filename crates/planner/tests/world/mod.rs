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

use ipnet::IpNet;

use planner::Planner;
use planner::check::check;
use planner::services;
use store::{ChangeSet, Draft, Key, Snapshot, apply};
use types::network::{ContainerAttachment, Network, NetworkSpec, Subnet};
use types::node::{Availability, Description, NodeSpec, NodeState, NodeStatus};
use types::resources::{Requirements, Resources};
use types::service::Mode;
use types::{
    Meta, NetworkId, Node, NodeId, ServiceId, ServiceSpec, Task, TaskId, TaskState, Timestamp,
};

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
        for number in 1..=3 {
            world.add_network(number);
        }
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

    /// Removes a node with what its containers have, as control does.
    pub fn remove_node(&mut self, number: u128) {
        let id = node_id(number);
        let held: Vec<_> = self.snapshot.attachments_on(id).map(|held| held.id).collect();
        self.write(|draft| {
            held.into_iter().for_each(|id| draft.delete(Key::Attachment(id)));
            draft.delete(Key::Node(id));
        });
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

    /// Makes a network, as control does: the first has room for five, the second has IPv6 too, the third gives few of many.
    pub fn add_network(&mut self, number: u128) {
        let (v4, v6, range): (_, Option<&str>, Option<&str>) = match number {
            1 => ("10.1.0.0/29", None, None),
            2 => ("10.2.0.0/24", Some("fd00:2::/64"), None),
            _ => ("10.3.0.0/16", None, Some("10.3.4.0/29")),
        };
        let subnet = |text: &str, range: Option<&str>| {
            let subnet: IpNet = text.parse().expect("a subnet");
            let gateway = subnet.hosts().next().expect("a host");
            Subnet { subnet, gateway, range: range.map(|range| range.parse().expect("a range")) }
        };
        let network = Network {
            id: network_id(number),
            meta: Meta::default(),
            spec: NetworkSpec { is_attachable: true, ..NetworkSpec::default() },
            vni: 4_096 + u32::try_from(number).expect("few"),
            subnets: std::iter::once(subnet(v4, range))
                .chain(v6.map(|v6| subnet(v6, None)))
                .collect(),
        };
        if self.snapshot.network(network.id).is_none() {
            self.write(|draft| draft.put(network));
        }
    }

    /// Removes a network that nobody uses, as control does.
    pub fn remove_network(&mut self, number: u128) {
        let id = network_id(number);
        let named = |spec: &ServiceSpec| {
            spec.task.networks.iter().any(|network| network.target == id.to_string())
        };
        let is_used = self.snapshot.services().any(|service| {
            named(&service.spec)
                || service.previous.as_ref().is_some_and(|previous| named(&previous.spec))
        });
        let has_tasks =
            self.snapshot.tasks().any(|task| task.networks.iter().any(|place| place.network == id));
        let is_held = self.snapshot.attachments().any(|attachment| attachment.network == id);
        if !is_used && !has_tasks && !is_held && self.snapshot.network(id).is_some() {
            self.write(|draft| draft.delete(Key::Network(id)));
        }
    }

    /// Puts a service into the networks whose bits are set, of those that are there.
    pub fn join_networks(&mut self, number: u128, bits: u8) {
        let chosen = (1..=3).filter(|network| bits & (1 << (network - 1)) != 0).map(network_id);
        let known: Vec<_> = chosen.filter(|id| self.snapshot.network(*id).is_some()).collect();
        self.service(number, |spec| {
            let attachment = |id: &NetworkId| types::network::Attachment {
                target: id.to_string(),
                ..types::network::Attachment::default()
            };
            spec.task.networks = known.iter().map(attachment).collect();
        });
    }

    /// Gives a plain container a place, as control does.
    pub fn attach(&mut self, container: u128, network: u128) {
        let (id, node) = (TaskId::from_random(container), node_id(1 + container % 2));
        let Some(network) = self.snapshot.network(network_id(network)).cloned() else { return };
        if self.snapshot.attachment(id).is_some() || self.snapshot.node(node).is_none() {
            return;
        }
        self.ids += 1;
        let Ok(addresses) = planner::choose_for_container(&self.snapshot, &network, self.ids, None)
        else {
            return;
        };
        let (meta, container) = (Meta::default(), format!("c{container}"));
        let (name, aliases, network) = (container.clone(), Vec::new(), network.id);
        let attachment =
            ContainerAttachment { id, meta, node, network, container, name, aliases, addresses };
        self.write(|draft| draft.put(attachment));
    }

    /// The container has ended.
    pub fn detach(&mut self, container: u128) {
        let id = TaskId::from_random(container);
        if self.snapshot.attachment(id).is_some() {
            self.write(|draft| draft.delete(Key::Attachment(id)));
        }
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

pub fn network_id(number: u128) -> NetworkId {
    NetworkId::from_random(number)
}

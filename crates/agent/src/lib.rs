//! A node's side: brings its containers where the managers want its tasks.
//!
//! Pure: [`Agent::handle`] takes an event and the time, and returns actions. A driver performs them on the engine and
//! answers with events.
//!
//! ```text
//! accepted ─Prepare─► preparing ─Prepared─► ready ─Start─► starting ─Started, healthy─► running ─Exited─► ended
//!     any of these, when told to stop: ─Stop─► stopping ─Stopped─► ended ─(when forgotten) Remove─► gone
//! ```

mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use types::assignment::{AssignmentSet, StatusReport};
use types::network::NetworkChange;
use types::{NetworkId, ServiceId, Task, TaskId, TaskTemplate, Timestamp};

pub use task::Exit;
use task::Local;

/// What happened on the node or was heard from the managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container of a task was there when the daemon started.
    Found {
        task: TaskId,
        container: Found,
    },
    /// What this node held when its last daemon ended, as [`Agent::holding`] told it. Managers may have decided
    /// otherwise since: what runs is watched over, and nothing is started.
    Recalled(AssignmentSet),
    Assigned(AssignmentSet),
    Prepared {
        task: TaskId,
        result: Result<String, Refusal>,
    },
    Started {
        task: TaskId,
        result: Result<Started, Refusal>,
    },
    Healthy {
        task: TaskId,
    },
    Unhealthy {
        task: TaskId,
    },
    Exited {
        task: TaskId,
        exit: Exit,
    },
    Stopped {
        task: TaskId,
        exit: Exit,
    },
    Removed {
        task: TaskId,
    },
    /// The managers have written these reports.
    Reported(Vec<StatusReport>),
    /// A connection to the managers is there, or was lost.
    Connected,
    Disconnected,
}

/// A container that outlived the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub container: String,
    pub state: FoundState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundState {
    Created,
    Running { started: Started, since: Timestamp },
    Exited { exit: Exit },
}

/// A started container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    pub pid: i32,
    /// On the node's own bridge; empty without one.
    pub address: String,
    /// Whether the task runs only once its health check passes.
    pub awaits_health: bool,
    pub ports: Vec<types::endpoint::PortConfig>,
}

/// Why a container could not be made or started, in the engine's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
}

/// A task's container that can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub task: TaskId,
    /// On the node's own bridge.
    pub address: String,
    /// Whether it takes connections: it runs, is healthy, and is not about to stop.
    pub is_serving: bool,
}

/// What the driver is to do. Each of the first four is answered by the event of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get the image and make the container.
    Prepare {
        task: Arc<Task>,
        template: Arc<TaskTemplate>,
    },
    Start {
        task: TaskId,
        container: String,
    },
    /// Signal, wait for the grace period, kill.
    Stop {
        task: TaskId,
        container: String,
        grace: Duration,
    },
    Remove {
        task: TaskId,
        container: String,
    },
    /// At most one is under way.
    Report(Vec<StatusReport>),
    /// Make the network's part on this node what this says, before anything that comes after.
    Connect(Box<NetworkChange>),
    /// No task of this node is in the network any more.
    Leave(NetworkId),
    /// Lead connections to those of these containers that serve, before anything that comes after: one that is to stop
    /// takes none any more, and one that is told of as running takes them. Others of the service cannot be reached.
    Serve {
        service: ServiceId,
        backends: Vec<Backend>,
    },
}

/// Everything one node knows of its work.
#[derive(Debug, Default)]
pub struct Agent {
    tasks: BTreeMap<TaskId, Local>,
    found: BTreeMap<TaskId, Found>,
    templates: BTreeMap<(ServiceId, u64), Arc<TaskTemplate>>,
    serving: BTreeMap<ServiceId, Vec<Backend>>,
    /// Services whose backends may have changed.
    touched: BTreeSet<ServiceId>,
    networks: BTreeSet<NetworkId>,
    unreported: BTreeMap<TaskId, types::TaskStatus>,
    is_connected: bool,
    report_under_way: bool,
}

impl Agent {
    /// Takes one event; answers with what is to be done now.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        let held = self.tasks.len();
        match event {
            Event::Found { task, container } => drop(self.found.insert(task, container)),
            Event::Recalled(set) => self.recalled(set, now, &mut actions),
            Event::Assigned(set) => self.assigned(set, now, &mut actions),
            Event::Reported(reports) => self.reported(&reports),
            Event::Connected => {
                self.is_connected = true;
                self.report_under_way = false;
            }
            Event::Disconnected => {
                self.is_connected = false;
                self.report_under_way = false;
            }
            Event::Removed { task } => self.forget(task),
            Event::Prepared { task, .. }
            | Event::Started { task, .. }
            | Event::Healthy { task }
            | Event::Unhealthy { task }
            | Event::Exited { task, .. }
            | Event::Stopped { task, .. } => self.task_event(task, event, now, &mut actions),
        }
        if self.tasks.len() < held {
            self.drop_templates();
        }
        let mut first = self.serve();
        first.append(&mut actions);
        self.report(&mut first);
        first
    }

    /// How many tasks the node holds, ended ones included.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The node's work, to be recalled by the next daemon: its tasks, and what they run. Networks outlive the daemon in
    /// the kernel; what it has to recall of them, the driver adds.
    pub fn holding(&self) -> AssignmentSet {
        let held = self.tasks.values().filter(|local| !local.is_dismissed());
        AssignmentSet {
            is_full: true,
            templates: self.templates.values().cloned().collect(),
            tasks: held.map(Local::held).collect(),
            removed: Vec::new(),
            networks: Vec::new(),
            gone_networks: Vec::new(),
        }
    }

    fn recalled(&mut self, set: AssignmentSet, now: Timestamp, actions: &mut Vec<Action>) {
        for template in set.templates {
            self.templates.insert((template.service, template.version), template);
        }
        for change in set.networks {
            self.networks.insert(change.network);
            actions.push(Action::Connect(Box::new(change)));
        }
        for task in set.tasks {
            let found = self.found.get(&task.id);
            let was_started = found.is_some_and(|found| found.state != FoundState::Created);
            if was_started {
                self.assign(task, now, actions);
            }
        }
        self.drop_templates();
    }

    fn assigned(&mut self, set: AssignmentSet, now: Timestamp, actions: &mut Vec<Action>) {
        for template in set.templates {
            self.templates.insert((template.service, template.version), template);
        }
        if set.is_full {
            let named: BTreeSet<_> = set.tasks.iter().map(|task| task.id).collect();
            let unnamed: Vec<_> =
                self.tasks.keys().filter(|id| !named.contains(id)).copied().collect();
            for id in unnamed {
                self.dismiss(id, now, actions);
            }
            let named: BTreeSet<_> = set.networks.iter().map(|change| change.network).collect();
            let left = self.networks.difference(&named);
            actions.extend(left.copied().map(Action::Leave));
            self.networks = named;
        }
        for change in set.networks {
            self.networks.insert(change.network);
            actions.push(Action::Connect(Box::new(change)));
        }
        for task in set.tasks {
            self.assign(task, now, actions);
        }
        for id in set.gone_networks {
            self.networks.remove(&id);
            actions.push(Action::Leave(id));
        }
        for id in set.removed {
            self.dismiss(id, now, actions);
        }
        if set.is_full {
            self.remove_strays(actions);
        }
        self.drop_templates();
    }

    fn assign(&mut self, task: Arc<Task>, now: Timestamp, actions: &mut Vec<Action>) {
        let id = task.id;
        if let Some(local) = self.tasks.get_mut(&id) {
            local.set_desired(task.desired_state);
        } else {
            let key = (task.service, task.template_version);
            let Some(template) = self.templates.get(&key).cloned() else { return };
            let found = self.found.remove(&id);
            self.tasks.insert(id, Local::new(task, template, found, now));
        }
        self.advance(id, now, actions);
    }

    /// Stops a task that the cluster has forgotten; it is removed once it has ended.
    fn dismiss(&mut self, id: TaskId, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(local) = self.tasks.get_mut(&id) else { return };
        local.dismiss();
        self.advance(id, now, actions);
    }

    /// Containers of tasks that are not ours any more.
    fn remove_strays(&mut self, actions: &mut Vec<Action>) {
        for (task, found) in std::mem::take(&mut self.found) {
            actions.push(Action::Remove { task, container: found.container });
        }
    }

    fn task_event(&mut self, id: TaskId, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(local) = self.tasks.get_mut(&id) {
            local.note(event, now);
            self.advance(id, now, actions);
            return;
        }
        match event {
            // The task was forgotten while its container was being made.
            Event::Prepared { result: Ok(container), .. } => {
                actions.push(Action::Remove { task: id, container });
            }
            // A container that was found ends before a manager has said that its task is still ours.
            Event::Exited { exit, .. } => {
                if let Some(found) = self.found.get_mut(&id) {
                    found.state = FoundState::Exited { exit };
                }
            }
            _ => {}
        }
    }

    /// Lets a task take its next steps and collects what it has to say.
    fn advance(&mut self, id: TaskId, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(local) = self.tasks.get_mut(&id) else { return };
        self.touched.insert(local.service());
        actions.extend(local.advance(now));
        if let Some(status) = local.take_news() {
            self.unreported.insert(id, status);
        }
        if local.is_gone() {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: TaskId) {
        let Some(local) = self.tasks.get(&id) else { return };
        if !local.is_dismissed() {
            return;
        }
        self.touched.insert(local.service());
        self.tasks.remove(&id);
        self.unreported.remove(&id);
    }

    /// Only after an event was taken whole: an assignment brings templates before the tasks that use them.
    fn drop_templates(&mut self) {
        let used: BTreeSet<_> = self.tasks.values().map(Local::template_key).collect();
        self.templates.retain(|key, _| used.contains(key));
    }

    /// Says which containers take connections, where that has changed.
    fn serve(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for service in std::mem::take(&mut self.touched) {
            let tasks = self.tasks.values().filter(|local| local.service() == service);
            let backends: Vec<_> = tasks.filter_map(Local::backend).collect();
            if self.serving.get(&service).map_or(&[][..], Vec::as_slice) == backends {
                continue;
            }
            if backends.is_empty() {
                self.serving.remove(&service);
            } else {
                self.serving.insert(service, backends.clone());
            }
            actions.push(Action::Serve { service, backends });
        }
        actions
    }

    /// Reports are sent one batch at a time; what changes meanwhile goes with the next, newest only.
    fn report(&mut self, actions: &mut Vec<Action>) {
        if self.unreported.is_empty() || self.report_under_way || !self.is_connected {
            return;
        }
        self.report_under_way = true;
        let reports = self.unreported.iter();
        let reports =
            reports.map(|(task, status)| StatusReport { task: *task, status: status.clone() });
        actions.push(Action::Report(reports.collect()));
    }

    fn reported(&mut self, reports: &[StatusReport]) {
        self.report_under_way = false;
        for report in reports {
            if self.unreported.get(&report.task) == Some(&report.status) {
                self.unreported.remove(&report.task);
            }
        }
    }
}

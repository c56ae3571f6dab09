//! The managers' side of the talk with nodes: sessions, heartbeats, assignment differences, status reports.
//!
//! Pure: [`Dispatcher`] takes events and the time, and returns what to send and what to write. A driver does it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use store::{Draft, Event, Key, Object, Snapshot};
use types::assignment::{AssignmentSet, ServiceEndpoint, StatusReport};
use types::endpoint::PublishMode;
use types::node::{Description, NodeState};
use types::{NodeId, ServiceId, Task, TaskId, TaskState, Timestamp};

/// Heartbeats a node may miss. Fewer flaps on a loaded network, more keeps dead nodes too long.
pub const HEARTBEATS_MISSED_MAX: u32 = 3;

/// Tells one connection of a node from the next.
pub type SessionId = u64;

/// The session is not the node's newest: its messages count for nothing, the node has to register again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session {session} of node {node} is not the current one")]
pub struct UnknownSession {
    pub node: NodeId,
    pub session: SessionId,
}

/// A message for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub node: NodeId,
    pub session: SessionId,
    pub set: AssignmentSet,
}

/// What one node was told.
#[derive(Debug)]
struct Session {
    id: SessionId,
    expires_at: Timestamp,
    tasks: BTreeMap<TaskId, TaskState>,
    templates: BTreeSet<(ServiceId, u64)>,
    endpoints: BTreeMap<ServiceId, ServiceEndpoint>,
}

/// All sessions of this leader.
#[derive(Debug, Default)]
pub struct Dispatcher {
    sessions: BTreeMap<NodeId, Session>,
    next_session: SessionId,
}

impl Dispatcher {
    /// Opens a session, which ends any older one of the node; the answer carries the node's whole work.
    pub fn register(
        &mut self,
        snapshot: &Snapshot,
        node: NodeId,
        period: Duration,
        now: Timestamp,
    ) -> Send {
        self.next_session += 1;
        let mut session = Session {
            id: self.next_session,
            expires_at: now + period * HEARTBEATS_MISSED_MAX,
            tasks: BTreeMap::new(),
            templates: BTreeSet::new(),
            endpoints: BTreeMap::new(),
        };
        let tasks: Vec<_> = snapshot.tasks_on(node).map(|task| task.id).collect();
        let set = AssignmentSet { is_full: true, ..session.difference(snapshot, node, tasks) };
        let id = session.id;
        self.sessions.insert(node, session);
        Send { node, session: id, set }
    }

    /// Keeps a session alive for another [`HEARTBEATS_MISSED_MAX`] periods.
    ///
    /// # Errors
    /// [`UnknownSession`] when the node has registered again or was given up.
    pub fn heartbeat(
        &mut self,
        node: NodeId,
        session: SessionId,
        period: Duration,
        now: Timestamp,
    ) -> Result<(), UnknownSession> {
        let current = self.sessions.get_mut(&node).filter(|current| current.id == session);
        let current = current.ok_or(UnknownSession { node, session })?;
        current.expires_at = now + period * HEARTBEATS_MISSED_MAX;
        Ok(())
    }

    /// Whether reports of this session count.
    pub fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.sessions.get(&node).is_some_and(|current| current.id == session)
    }

    /// Ends a session; nothing happens when it is not the current one.
    pub fn disconnect(&mut self, node: NodeId, session: SessionId) {
        if self.is_current(node, session) {
            self.sessions.remove(&node);
        }
    }

    /// Ends the sessions whose heartbeats stayed out; answers with their nodes.
    pub fn expire(&mut self, now: Timestamp) -> Vec<NodeId> {
        let expired: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.expires_at <= now)
            .map(|(node, _)| *node)
            .collect();
        for node in &expired {
            self.sessions.remove(node);
        }
        expired
    }

    /// When the next session would expire.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.sessions.values().map(|session| session.expires_at).min()
    }

    /// What the nodes must hear of these changes. `snapshot` holds them already.
    pub fn changed(&mut self, snapshot: &Snapshot, events: &[Event]) -> Vec<Send> {
        let mut touched: BTreeMap<NodeId, BTreeSet<TaskId>> = BTreeMap::new();
        let mut services = BTreeSet::new();
        for event in events {
            match event.key {
                Key::Task(id) => {
                    let nodes = [&event.before, &event.after].into_iter().filter_map(node_of);
                    for node in nodes {
                        touched.entry(node).or_default().insert(id);
                    }
                }
                Key::Service(id) => {
                    services.insert(id);
                }
                _ => {}
            }
        }
        for (node, session) in &self.sessions {
            if services.iter().any(|service| session.endpoints.contains_key(service)) {
                touched.entry(*node).or_default();
            }
        }
        let mut sends = Vec::new();
        for (node, tasks) in touched {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let set = session.difference(snapshot, node, tasks);
            if !set.is_empty() {
                sends.push(Send { node, session: session.id, set });
            }
        }
        sends
    }
}

fn node_of(object: &Option<Object>) -> Option<NodeId> {
    match object {
        Some(Object::Task(task)) => task.node,
        _ => None,
    }
}

impl Session {
    /// What the node does not know yet of these tasks, and of the ports of all its services.
    fn difference(
        &mut self,
        snapshot: &Snapshot,
        node: NodeId,
        tasks: impl IntoIterator<Item = TaskId>,
    ) -> AssignmentSet {
        let mut set = AssignmentSet::default();
        for id in tasks {
            let Some(task) = snapshot.task(id).filter(|task| task.node == Some(node)) else {
                if self.tasks.remove(&id).is_some() {
                    set.removed.push(id);
                }
                continue;
            };
            if self.tasks.insert(id, task.desired_state) == Some(task.desired_state) {
                continue;
            }
            if self.templates.insert((task.service, task.template_version)) {
                set.templates.extend(snapshot.template_of(task).cloned());
            }
            set.tasks.push(task.clone());
        }
        set.endpoints = self.endpoint_difference(snapshot, node);
        let in_use = |key: &(ServiceId, u64)| snapshot.template(key.0, key.1).is_some();
        self.templates.retain(in_use);
        set
    }

    fn endpoint_difference(&mut self, snapshot: &Snapshot, node: NodeId) -> Vec<ServiceEndpoint> {
        let services: BTreeSet<_> = snapshot.tasks_on(node).map(|task| task.service).collect();
        let gone: Vec<_> =
            self.endpoints.keys().filter(|id| !services.contains(id)).copied().collect();
        let mut changed = Vec::new();
        for service in gone {
            if self.endpoints.remove(&service).is_some_and(|endpoint| !endpoint.ports.is_empty()) {
                changed.push(ServiceEndpoint { service, ports: Vec::new() });
            }
        }
        for service in services {
            let endpoint = ServiceEndpoint { service, ports: ingress_ports(snapshot, service) };
            let known = self.endpoints.insert(service, endpoint.clone());
            let was_empty = known.as_ref().is_none_or(|known| known.ports.is_empty());
            if known.as_ref() != Some(&endpoint) && !(was_empty && endpoint.ports.is_empty()) {
                changed.push(endpoint);
            }
        }
        changed
    }
}

fn ingress_ports(snapshot: &Snapshot, service: ServiceId) -> Vec<types::endpoint::PortConfig> {
    let ports = snapshot.service(service).into_iter().flat_map(|service| &service.endpoint.ports);
    ports.filter(|port| port.mode == PublishMode::Ingress && port.published != 0).cloned().collect()
}

/// Writes what a node said about its tasks. Reports that would move a task back, or that are about another node's
/// task, are left out: they were overtaken.
pub fn write_reports(draft: &mut Draft, node: NodeId, reports: &[StatusReport]) {
    for report in reports {
        let Some(task) = draft.task(report.task).cloned() else { continue };
        if task.node != Some(node) || !is_news(&task, report) {
            continue;
        }
        draft.update_task(&task, |task| {
            let running_since = task.status.running_since.or(report.status.running_since);
            task.status = report.status.clone();
            task.status.running_since = running_since;
        });
    }
}

fn is_news(task: &Task, report: &StatusReport) -> bool {
    let same_state = task.status.state == report.status.state && !task.status.state.is_terminal();
    task.status.state.may_become(report.status.state)
        || (same_state && task.status != report.status)
}

/// Writes that a node is here, as it describes itself.
pub fn write_ready(draft: &mut Draft, node: NodeId, description: &Description, address: &str) {
    let Some(known) = draft.node(node).cloned() else { return };
    draft.update_node(&known, |node| {
        node.description = description.clone();
        node.status.state = NodeState::Ready;
        node.status.message.clear();
        node.status.address = address.to_owned();
    });
}

/// Writes that a node's heartbeats stayed out.
pub fn write_down(draft: &mut Draft, node: NodeId, message: &str) {
    let Some(known) = draft.node(node).cloned() else { return };
    draft.update_node(&known, |node| {
        node.status.state = NodeState::Down;
        node.status.message = message.to_owned();
    });
}

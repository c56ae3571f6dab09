//! The managers' side of the talk with nodes: sessions, heartbeats, assignment differences, status reports.
//!
//! Pure: [`Dispatcher`] takes events and the time, and returns what to send and what to write. A driver does it.

mod networks;
mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use store::{Draft, Event, Key, Object, Snapshot};
use types::assignment::{AssignmentSet, SessionMessage, StatusReport};
use types::node::{Description, NodeState};
use types::{NetworkId, NodeId, ServiceId, Task, TaskId, TaskState, TaskTemplate, Timestamp};

pub use networks::{networks_of, whole as network_as_seen};
use news::Shared;
use types::assignment::News;

/// How often a node speaks, for a heartbeat period set to `period`.
///
/// The period is Docker's setting (5 s by default) and says how long a silence an operator accepts. Docker speaks once
/// in a period and waits for three; here a node speaks ten times in one, so that a dead node is seen in half of it.
pub fn heartbeat_interval(period: Duration) -> Duration {
    period / 10
}

/// How long a node may be silent before it counts as down: five heartbeats and half of one.
pub fn silence_max(period: Duration) -> Duration {
    period * 11 / 20
}

/// How long a leader waits for nodes that have yet to find it, or whose daemons are being started again.
fn adoption_max(period: Duration) -> Duration {
    silence_max(period) * 2
}

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
    pub message: SessionMessage,
}

type TemplateKey = (ServiceId, u64);

/// What a node knows of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    desired_state: TaskState,
    template: TemplateKey,
}

/// What one node was told.
#[derive(Debug)]
struct Session {
    id: SessionId,
    expires_at: Timestamp,
    tasks: BTreeMap<TaskId, Told>,
    /// Templates by how many of the node's tasks use them. With its last task a node forgets a template.
    templates: BTreeMap<TemplateKey, usize>,
    networks: BTreeSet<NetworkId>,
    news: Option<News>,
}

/// All sessions of this leader.
#[derive(Debug, Default)]
pub struct Dispatcher {
    sessions: BTreeMap<NodeId, Session>,
    /// Nodes that an earlier leader saw and that have not come to this one yet, with the time they are given up.
    expected: BTreeMap<NodeId, Timestamp>,
    next_session: SessionId,
}

impl Dispatcher {
    /// Sessions of a new leader. Nodes that are up by `snapshot` are given time to come. `first_session` must differ
    /// from one leader's term to the next, so that no session of an earlier one is taken for a current one.
    pub fn new(
        snapshot: &Snapshot,
        first_session: SessionId,
        period: Duration,
        now: Timestamp,
    ) -> Self {
        let up = snapshot.nodes().filter(|node| node.status.state == NodeState::Ready);
        let expected = up.map(|node| (node.id, now + adoption_max(period))).collect();
        Self { sessions: BTreeMap::new(), expected, next_session: first_session }
    }

    /// Gives everybody `by` more time: the manager itself was held up and could not have heard them.
    pub fn postpone(&mut self, by: Duration) {
        for session in self.sessions.values_mut() {
            session.expires_at = session.expires_at + by;
        }
        for at in self.expected.values_mut() {
            *at = *at + by;
        }
    }

    /// Opens a session, which ends any older one of the node; the answer carries what it must know of the swarm and
    /// its whole work.
    pub fn register(
        &mut self,
        snapshot: &Snapshot,
        node: NodeId,
        period: Duration,
        now: Timestamp,
    ) -> (SessionId, Vec<SessionMessage>) {
        self.next_session += 1;
        let mut session = Session {
            id: self.next_session,
            expires_at: now + silence_max(period),
            tasks: BTreeMap::new(),
            templates: BTreeMap::new(),
            networks: BTreeSet::new(),
            news: None,
        };
        let mut messages = Vec::new();
        let news = Shared::new(snapshot).and_then(|shared| shared.news_of(snapshot, node));
        messages.extend(session.news_difference(news));
        let tasks: Vec<_> = snapshot.tasks_on(node).map(|task| task.id).collect();
        let set = AssignmentSet { is_full: true, ..session.difference(snapshot, node, tasks) };
        messages.push(SessionMessage::Assignments(set));
        let id = session.id;
        self.expected.remove(&node);
        self.sessions.insert(node, session);
        (id, messages)
    }

    /// Keeps a session alive for another [`silence_max`].
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
        current.expires_at = now + silence_max(period);
        Ok(())
    }

    /// Whether reports of this session count.
    pub fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.sessions.get(&node).is_some_and(|current| current.id == session)
    }

    /// The node's daemon said that it stops; nothing happens when this is not its current session. Its containers run
    /// on, so it is given time to come back, as after an upgrade. A connection that breaks is no reason to call this.
    pub fn disconnect(
        &mut self,
        node: NodeId,
        session: SessionId,
        period: Duration,
        now: Timestamp,
    ) {
        if self.is_current(node, session) {
            self.sessions.remove(&node);
            self.expected.insert(node, now + adoption_max(period));
        }
    }

    /// Forgets a node that was removed from the cluster.
    pub fn forget(&mut self, node: NodeId) {
        self.sessions.remove(&node);
        self.expected.remove(&node);
    }

    /// Ends the sessions that were silent for too long; answers with their nodes, and with those that never came.
    pub fn expire(&mut self, now: Timestamp) -> Vec<NodeId> {
        let silent = self.sessions.iter().filter(|(_, session)| session.expires_at <= now);
        let missing = self.expected.iter().filter(|(_, at)| **at <= now);
        let expired: Vec<_> =
            silent.map(|(node, _)| *node).chain(missing.map(|(node, _)| *node)).collect();
        for node in &expired {
            self.forget(*node);
        }
        expired
    }

    /// These expired, and it could not be written down: they are to expire again at `at`, unless they have come back.
    pub fn expire_again(&mut self, nodes: &[NodeId], at: Timestamp) {
        for node in nodes.iter().filter(|node| !self.sessions.contains_key(node)) {
            self.expected.insert(*node, at);
        }
    }

    /// Whether the node has a session.
    pub fn has_session(&self, node: NodeId) -> bool {
        self.sessions.contains_key(&node)
    }

    /// When the next node would count as down.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        let sessions = self.sessions.values().map(|session| session.expires_at);
        sessions.chain(self.expected.values().copied()).min()
    }

    fn forget_templates(&mut self) {
        for session in self.sessions.values_mut() {
            session.templates.clear();
        }
    }

    /// What the nodes must hear of these changes. `snapshot` holds them already.
    pub fn changed(&mut self, snapshot: &Snapshot, events: &[Event]) -> Vec<Send> {
        let mut touched: BTreeMap<NodeId, BTreeSet<TaskId>> = BTreeMap::new();
        let mut sends = self.changed_news(snapshot, events);
        for event in events {
            match event.key {
                Key::Task(id) => {
                    let nodes = [&event.before, &event.after].into_iter().filter_map(node_of);
                    for node in nodes {
                        touched.entry(node).or_default().insert(id);
                    }
                }
                Key::Attachment(_) => {
                    let objects = [&event.before, &event.after].into_iter().flatten();
                    for object in objects {
                        if let Object::Attachment(attachment) = object {
                            touched.entry(attachment.node).or_default();
                        }
                    }
                }
                // New tasks take the swarm's new defaults: their templates are sent again.
                Key::Cluster => self.forget_templates(),
                _ => {}
            }
        }
        let changes = networks::changes(snapshot, events);
        let ingress_changed = events.iter().any(networks::is_about_ingress);
        for (node, session) in &self.sessions {
            let is_told = |network: &NetworkId| changes.contains_key(network);
            if ingress_changed || session.networks.iter().any(is_told) {
                touched.entry(*node).or_default();
            }
        }
        for (node, tasks) in touched {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let known = session.networks.clone();
            let mut set = session.difference(snapshot, node, tasks);
            let still = known.intersection(&session.networks);
            set.networks.extend(still.filter_map(|network| changes.get(network)).cloned());
            if !set.is_empty() {
                let message = SessionMessage::Assignments(set);
                sends.push(Send { node, session: session.id, message });
            }
        }
        sends
    }

    /// What nodes must hear of the swarm itself. Most changes of nodes concern nobody but the node.
    fn changed_news(&mut self, snapshot: &Snapshot, events: &[Event]) -> Vec<Send> {
        let concerns_all = events.iter().any(news::concerns_all);
        let concerned = events.iter().filter_map(|event| match event.key {
            Key::Node(node) => Some(node),
            _ => None,
        });
        let nodes: BTreeSet<_> = match concerns_all {
            true => self.sessions.keys().copied().collect(),
            false => concerned.collect(),
        };
        if nodes.is_empty() {
            return Vec::new();
        }
        let Some(shared) = Shared::new(snapshot) else { return Vec::new() };
        let mut sends = Vec::new();
        for node in nodes {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let news = session.news_difference(shared.news_of(snapshot, node));
            sends.extend(news.map(|message| Send { node, session: session.id, message }));
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
    fn news_difference(&mut self, news: Option<News>) -> Option<SessionMessage> {
        if news.is_none() || news == self.news {
            return None;
        }
        self.news.clone_from(&news);
        news.map(SessionMessage::News)
    }

    /// What the node does not know yet of these tasks, and of its networks.
    fn difference(
        &mut self,
        snapshot: &Snapshot,
        node: NodeId,
        tasks: impl IntoIterator<Item = TaskId>,
    ) -> AssignmentSet {
        let mut set = AssignmentSet::default();
        for id in tasks {
            let Some(task) = snapshot.task(id).filter(|task| task.node == Some(node)) else {
                if let Some(told) = self.tasks.remove(&id) {
                    set.removed.push(id);
                    self.release_template(told.template);
                }
                continue;
            };
            let template = (task.service, task.template_version);
            let told = Told { desired_state: task.desired_state, template };
            let known = self.tasks.insert(id, told);
            if known == Some(told) {
                continue;
            }
            if known.is_none() {
                let users = self.templates.entry(template).or_default();
                *users += 1;
                if *users == 1 {
                    set.templates.extend(template_of(snapshot, task));
                }
            }
            set.tasks.push(task.clone());
        }
        let networks = networks::networks_of(snapshot, node);
        let new = networks.difference(&self.networks);
        set.networks = new.filter_map(|network| networks::whole(snapshot, *network)).collect();
        set.gone_networks = self.networks.difference(&networks).copied().collect();
        self.networks = networks;
        set
    }

    fn release_template(&mut self, key: TemplateKey) {
        if let Some(users) = self.templates.get_mut(&key) {
            *users -= 1;
            if *users == 0 {
                self.templates.remove(&key);
            }
        }
    }
}

/// The template of a task, with the swarm's log driver where the service names none.
fn template_of(snapshot: &Snapshot, task: &Task) -> Option<Arc<TaskTemplate>> {
    let template = snapshot.template_of(task)?;
    let default = snapshot.cluster().and_then(|cluster| cluster.spec.log_driver.clone());
    if default.is_none() || template.task.log_driver.is_some() {
        return Some(template.clone());
    }
    let mut template = TaskTemplate::clone(template);
    template.task.log_driver = default;
    Some(Arc::new(template))
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
        node.status.down_since = None;
        node.status.message.clear();
        node.status.address = address.to_owned();
    });
}

/// Writes that a node's heartbeats stayed out.
pub fn write_down(draft: &mut Draft, node: NodeId, message: &str) {
    let Some(known) = draft.node(node).cloned() else { return };
    let now = draft.now();
    draft.update_node(&known, |node| {
        node.status.state = NodeState::Down;
        node.status.down_since = Some(now);
        node.status.message = message.to_owned();
    });
}

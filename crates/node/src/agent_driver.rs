//! Does what the agent decides: carries its actions to the engine and the network, and their results back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent::{Action, Agent, Event, Exit, Found, FoundState, Refusal, Started};
use docker_types::convert::task::container_config;
use engine::containers::{
    Change, HealthState, NewContainer, Phase, RemoveOptions, Status, StopOptions,
};
use engine::images::progress::Reporter as Progress;
use engine::images::pull::PullRequest;
use engine::images::reference::Reference;
use engine::registry::auth::Credentials;
use engine::{Engine, ErrorKind};
use manager::now;
use network::Protocol;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use types::assignment::{AssignmentSet, News, SessionMessage};
use types::endpoint::{PortConfig, PublishMode};
use types::network::TunnelKey;
use types::{Task, TaskId, TaskTemplate, Timestamp};

use crate::attachments::Attachments;
use crate::connector::{Connector, Places};
use crate::daemon::SharedEngine;
use crate::forgetting::Forgetting;
use crate::ingress::{self, Ingress};
use crate::keeper::Keeper;
use crate::local::Local;
use crate::own_networks;
use crate::readiness;
use crate::session::{Link, NoSession, NodeInfo, Reporter, Upstream};
use crate::state::Files;
use crate::templating::Values;
use crate::tunnel::Settings;

const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// Results of actions under way; each task has at most one.
const EVENTS_MAX: usize = 1024;

/// How long a node looks for a manager before it says so: longer than managers take to elect a leader.
const ALONE_TOLD_AFTER: Duration = Duration::from_secs(5);

/// How long leaders have to say that the swarm does not have this node before it ends its tasks: a leader that was just
/// elected is not to be taken at its first word.
const REMOVED_AFTER: Duration = Duration::from_secs(1);

/// How often networks are said once more to the kernel: what could not be made so is not given up.
const SETTLE_INTERVAL: Duration = Duration::from_secs(30);

/// Between two attempts to reach the manager.
const RECONNECT: Duration = Duration::from_millis(200);

pub(crate) struct AgentDriver {
    engine: SharedEngine,
    upstream: Arc<Upstream>,
    info: watch::Receiver<NodeInfo>,
    news: watch::Sender<Option<News>>,
    agent: Agent,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// A report did not arrive: only a new session tells what was not told.
    report_lost: Arc<Notify>,
    ingress: Ingress,
    has_work: bool,
    connector: Connector,
    attachments: Arc<Attachments>,
    /// When networks are said once more to the kernel.
    settle_at: Instant,
    files: Files,
    keeper: Keeper,
}

impl AgentDriver {
    /// `news` gets what managers tell of the swarm itself. A change of `info` begins a new session.
    pub(crate) fn new(
        engine: SharedEngine,
        upstream: Arc<Upstream>,
        info: watch::Receiver<NodeInfo>,
        news: watch::Sender<Option<News>>,
        files: Files,
        local: Local,
        tunnel: Settings,
    ) -> Self {
        let Local { board, names, attachments } = local;
        let forgetting = Forgetting::start(engine.network.clone(), board.clone());
        let ingress = Ingress::new(board.clone(), forgetting.clone());
        let keeper = Keeper::start(files.clone(), board.clone());
        let connector = Connector::new(board, names, tunnel, &engine.network, forgetting);
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        Self {
            engine,
            upstream,
            info,
            news,
            agent: Agent::default(),
            events,
            inbox,
            report_lost: Arc::default(),
            ingress,
            has_work: false,
            connector,
            attachments,
            settle_at: Instant::now() + SETTLE_INTERVAL,
            keeper,
            files,
        }
    }

    /// Runs until told to stop. Containers run on after that.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.work(&stop).await;
        self.keeper.end().await;
    }

    async fn work(&mut self, stop: &CancellationToken) {
        let mut changes = self.engine.containers.changes();
        self.adopt();
        self.recall().await;
        let mut alone_since = None;
        let mut removed_since = None;
        loop {
            let mut info = self.info.borrow_and_update().clone();
            info.description.tunnel_keys = self.connector.tunnel.told_keys();
            let link = tokio::select! {
                () = stop.cancelled() => return,
                link = self.upstream.open(&info) => link,
            };
            match link {
                Ok(link) => {
                    (alone_since, removed_since) = (None, None);
                    let told = info.description.tunnel_keys;
                    self.connector.tunnel.told(&told);
                    if self.serve(link, &mut changes, stop, &told).await.is_err() {
                        return;
                    }
                    if self.connector.tunnel.told_keys() != told {
                        continue;
                    }
                }
                Err(refusal) => {
                    let (since, is_told) = alone_since.get_or_insert((Instant::now(), false));
                    debug!(%refusal, "no session with a manager");
                    if !*is_told && since.elapsed() >= ALONE_TOLD_AFTER {
                        warn!(%refusal, "no session with a manager");
                        *is_told = true;
                    }
                    self.heed(&refusal, &mut removed_since).await;
                }
            }
            let pause = RECONNECT.mul_f64(rand::random_range(0.5..1.5));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.without_manager(&mut changes, pause) => {}
            }
        }
    }

    /// A node that is removed while it runs has no tasks any more: the swarm runs them elsewhere.
    async fn heed(&mut self, refusal: &NoSession, removed_since: &mut Option<Instant>) {
        if *refusal != NoSession::Removed {
            *removed_since = None;
            return;
        }
        if removed_since.get_or_insert_with(Instant::now).elapsed() >= REMOVED_AFTER {
            let nothing = AssignmentSet { is_full: true, ..AssignmentSet::default() };
            self.handle(Event::Assigned(nothing), None).await;
        }
    }

    /// Works within one session, which ends when there are other keys to tell; an error means that it is time to stop.
    async fn serve(
        &mut self,
        mut link: Link,
        changes: &mut broadcast::Receiver<Change>,
        stop: &CancellationToken,
        told: &[TunnelKey],
    ) -> Result<(), Stopped> {
        let reporter = link.reporter();
        self.handle(Event::Connected, Some(&reporter)).await;
        let attachments = self.attachments.clone();
        tokio::spawn(async move { attachments.tell().await });
        let speaker = reporter.clone();
        // On a task of its own: nothing that is done here may hold up a heartbeat.
        let mut heart = tokio::spawn(async move { speaker.keep_alive().await });
        let ended = loop {
            if self.connector.tunnel.told_keys() != told {
                break Ok(());
            }
            let event = tokio::select! {
                () = stop.cancelled() => {
                    reporter.goodbye().await;
                    break Err(Stopped);
                }
                message = link.next() => match message {
                    Some(SessionMessage::Assignments(set)) => Event::Assigned(set),
                    Some(SessionMessage::News(news)) => {
                        self.news.send_replace(Some(news));
                        continue;
                    }
                    None => break Ok(()),
                },
                event = self.inbox.recv() => event.expect("we hold a sender ourselves"),
                change = changes.recv() => match self.noticed(change) {
                    Ok(events) => {
                        for event in events {
                            self.handle(event, Some(&reporter)).await;
                        }
                        continue;
                    }
                    Err(stopped) => break Err(stopped),
                },
                () = self.report_lost.notified() => break Ok(()),
                () = self.ingress.due() => {
                    let info = self.info.borrow().clone();
                    self.ingress.try_again(&self.engine, info.node, &info.address).await;
                    continue;
                }
                () = tokio::time::sleep_until(self.settle_at) => {
                    self.settle_networks().await;
                    continue;
                }
                () = self.connector.paths.changed() => {
                    self.settle_networks().await;
                    continue;
                }
                () = self.connector.tunnel.due() => {
                    let local = self.info.borrow().address.clone();
                    self.connector.proceed_with_tunnel(&self.engine.network, &local).await;
                    continue;
                }
                changed = self.info.changed() => match changed {
                    Ok(()) => break Ok(()),
                    Err(_) => break Err(Stopped),
                },
                reason = &mut heart => {
                    warn!(reason = reason.unwrap_or_default(), "the manager does not hear this node");
                    break Ok(());
                }
            };
            self.handle(event, Some(&reporter)).await;
        };
        heart.abort();
        self.agent.handle(Event::Disconnected, now());
        ended
    }

    /// Says once more what networks are to be.
    async fn settle_networks(&mut self) {
        self.settle_at = Instant::now() + SETTLE_INTERVAL;
        let info = self.info.borrow().clone();
        let network = &self.engine.network;
        self.connector.settle_all(network, info.node, &info.address).await;
        own_networks::settle(&self.engine, &self.connector.board).await;
        self.ingress.measure(&self.connector.paths, network, info.node, &info.address);
        self.ingress.settle(&self.engine, info.node, &info.address).await;
    }

    /// Keeps up with the containers while there is no manager.
    async fn without_manager(
        &mut self,
        changes: &mut broadcast::Receiver<Change>,
        pause: Duration,
    ) {
        let until = Instant::now() + pause;
        loop {
            let event = tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                event = self.inbox.recv() => event.expect("we hold a sender ourselves"),
                change = changes.recv() => {
                    let Ok(events) = self.noticed(change) else { return };
                    for event in events {
                        self.handle(event, None).await;
                    }
                    continue;
                }
            };
            self.handle(event, None).await;
        }
    }

    /// What a change of a container means to the agent.
    fn noticed(
        &self,
        change: Result<Change, broadcast::error::RecvError>,
    ) -> Result<Vec<Event>, Stopped> {
        match change {
            Ok(change) => Ok(self.observe(&change.labels, &change.status).into_iter().collect()),
            // After missed changes every container's state is told again; what is known already changes nothing.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let found = self.engine.containers.find(&[(TASK_LABEL, None)]);
                let events =
                    found.iter().filter_map(|found| self.observe(&found.labels, &found.status));
                Ok(events.collect())
            }
            Err(broadcast::error::RecvError::Closed) => Err(Stopped),
        }
    }

    /// Tells the agent of the containers that outlived the last daemon.
    fn adopt(&mut self) {
        for found in self.engine.containers.find(&[(TASK_LABEL, None)]) {
            let Some(task) = task_of(&found.labels) else { continue };
            let state = found_state(&self.engine, &found.id, &found.status);
            info!(%task, container = found.id, ?state, "container found");
            let container = Found { container: found.id, state };
            self.agent.handle(Event::Found { task, container }, now());
        }
    }

    /// Tells the agent what those containers are for. Managers may have decided otherwise since; they will say so.
    async fn recall(&mut self) {
        match self.files.load_assignment() {
            Ok(held) => self.handle(Event::Recalled(held), None).await,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "this node's work is not known before a manager tells it"
                );
            }
        }
    }

    fn observe(&self, labels: &BTreeMap<String, String>, status: &Status) -> Option<Event> {
        let task = task_of(labels)?;
        match (status.phase, status.health) {
            (Phase::Exited | Phase::Dead, _) => Some(Event::Exited { task, exit: exit_of(status) }),
            (Phase::Running, Some(HealthState::Healthy)) => Some(Event::Healthy { task }),
            (Phase::Running, Some(HealthState::Unhealthy)) => Some(Event::Unhealthy { task }),
            _ => None,
        }
    }

    async fn handle(&mut self, event: Event, reporter: Option<&Reporter>) {
        let is_first_work = matches!(&event, Event::Assigned(set) if set.is_full)
            && !std::mem::replace(&mut self.has_work, true);
        let is_told = matches!(&event, Event::Assigned(_));
        let actions = self.agent.handle(event, now());
        // Whom connections are led to comes first: before a task is told to stop, or told of as running.
        let others: Vec<_> =
            actions.into_iter().filter_map(|action| self.ingress.note(action)).collect();
        if is_first_work {
            self.ingress.has_heard_all();
        }
        let info = self.info.borrow().clone();
        if is_told {
            let network = &self.engine.network;
            self.ingress.measure(&self.connector.paths, network, info.node, &info.address);
        }
        if let Some(touched) = self.ingress.touched() {
            let network = &self.engine.network;
            self.connector.seal(touched, network, info.node, &info.address).await;
        }
        self.ingress.settle(&self.engine, info.node, &info.address).await;
        for action in others {
            self.act(action, reporter).await;
        }
        if is_told {
            self.keeper.keep(self.agent.holding());
        }
        if is_first_work {
            self.connector.leave_others(&self.engine.network).await;
            own_networks::settle(&self.engine, &self.connector.board).await;
        }
    }

    async fn act(&mut self, action: Action, reporter: Option<&Reporter>) {
        let (engine, events) = (self.engine.clone(), self.events.clone());
        match action {
            Action::Connect(change) => {
                let (info, network) = (self.info.borrow().clone(), change.network);
                self.connector.apply(&engine.network, info.node, &info.address, *change).await;
                own_networks::make(&engine, &self.connector.board, network).await;
            }
            Action::Leave(network) => {
                self.connector.leave(&engine.network, network).await;
                own_networks::settle(&engine, &self.connector.board).await;
            }
            Action::Prepare { task, template } => {
                let info = self.info.borrow().clone();
                let places = self.connector.places(&task, |id| self.ingress.is_network(id));
                let ports = self.ingress.needed_ports(&task, info.node);
                tokio::spawn(async move {
                    let result = match ingress::check(&engine, &ports).await {
                        Ok(()) => prepare(&engine, &task, &template, &info, places).await,
                        Err(held) => Err(refusal(held)),
                    };
                    send(&events, Event::Prepared { task: task.id, result }).await;
                });
            }
            Action::Start { task, container } => {
                let ports = self.ingress.awaited_ports(task);
                tokio::spawn(async move {
                    let result = start(&engine, &container).await;
                    if let Ok(started) = &result
                        && !started.awaits_health
                        && !ports.is_empty()
                    {
                        readiness::listens(started.pid, &ports).await;
                    }
                    send(&events, Event::Started { task, result }).await;
                });
            }
            Action::Stop { task, container, grace } => {
                let drain = self.connector.drain_of(task);
                tokio::spawn(async move {
                    if !drain.is_zero() {
                        readiness::left_alone(&engine.network, &container, drain, grace).await;
                    }
                    let exit = stop(&engine, &container, grace).await;
                    send(&events, Event::Stopped { task, exit }).await;
                });
            }
            Action::Remove { task, container } => {
                tokio::spawn(async move {
                    remove(&engine, &container).await;
                    send(&events, Event::Removed { task }).await;
                });
            }
            Action::Report(reports) => {
                // Reports are only made while there is a session.
                let Some(reporter) = reporter.cloned() else { return };
                tokio::spawn(async move {
                    match reporter.report(&reports).await {
                        Ok(()) => send(&events, Event::Reported(reports)).await,
                        // The session has ended; the next one begins with what was not told.
                        Err(reason) => warn!(reason, "status not reported"),
                    }
                });
            }
            Action::Serve { .. } => unreachable!("noted, and not given back"),
        }
    }
}

struct Stopped;

async fn send(events: &mpsc::Sender<Event>, event: Event) {
    // Nobody listens once the node has left its swarm or the daemon stops.
    let _ = events.send(event).await;
}

fn task_of(labels: &BTreeMap<String, String>) -> Option<TaskId> {
    labels.get(TASK_LABEL)?.parse().ok()
}

fn exit_of(status: &Status) -> Exit {
    let code = i32::try_from(status.exit_code).unwrap_or(i32::MAX);
    Exit { code, message: status.error.clone() }
}

fn timestamp(at: Option<jiff::Timestamp>) -> Timestamp {
    at.and_then(|at| i64::try_from(at.as_nanosecond()).ok()).map_or_else(now, Timestamp::from_nanos)
}

fn found_state(engine: &Engine, container: &str, status: &Status) -> FoundState {
    match status.phase {
        Phase::Created => FoundState::Created,
        Phase::Running | Phase::Paused | Phase::Restarting => FoundState::Running {
            started: started(engine, container, status),
            since: timestamp(status.started_at),
        },
        Phase::Removing | Phase::Exited | Phase::Dead => {
            FoundState::Exited { exit: exit_of(status) }
        }
    }
}

fn started(engine: &Engine, container: &str, status: &Status) -> Started {
    let endpoint = engine.network.endpoint(container);
    Started {
        pid: i32::try_from(status.pid).unwrap_or(0),
        address: endpoint.map(|endpoint| endpoint.address.to_string()).unwrap_or_default(),
        awaits_health: matches!(
            status.health,
            Some(HealthState::Starting | HealthState::Unhealthy)
        ),
        ports: host_ports(engine, container),
    }
}

/// Ports in host mode as they were bound.
fn host_ports(engine: &Engine, container: &str) -> Vec<PortConfig> {
    let ports = engine.containers.published(container).unwrap_or_default();
    let ports = ports.into_iter().map(|port| PortConfig {
        name: String::new(),
        protocol: match port.protocol {
            Protocol::Tcp => types::endpoint::Protocol::Tcp,
            Protocol::Udp => types::endpoint::Protocol::Udp,
            Protocol::Sctp => types::endpoint::Protocol::Sctp,
        },
        target: port.target,
        published: port.published,
        mode: PublishMode::Host,
    });
    ports.collect()
}

fn refusal(error: impl std::fmt::Display) -> Refusal {
    Refusal { message: error.to_string() }
}

async fn prepare(
    engine: &Engine,
    task: &Task,
    template: &TaskTemplate,
    identity: &NodeInfo,
    places: Places,
) -> Result<String, Refusal> {
    if let Some(obstacle) = &places.obstacle {
        return Err(refusal(obstacle));
    }
    let template = expanded(task, template, identity).map_err(refusal)?;
    fetch_image(engine, &template).await?;
    let (config, host) = container_config(task, &template, identity.node);
    let mut request = NewContainer {
        name: Some(task.container_name(&template.service_name)),
        config,
        host,
        ..NewContainer::default()
    };
    places.write_into(&mut request);
    let created = match engine.containers.create(request.clone()).await {
        // Left by a daemon that ended in the middle of this.
        Err(error) if error.kind() == ErrorKind::Conflict => {
            remove(engine, &task.container_name(&template.service_name)).await;
            engine.containers.create(request).await
        }
        created => created,
    };
    created.map(|created| created.id).map_err(refusal)
}

/// Fills placeholders in.
fn expanded(
    task: &Task,
    template: &TaskTemplate,
    identity: &NodeInfo,
) -> Result<TaskTemplate, String> {
    let values = Values::new(task, template, identity.node, &identity.description.hostname);
    let mut template = template.clone();
    let spec = &mut template.task.container;
    spec.hostname = values.expand(&spec.hostname)?;
    for variable in &mut spec.env {
        *variable = values.expand(variable)?;
    }
    for mount in &mut spec.mounts {
        mount.source = values.expand(&mount.source)?;
        mount.target = values.expand(&mount.target)?;
    }
    Ok(template)
}

/// Gets the image unless it is here. One that is named by tag and digest is looked for by its digest.
async fn fetch_image(engine: &Engine, template: &TaskTemplate) -> Result<(), Refusal> {
    let spec = &template.task.container;
    if engine.images.find(&spec.image).is_ok() {
        return Ok(());
    }
    let reference = spec.image.parse::<Reference>().map_err(refusal)?.or_latest();
    let credentials = Credentials::from_header(&spec.registry_auth).map_err(refusal)?;
    let request = PullRequest { reference: reference.clone(), platform: None, credentials };
    match engine.images.pull(&request, &Progress::silent()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            warn!(image = spec.image, %error, "image not pulled");
            // Docker's words for an image that is neither here nor to be had; the cause stands behind them.
            Err(refusal(format!("No such image: {} ({error})", reference.familiar())))
        }
    }
}

async fn start(engine: &Engine, container: &str) -> Result<Started, Refusal> {
    let started_now = engine.containers.start(container).await;
    started_now.map_err(|error| refusal(format!("starting container failed: {error}")))?;
    let status = engine.containers.status(container).map_err(refusal)?;
    Ok(started(engine, container, &status))
}

async fn stop(engine: &Engine, container: &str, grace: Duration) -> Exit {
    let options = StopOptions { signal: None, grace: Some(grace) };
    match engine.containers.stop(container, options).await {
        Err(error) if error.kind() != ErrorKind::NotModified => {
            warn!(container, %error, "container not stopped in good order");
        }
        _ => {}
    }
    engine.containers.status(container).map_or_else(|_| Exit::default(), |status| exit_of(&status))
}

async fn remove(engine: &Engine, container: &str) {
    let options = RemoveOptions { force: true, volumes: true };
    match engine.containers.remove(container, options).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            warn!(container, %error, "container not removed");
        }
        _ => {}
    }
}

/// Removes every task's container and port, when the node has left its swarm.
pub(crate) async fn clear(engine: &SharedEngine) {
    let mut removals = tokio::task::JoinSet::new();
    for found in engine.containers.find(&[(TASK_LABEL, None)]) {
        let engine = engine.clone();
        removals.spawn(async move { remove(&engine, &found.id).await });
    }
    while removals.join_next().await.is_some() {}
    ingress::withdraw_all(engine).await;
    own_networks::keep(engine, &BTreeSet::new()).await;
    for overlay in engine.network.overlays().await.unwrap_or_default() {
        if let Err(error) = engine.network.remove_overlay(&overlay).await {
            warn!(network.id = overlay, %error, "network is not removed");
        }
    }
    if let Err(error) = engine.network.close_tunnel().await {
        warn!(%error, "the tunnel of encrypted networks is not removed");
    }
}

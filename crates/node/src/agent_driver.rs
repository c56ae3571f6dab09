//! Does what the agent decides: carries its actions to the engine and the network, and their results back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent::{Action, Agent, Event, Exit, Found, FoundState, Refusal, Started};
use docker_types::convert::task::{container_config, container_name};
use engine::containers::{
    Change, HealthState, NewContainer, Phase, RemoveOptions, Status, StopOptions,
};
use engine::images::progress::Reporter;
use engine::images::pull::PullRequest;
use engine::images::reference::Reference;
use engine::registry::auth::Credentials;
use engine::{Engine, ErrorKind};
use manager::{Manager, Session, now};
use network::{Protocol, PublishedPort};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::endpoint::PortConfig;
use types::node::Description;
use types::{NodeId, ServiceId, Task, TaskId, TaskTemplate, Timestamp};

use crate::daemon::SharedEngine;
use crate::templating::Values;

const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// Owners of published ports that are services begin so.
const SERVICE_OWNER: &str = "service:";

/// Results of actions under way; each task has at most one.
const EVENTS_MAX: usize = 1024;

/// Between two attempts to reach the manager.
const RECONNECT: Duration = Duration::from_millis(200);

/// Who this node is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) description: Description,
}

pub(crate) struct AgentDriver {
    engine: SharedEngine,
    manager: Arc<Manager>,
    identity: Identity,
    agent: Agent,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// Which services have ports, to withdraw those an earlier daemon left.
    published: BTreeSet<String>,
    has_work: bool,
}

impl AgentDriver {
    pub(crate) fn new(engine: SharedEngine, manager: Arc<Manager>, identity: Identity) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        Self {
            engine,
            manager,
            identity,
            agent: Agent::default(),
            events,
            inbox,
            published: BTreeSet::new(),
            has_work: false,
        }
    }

    /// Runs until told to stop. Containers run on after that.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.engine.containers.changes();
        self.adopt();
        loop {
            let opened = self.manager.open_session(
                self.identity.node,
                self.identity.description.clone(),
                self.identity.address.clone(),
            );
            let session = tokio::select! {
                () = stop.cancelled() => return,
                session = opened => session,
            };
            match session {
                Ok(session) => {
                    if self.serve(session, &mut changes, &stop).await.is_err() {
                        return;
                    }
                }
                Err(error) => warn!(%error, "no session with the manager"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECONNECT) => {}
            }
        }
    }

    /// Works within one session; an error means that it is time to stop.
    async fn serve(
        &mut self,
        mut session: Session,
        changes: &mut broadcast::Receiver<Change>,
        stop: &CancellationToken,
    ) -> Result<(), Stopped> {
        let reporter = session.reporter();
        self.handle(Event::Connected, &reporter).await;
        let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Err(Stopped),
                set = session.next() => match set {
                    Some(set) => Event::Assigned(set),
                    None => break,
                },
                event = self.inbox.recv() => event.expect("we hold a sender ourselves"),
                change = changes.recv() => match change {
                    Ok(change) => match self.observe(&change.labels, &change.status) {
                        Some(event) => event,
                        None => continue,
                    },
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.look_again(&reporter).await;
                        continue;
                    }
                    Err(broadcast::error::RecvError::Closed) => return Err(Stopped),
                },
                _ = heartbeat.tick() => match reporter.heartbeat() {
                    Ok(period) => {
                        heartbeat.reset_after(period);
                        continue;
                    }
                    Err(_) => break,
                },
            };
            self.handle(event, &reporter).await;
        }
        self.agent.handle(Event::Disconnected, now());
        Ok(())
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

    /// After missed changes: every container's state is told again; what is known already changes nothing.
    async fn look_again(&mut self, reporter: &manager::Reporter) {
        for found in self.engine.containers.find(&[(TASK_LABEL, None)]) {
            if let Some(event) = self.observe(&found.labels, &found.status) {
                self.handle(event, reporter).await;
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

    async fn handle(&mut self, event: Event, reporter: &manager::Reporter) {
        let is_first_work = matches!(&event, Event::Assigned(set) if set.is_full)
            && !std::mem::replace(&mut self.has_work, true);
        for action in self.agent.handle(event, now()) {
            self.act(action, reporter).await;
        }
        if is_first_work {
            let withdrawn =
                self.engine.network.withdraw_others(SERVICE_OWNER, self.published.clone()).await;
            if let Err(error) = withdrawn {
                warn!(%error, "ports of an earlier daemon stay published");
            }
        }
    }

    async fn act(&mut self, action: Action, reporter: &manager::Reporter) {
        let (engine, events) = (self.engine.clone(), self.events.clone());
        match action {
            Action::Prepare { task, template } => {
                let identity = self.identity.clone();
                tokio::spawn(async move {
                    let result = prepare(&engine, &task, &template, &identity).await;
                    send(&events, Event::Prepared { task: task.id, result }).await;
                });
            }
            Action::Start { task, container } => {
                tokio::spawn(async move {
                    let result = start(&engine, &container).await;
                    send(&events, Event::Started { task, result }).await;
                });
            }
            Action::Stop { task, container, grace } => {
                tokio::spawn(async move {
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
                let reporter = reporter.clone();
                tokio::spawn(async move {
                    match reporter.report(&reports).await {
                        Ok(()) => send(&events, Event::Reported(reports)).await,
                        // The session has ended; the next one begins with what was not told.
                        Err(error) => warn!(%error, "status not reported"),
                    }
                });
            }
            Action::Publish { service, ports, backends } => {
                self.publish(service, &ports, &backends).await;
            }
        }
    }

    /// Publishes in the order of the agent's decisions.
    async fn publish(&mut self, service: ServiceId, ports: &[PortConfig], backends: &[String]) {
        let owner = format!("{SERVICE_OWNER}{service}");
        let backends: Vec<_> = backends.iter().filter_map(|address| address.parse().ok()).collect();
        let ports: Vec<_> = ports
            .iter()
            .map(|port| PublishedPort {
                protocol: protocol(port.protocol),
                host_ip: None,
                published: port.published,
                target: port.target,
                backends: backends.clone(),
            })
            .collect();
        if ports.is_empty() {
            self.published.remove(&owner);
        } else {
            self.published.insert(owner.clone());
        }
        if let Err(error) = self.engine.network.publish(&owner, ports).await {
            warn!(service.id = %service, %error, "ports are not published");
        }
    }
}

struct Stopped;

async fn send(events: &mpsc::Sender<Event>, event: Event) {
    // Nobody listens once the node has left its swarm or the daemon stops.
    let _ = events.send(event).await;
}

fn protocol(protocol: types::endpoint::Protocol) -> Protocol {
    match protocol {
        types::endpoint::Protocol::Tcp => Protocol::Tcp,
        types::endpoint::Protocol::Udp => Protocol::Udp,
        types::endpoint::Protocol::Sctp => Protocol::Sctp,
    }
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
        ports: Vec::new(),
    }
}

fn refusal(error: impl std::fmt::Display) -> Refusal {
    Refusal { message: error.to_string() }
}

async fn prepare(
    engine: &Engine,
    task: &Task,
    template: &TaskTemplate,
    identity: &Identity,
) -> Result<String, Refusal> {
    let template = expanded(task, template, identity).map_err(refusal)?;
    fetch_image(engine, &template).await?;
    let (config, host) = container_config(task, &template, identity.node);
    let request = NewContainer {
        name: Some(container_name(task, &template)),
        config,
        host,
        ..NewContainer::default()
    };
    let created = match engine.containers.create(request.clone()).await {
        // Left by a daemon that ended in the middle of this.
        Err(error) if error.kind() == ErrorKind::Conflict => {
            remove(engine, &container_name(task, &template)).await;
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
    identity: &Identity,
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
    match engine.images.pull(&request, &Reporter::silent()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            warn!(image = spec.image, %error, "image not pulled");
            // Docker's words for an image that is neither here nor to be had; the cause stands behind them.
            Err(refusal(format!("No such image: {} ({error})", reference.familiar())))
        }
    }
}

async fn start(engine: &Engine, container: &str) -> Result<Started, Refusal> {
    engine.containers.start(container).await.map_err(refusal)?;
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
    if let Err(error) = engine.network.withdraw_others(SERVICE_OWNER, BTreeSet::new()).await {
        warn!(%error, "ports of the swarm stay published");
    }
}

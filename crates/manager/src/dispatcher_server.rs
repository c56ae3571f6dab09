//! Carries assignments to nodes and their reports back: the driver around [`dispatcher::Dispatcher`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dispatcher::{Dispatcher, Send, SessionId, write_down, write_ready, write_reports};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::NodeId;
use types::assignment::{SessionMessage, StatusReport};
use types::node::Description;

use crate::clock::now;
use crate::error::{Code, Error};
use crate::writer::Writer;

/// Messages waiting for a node. One that does not take them begins again with a full set.
const MESSAGES_WAITING_MAX: usize = 256;

/// How late the look at the heartbeats may be before it counts as a stall of this process, which then has not heard
/// what it should have.
const STALL: Duration = Duration::from_millis(300);

/// Longest sleep between two looks: a stall is noticed only by a sleep that took too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Sessions {
    dispatcher: Dispatcher,
    streams: HashMap<NodeId, (SessionId, mpsc::Sender<SessionMessage>)>,
    /// Whether this manager leads: only then there are sessions.
    is_open: bool,
}

#[derive(Debug)]
pub(crate) struct DispatcherServer {
    writer: Arc<Writer>,
    sessions: Mutex<Sessions>,
    /// The next expiry may be sooner than it was.
    changed: Notify,
}

/// A node's connection to its manager. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    server: Arc<DispatcherServer>,
    node: NodeId,
    id: SessionId,
    messages: mpsc::Receiver<SessionMessage>,
}

impl Session {
    /// Tells this session from others of the node.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The next thing for the node; `None` when the session has ended and another must be opened.
    pub async fn next(&mut self) -> Option<SessionMessage> {
        self.messages.recv().await
    }

    /// What reports and heartbeats go through while [`Session::next`] is awaited.
    pub fn reporter(&self) -> Reporter {
        Reporter { server: self.server.clone(), node: self.node, id: self.id }
    }
}

impl Drop for Session {
    /// The node itself is given time to come back: a lost connection is no proof that it is gone.
    fn drop(&mut self) {
        let mut sessions = self.server.lock();
        sessions.streams.retain(|_, (id, _)| *id != self.id);
    }
}

/// The way back to the manager.
#[derive(Clone, Debug)]
pub struct Reporter {
    server: Arc<DispatcherServer>,
    node: NodeId,
    id: SessionId,
}

impl Reporter {
    /// Writes the reports; they are durable when this returns.
    pub async fn report(&self, reports: &[StatusReport]) -> Result<(), Error> {
        self.server.report(self.node, self.id, reports).await
    }

    /// Says that the node lives; answers with the time until the next heartbeat.
    pub fn heartbeat(&self) -> Result<Duration, Error> {
        self.server.heartbeat(self.node, self.id)
    }

    /// Says that the node's daemon stops, and may be back soon.
    pub fn goodbye(&self) {
        self.server.goodbye(self.node, self.id);
    }
}

impl DispatcherServer {
    pub(crate) fn new(writer: Arc<Writer>) -> Self {
        Self { writer, sessions: Mutex::default(), changed: Notify::new() }
    }

    /// Begins to take sessions: this manager leads now.
    pub(crate) fn begin(&self, term: u64) {
        let snapshot = self.writer.consensus().snapshot();
        // Identifiers of a leader's sessions begin where no other term's do.
        let first = term << 32;
        let mut sessions = self.lock();
        sessions.dispatcher = Dispatcher::new(&snapshot, first, self.heartbeat_period(), now());
        sessions.is_open = true;
        drop(sessions);
        self.changed.notify_one();
    }

    /// Ends all sessions: another manager leads.
    pub(crate) fn end(&self) {
        *self.lock() = Sessions::default();
    }

    pub(crate) async fn open_session(
        self: &Arc<Self>,
        node: NodeId,
        description: Description,
        address: String,
    ) -> Result<Session, Error> {
        let (stream, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let id = self.register(node, stream)?;
        self.changed.notify_one();
        let session = Session { server: self.clone(), node, id, messages };
        let write = |draft: &mut store::Draft| {
            write_ready(draft, node, &description, &address);
            Ok(())
        };
        self.writer.write(write).await?;
        info!(node.id = %node, session = id, "node is ready");
        Ok(session)
    }

    fn register(
        &self,
        node: NodeId,
        stream: mpsc::Sender<SessionMessage>,
    ) -> Result<SessionId, Error> {
        let period = self.heartbeat_period();
        let mut sessions = self.lock();
        if !sessions.is_open {
            return Err(Error::not_leader());
        }
        let snapshot = self.writer.consensus().snapshot();
        if snapshot.node(node).is_none() {
            return Err(Error::new(Code::NotFound, format!("node {node} is not in the cluster")));
        }
        let (id, first) = sessions.dispatcher.register(&snapshot, node, period, now());
        for message in first {
            stream.try_send(message).expect("a new stream has room");
        }
        sessions.streams.insert(node, (id, stream));
        Ok(id)
    }

    pub(crate) async fn report(
        &self,
        node: NodeId,
        session: SessionId,
        reports: &[StatusReport],
    ) -> Result<(), Error> {
        self.check(node, session)?;
        let write = |draft: &mut store::Draft| {
            write_reports(draft, node, reports);
            Ok(())
        };
        self.writer.write(write).await
    }

    pub(crate) fn heartbeat(&self, node: NodeId, session: SessionId) -> Result<Duration, Error> {
        let period = self.heartbeat_period();
        let mut sessions = self.lock();
        let beat = sessions.dispatcher.heartbeat(node, session, period, now());
        beat.map_err(|error| Error::new(Code::NotFound, error.to_string()))?;
        Ok(dispatcher::heartbeat_interval(period))
    }

    pub(crate) fn goodbye(&self, node: NodeId, session: SessionId) {
        let period = self.heartbeat_period();
        self.lock().dispatcher.disconnect(node, session, period, now());
        self.changed.notify_one();
    }

    /// Sends nodes what they must hear of each change.
    pub(crate) async fn follow_changes(self: Arc<Self>, stop: CancellationToken) {
        let mut feed = self.writer.consensus().subscribe();
        loop {
            let applied = tokio::select! {
                () = stop.cancelled() => return,
                applied = feed.recv() => applied,
            };
            match applied {
                Ok(applied) => self.send_changes(&applied.events),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    warn!(missed, "assignments fell behind; nodes begin again with full sets");
                    self.lock().streams.clear();
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn send_changes(&self, events: &[store::Event]) {
        let mut sessions = self.lock();
        for event in events {
            if let (store::Key::Node(node), None) = (event.key, &event.after) {
                sessions.dispatcher.forget(node);
                sessions.streams.remove(&node);
            }
        }
        // The newest state, not that of the events: what a session was told is never older than before.
        let snapshot = self.writer.consensus().snapshot();
        let sends = sessions.dispatcher.changed(&snapshot, events);
        for Send { node, session, message } in sends {
            let Some((_, stream)) = sessions.streams.get(&node) else { continue };
            if stream.try_send(message).is_err() {
                warn!(node.id = %node, session, "node does not take its assignments; stream ended");
                sessions.streams.remove(&node);
            }
        }
    }

    /// Marks nodes down whose heartbeats stay out.
    pub(crate) async fn expire_sessions(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.lock().dispatcher.next_expiry();
            let planned = next.map_or(LOOK_INTERVAL, |at| at.since(now()).min(LOOK_INTERVAL));
            let begun = tokio::time::Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => continue,
                () = tokio::time::sleep(planned) => {}
            }
            let late = begun.elapsed().saturating_sub(planned);
            if late > STALL {
                warn!(?late, "this manager was held up; nodes are given that much more time");
                self.lock().dispatcher.postpone(late);
                continue;
            }
            let expired = self.lock().dispatcher.expire(now());
            if !expired.is_empty() {
                self.write_down(&expired).await;
            }
        }
    }

    async fn write_down(&self, expired: &[NodeId]) {
        self.lock().streams.retain(|node, _| !expired.contains(node));
        let write = |draft: &mut store::Draft| {
            // One that came back meanwhile has written that it is here, or is about to.
            let gone = expired.iter().filter(|node| !self.lock().dispatcher.has_session(**node));
            for node in gone {
                write_down(draft, *node, "heartbeat failure");
            }
            Ok(())
        };
        if let Err(error) = self.writer.write(write).await {
            warn!(nodes = expired.len(), %error, "silent nodes could not be marked down yet");
            self.lock().dispatcher.expire_again(expired, now() + LOOK_INTERVAL);
        }
    }

    fn check(&self, node: NodeId, session: SessionId) -> Result<(), Error> {
        if self.lock().dispatcher.is_current(node, session) {
            return Ok(());
        }
        let error = dispatcher::UnknownSession { node, session };
        Err(Error::new(Code::NotFound, error.to_string()))
    }

    fn heartbeat_period(&self) -> Duration {
        let snapshot = self.writer.consensus().snapshot();
        let period = snapshot.cluster().map(|cluster| cluster.spec.heartbeat_period);
        period.unwrap_or(types::ClusterSpec::default().heartbeat_period)
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().expect("the dispatcher does not panic")
    }
}

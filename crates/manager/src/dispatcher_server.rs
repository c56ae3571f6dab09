//! Carries assignments to nodes and their reports back: the driver around [`dispatcher::Dispatcher`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dispatcher::{Dispatcher, Send, SessionId, write_down, write_ready, write_reports};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::NodeId;
use types::assignment::{AssignmentSet, StatusReport};
use types::node::Description;

use crate::clock::now;
use crate::error::{Code, Error};
use crate::writer::Writer;

/// Assignment sets waiting for a node. One that does not take them begins again with a full set.
const ASSIGNMENTS_WAITING_MAX: usize = 256;

#[derive(Debug, Default)]
struct Sessions {
    dispatcher: Dispatcher,
    streams: HashMap<NodeId, (SessionId, mpsc::Sender<AssignmentSet>)>,
}

#[derive(Debug)]
pub(crate) struct DispatcherServer {
    writer: Arc<Writer>,
    sessions: Mutex<Sessions>,
    /// A session was opened, so the next expiry may be sooner.
    opened: Notify,
}

/// A node's connection to its manager. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    server: Arc<DispatcherServer>,
    node: NodeId,
    id: SessionId,
    assignments: mpsc::Receiver<AssignmentSet>,
}

impl Session {
    /// The next work for the node; `None` when the session has ended and another must be opened.
    pub async fn next(&mut self) -> Option<AssignmentSet> {
        self.assignments.recv().await
    }

    /// What reports and heartbeats go through while [`Session::next`] is awaited.
    pub fn reporter(&self) -> Reporter {
        Reporter { server: self.server.clone(), node: self.node, id: self.id }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.server.lock();
        sessions.dispatcher.disconnect(self.node, self.id);
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
        self.server.check(self.node, self.id)?;
        let write = |draft: &mut store::Draft| {
            write_reports(draft, self.node, reports);
            Ok(())
        };
        self.server.writer.write(write).await
    }

    /// Says that the node lives; answers with the time until the next heartbeat.
    pub fn heartbeat(&self) -> Result<Duration, Error> {
        let period = self.server.heartbeat_period();
        let mut sessions = self.server.lock();
        let beat = sessions.dispatcher.heartbeat(self.node, self.id, period, now());
        beat.map_err(|error| Error::new(Code::NotFound, error.to_string()))?;
        Ok(period)
    }
}

impl DispatcherServer {
    pub(crate) fn new(writer: Arc<Writer>) -> Self {
        Self { writer, sessions: Mutex::default(), opened: Notify::new() }
    }

    pub(crate) async fn open_session(
        self: &Arc<Self>,
        node: NodeId,
        description: Description,
        address: String,
    ) -> Result<Session, Error> {
        let known = self.writer.consensus().snapshot().node(node).is_some();
        if !known {
            return Err(Error::new(Code::NotFound, format!("node {node} is not in the cluster")));
        }
        let (stream, assignments) = mpsc::channel(ASSIGNMENTS_WAITING_MAX);
        let id = {
            let mut sessions = self.lock();
            let snapshot = self.writer.consensus().snapshot();
            let send =
                sessions.dispatcher.register(&snapshot, node, self.heartbeat_period(), now());
            let sent = stream.try_send(send.set);
            sent.expect("a new stream has room");
            sessions.streams.insert(node, (send.session, stream));
            send.session
        };
        self.opened.notify_one();
        let session = Session { server: self.clone(), node, id, assignments };
        let write = |draft: &mut store::Draft| {
            write_ready(draft, node, &description, &address);
            Ok(())
        };
        self.writer.write(write).await?;
        info!(node.id = %node, session = id, "node is ready");
        Ok(session)
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
        // The newest state, not that of the events: what a session was told is never older than before.
        let snapshot = self.writer.consensus().snapshot();
        let sends = sessions.dispatcher.changed(&snapshot, events);
        for Send { node, session, set } in sends {
            let Some((_, stream)) = sessions.streams.get(&node) else { continue };
            if stream.try_send(set).is_err() {
                warn!(node.id = %node, session, "node does not take its assignments; session ended");
                sessions.streams.remove(&node);
                sessions.dispatcher.disconnect(node, session);
            }
        }
    }

    /// Marks nodes down whose heartbeats stay out.
    pub(crate) async fn expire_sessions(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.lock().dispatcher.next_expiry();
            let pause = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.opened.notified() => continue,
                () = pause => {}
            }
            let expired = self.lock().dispatcher.expire(now());
            for node in expired {
                self.lock().streams.remove(&node);
                let write = |draft: &mut store::Draft| {
                    write_down(draft, node, "heartbeat failure");
                    Ok(())
                };
                if let Err(error) = self.writer.write(write).await {
                    warn!(node.id = %node, %error, "node could not be marked down");
                }
            }
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

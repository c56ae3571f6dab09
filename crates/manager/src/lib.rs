//! The control plane of one manager: takes requests, writes them through the consensus, plans, and talks to nodes.
//!
//! Every write is planned before it is proposed: one log entry carries a request and all that follows from it at once.

mod clock;
mod control;
mod dispatcher_server;
mod error;
mod leadership;
mod writer;

use std::sync::Arc;

use consensus::Consensus;
use store::{Event, Snapshot};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use clock::now;
pub use control::cluster::{Bootstrap, Rotation};
pub use control::lookup;
pub use control::service::{Created, RegistryAuthFrom, Update};
pub use dispatcher_server::{Reporter, Session};
pub use error::{Code, Error};

use dispatcher_server::DispatcherServer;
use writer::Writer;

/// A running manager.
#[derive(Debug)]
pub struct Manager {
    writer: Arc<Writer>,
    dispatcher: Arc<DispatcherServer>,
    stop: CancellationToken,
    background: TaskTracker,
}

impl Manager {
    /// Makes the state of a new cluster.
    ///
    /// # Errors
    /// When the state directory cannot be written, or the root certificate cannot be made.
    pub async fn bootstrap(config: &consensus::Config, request: Bootstrap) -> Result<(), Error> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || control::cluster::bootstrap(&config, request))
            .await
            .map_err(|_| Error::stopped())?
    }

    /// Opens the state in `config` and begins to manage.
    ///
    /// # Errors
    /// When the log or the snapshot is damaged; the texts say where.
    pub async fn open(config: &consensus::Config) -> Result<Self, Error> {
        let config = config.clone();
        let consensus = tokio::task::spawn_blocking(move || Consensus::open(&config))
            .await
            .map_err(|_| Error::stopped())??;
        let writer = Arc::new(Writer::new(consensus));
        let dispatcher = Arc::new(DispatcherServer::new(writer.clone()));
        let (stop, background) = (CancellationToken::new(), TaskTracker::new());
        background.spawn(leadership::plan_on_time(writer.clone(), stop.clone()));
        background.spawn(dispatcher.clone().follow_changes(stop.clone()));
        background.spawn(dispatcher.clone().expire_sessions(stop.clone()));
        Ok(Self { writer, dispatcher, stop, background })
    }

    /// The newest agreed state. It holds every write that was answered before.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.writer.consensus().snapshot()
    }

    /// The raft identifier of the leader; 0 while there is none.
    pub fn leader(&self) -> u64 {
        self.writer.consensus().leadership().borrow().leader
    }

    /// Changes from now on, for `docker events`.
    pub fn changes(&self) -> Changes {
        Changes(self.writer.consensus().subscribe())
    }

    /// Opens a session for a node of this cluster.
    pub async fn open_session(
        &self,
        node: types::NodeId,
        description: types::node::Description,
        address: String,
    ) -> Result<Session, Error> {
        self.dispatcher.open_session(node, description, address).await
    }

    /// Ends the background work and gives the state back to the disk.
    pub async fn close(self) {
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        drop(self.dispatcher);
        let writer = self.writer;
        // Dropping the consensus joins its thread.
        let _ = tokio::task::spawn_blocking(move || drop(writer)).await;
    }
}

/// A subscription to changes.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<consensus::Applied>);

impl Changes {
    /// The next change set's events; `None` once the manager has stopped. Those a slow reader missed are skipped.
    pub async fn next(&mut self) -> Option<(Snapshot, Arc<[Event]>)> {
        loop {
            match self.0.recv().await {
                Ok(applied) => return Some((applied.snapshot, applied.events)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

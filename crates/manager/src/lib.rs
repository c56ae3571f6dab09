//! The control plane of one manager: takes requests, writes them through the consensus, plans, and talks to nodes.
//!
//! Every write is planned before it is proposed: one log entry carries a request and all that follows from it at once.

mod authority;
mod backup;
mod clock;
mod control;
mod dispatcher_server;
mod error;
mod external;
mod leadership;
mod links;
mod members;
pub mod methods;
mod wire;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use consensus::{Consensus, DataKey};
use rpc::{Client, SharedIdentity};
use store::{Event, Snapshot};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::assignment::ManagerPeer;

pub use clock::now;
pub use control::attachment::{Attached, Claim};
pub use control::cluster::{Bootstrap, Bootstrapped, Restore, Rotation};
pub use control::lookup;
pub use control::service::{Created, RegistryAuthFrom, Update};
pub use dispatcher::network_as_seen;
pub use dispatcher_server::{Reporter, Session};
pub use error::{Code, Error};

use authority::Authority;
use control::request::{Request, Response};
use dispatcher_server::DispatcherServer;
use leadership::Duties;
use links::Links;
use members::Members;
use wire::Wire;
use writer::Writer;

/// Pipes and states that the consensus waits for: a few for each manager. More are lost, which raft mends.
const WISHES_MAX: usize = 64;

/// How long a request waits for a leader: longer than it takes to elect one.
const LEADER_PATIENCE: Duration = Duration::from_secs(4);

/// How long a leader that stops waits for its successor.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts to reach the leader.
const LEADER_RETRY: Duration = Duration::from_millis(50);

/// A running manager.
#[derive(Debug)]
pub struct Manager {
    raft_id: u64,
    consensus: Arc<Consensus>,
    duties: Duties,
    links: Arc<Links>,
    identity: SharedIdentity,
    stop: CancellationToken,
    background: TaskTracker,
}

impl Manager {
    /// Makes the state of a new cluster, and its first node's certificate.
    ///
    /// # Errors
    /// When the state directory cannot be written, or the root certificate cannot be made.
    pub async fn bootstrap(
        config: &consensus::Config,
        request: Bootstrap,
    ) -> Result<Bootstrapped, Error> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || control::cluster::bootstrap(&config, request))
            .await
            .map_err(|_| Error::stopped())?
    }

    /// Makes the state of a cluster that goes on from `state` with this node as its only manager.
    ///
    /// # Errors
    /// When the state holds no cluster, or the state directory cannot be written.
    pub async fn restore(
        config: &consensus::Config,
        state: Snapshot,
        request: Restore,
    ) -> Result<Bootstrapped, Error> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || control::cluster::restore(&config, state, request))
            .await
            .map_err(|_| Error::stopped())?
    }

    /// Opens the state in `config` and begins to manage; `others` are managers that the state may not tell of yet.
    ///
    /// # Errors
    /// When the log or the snapshot is damaged; the texts say where.
    pub async fn open(
        config: &consensus::Config,
        identity: SharedIdentity,
        others: &[ManagerPeer],
    ) -> Result<Arc<Self>, Error> {
        let raft_id = config.raft_id;
        let config = config.clone();
        let (wishes, wished) = mpsc::channel(WISHES_MAX);
        let (wire, exchange) = Wire::new(wishes).map_err(|_| Error::stopped())?;
        let consensus =
            tokio::task::spawn_blocking(move || Consensus::open(&config, Box::new(wire)))
                .await
                .map_err(|_| Error::stopped())??;
        let consensus = Arc::new(consensus);
        let writer = Arc::new(Writer::new(consensus.clone()));
        let dispatcher = Arc::new(DispatcherServer::new(writer.clone()));
        let members = Arc::new(Members::new(writer.clone()));
        let authority = Arc::new(Authority::new(writer.clone(), identity.clone()));
        let duties = Duties { writer, dispatcher, members, authority };
        let client = Client::new(identity.clone());
        let links = Links::new(client, consensus.clone(), exchange, others);
        let (stop, background) = (CancellationToken::new(), TaskTracker::new());
        background.spawn(duties.clone().follow_leadership(stop.clone()));
        background.spawn(follow_settings(consensus.clone(), stop.clone()));
        background.spawn(links.clone().grant(wished, stop.clone()));
        Ok(Arc::new(Self { raft_id, consensus, duties, links, identity, stop, background }))
    }

    /// Answers other nodes on `listener` until the manager is closed.
    pub fn serve(self: &Arc<Self>, listener: TcpListener) {
        let router = Arc::new(methods::router(self));
        let limits = rpc::Limits::default();
        let serving =
            rpc::serve(listener, self.identity.clone(), router, limits, self.stop.clone());
        self.background.spawn(serving);
    }

    /// Does what another manager passed on.
    async fn handle(&self, request: Request) -> Result<Response, Error> {
        control::handle(&self.duties, request).await
    }

    /// Where the managers are.
    pub fn manager_peers(&self) -> Vec<ManagerPeer> {
        peers_in(&self.snapshot())
    }

    /// Asks for this node's seat in the consensus to be taken away and its tasks to be given to others.
    ///
    /// # Errors
    /// When those left could not agree on anything.
    pub async fn leave(&self, node: types::NodeId) -> Result<(), Error> {
        self.tell(Request::Leave(node)).await
    }

    /// Signs this node's next certificate, or has the leader do it.
    ///
    /// # Errors
    /// When there is no leader, or the node was removed.
    pub async fn renew(
        &self,
        node: types::NodeId,
        request: String,
    ) -> Result<methods::Issued, Error> {
        match self.ask(Request::Renew { node, request }).await? {
            Response::Issued(issued) => Ok(*issued),
            _ => Err(Error::unexpected_answer()),
        }
    }

    /// The newest state this manager knows. Another manager may have a newer one.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.consensus.snapshot()
    }

    /// A state that holds every write that was answered, by whichever manager, before this call.
    ///
    /// # Errors
    /// When no majority of the managers answers.
    pub async fn read(&self) -> Result<Arc<Snapshot>, Error> {
        self.consensus.caught_up().await?;
        Ok(self.consensus.snapshot())
    }

    /// The raft identifier of the leader; 0 while there is none.
    pub fn leader(&self) -> u64 {
        self.consensus.leadership().borrow().leader
    }

    /// Whether this manager leads.
    pub fn leads(&self) -> bool {
        self.consensus.leadership().borrow().is_leader
    }

    /// Where the leader is, while another manager leads.
    pub fn leader_address(&self) -> Option<String> {
        let leader = self.leader();
        self.links.address_of(leader).filter(|_| leader != self.raft_id)
    }

    /// What keeps the managers from agreeing, in words for the operator.
    pub fn trouble(&self) -> Option<String> {
        if self.consensus.has_failed() {
            return Some("the log of this manager cannot be kept; see the daemon's log".into());
        }
        if self.consensus.is_disk_full() {
            return Some(consensus::Error::DiskFull.to_string());
        }
        (self.leader() == 0).then(|| consensus::Error::NoLeader.to_string())
    }

    /// The nodes that the swarm waits for on its way to another root: those without a certificate of it.
    pub fn rotation_waits_for(&self) -> Vec<Arc<types::Node>> {
        authority::waiting(&self.snapshot())
    }

    /// Waits until this manager has no seat any more.
    pub async fn seat_is_gone(&self) {
        let mut peers = self.consensus.peers();
        let gone = peers.wait_for(|peers| !peers.voters.contains(&self.raft_id));
        let _ = gone.await;
    }

    /// Takes the seats of all managers but `node` away: they are lost. Their tasks go elsewhere.
    ///
    /// # Errors
    /// When this manager does not come to lead.
    pub async fn dismiss_others(&self, node: types::NodeId) -> Result<(), Error> {
        let dismiss = |draft: &mut store::Draft| {
            control::cluster::dismiss_others(draft, node, "manager lost with its quorum");
            Ok(())
        };
        self.duties.writer.write(dismiss).await
    }

    /// Seals log and snapshots with `key`; returns when nothing on the disk needs another one any more.
    ///
    /// # Errors
    /// What the disk refuses; everything stays readable with the keys of before.
    pub async fn rekey(&self, key: DataKey) -> Result<(), Error> {
        Ok(self.consensus.rekey(key).await?)
    }

    /// Who takes part in the consensus.
    pub fn peers(&self) -> types::Peers {
        self.consensus.peers().borrow().clone()
    }

    /// Has the leader do what `request` asks for, whoever leads.
    async fn ask(&self, request: Request) -> Result<Response, Error> {
        let until = Instant::now() + LEADER_PATIENCE;
        let mut leadership = self.consensus.leadership();
        loop {
            let leader = leadership.borrow_and_update().leader;
            match self.ask_member(leader, request.clone()).await {
                Err(error) if error.is_not_leader() && Instant::now() < until => {
                    let news = tokio::time::timeout(LEADER_RETRY, leadership.changed());
                    if let Ok(Err(_)) = news.await {
                        return Err(Error::stopped());
                    }
                }
                Err(error) if error.is_not_leader() => {
                    return Err(consensus::Error::NoLeader.into());
                }
                answer => return answer,
            }
        }
    }

    async fn ask_member(&self, leader: u64, request: Request) -> Result<Response, Error> {
        if leader == self.raft_id {
            return self.handle(request).await;
        }
        self.links.ask(leader, &request).await
    }

    /// [`Manager::ask`] for requests that are answered without a word.
    async fn tell(&self, request: Request) -> Result<(), Error> {
        match self.ask(request).await? {
            Response::Done => Ok(()),
            _ => Err(Error::unexpected_answer()),
        }
    }

    /// Changes from now on, for `docker events`.
    pub fn changes(&self) -> Changes {
        Changes(self.consensus.subscribe())
    }

    /// Counts the changes of the cluster object and of nodes.
    pub fn frame(&self) -> watch::Receiver<u64> {
        self.consensus.frame()
    }

    /// Opens a session for a node of this cluster.
    ///
    /// # Errors
    /// [`Error::is_not_leader`] where another manager leads; not found for a node that was removed.
    pub async fn open_session(
        &self,
        node: types::NodeId,
        description: types::node::Description,
        address: String,
    ) -> Result<Session, Error> {
        self.duties.dispatcher.open_session(node, description, address).await
    }

    /// Hands leadership over where there is somebody to take it, and ends everything that runs. Requests still under way
    /// fail.
    pub async fn close(&self) {
        self.hand_over().await;
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        let consensus = self.consensus.clone();
        let _ = tokio::task::spawn_blocking(move || consensus.stop()).await;
    }

    async fn hand_over(&self) {
        let mut leadership = self.consensus.leadership();
        if !leadership.borrow().is_leader || self.peers().voters.len() < 2 {
            return;
        }
        self.consensus.transfer_leadership();
        let another = leadership.wait_for(|leadership| !leadership.is_leader);
        let _ = tokio::time::timeout(HAND_OVER_PATIENCE, another).await;
    }
}

/// Where the managers are, by this state.
pub(crate) fn peers_in(snapshot: &Snapshot) -> Vec<ManagerPeer> {
    let seats = snapshot.nodes().filter_map(|node| {
        let seat = node.manager.as_ref()?;
        Some(ManagerPeer { node: node.id, raft_id: seat.raft_id, address: seat.address.clone() })
    });
    seats.collect()
}

/// Keeps the log as the cluster's settings say.
async fn follow_settings(consensus: Arc<Consensus>, stop: CancellationToken) {
    let mut frame = consensus.frame();
    loop {
        frame.mark_unchanged();
        if let Some(cluster) = consensus.snapshot().cluster() {
            let raft = &cluster.spec.raft;
            let kept_old = usize::try_from(raft.keep_old_snapshots).unwrap_or(usize::MAX);
            consensus.set_snapshot_interval(raft.snapshot_interval, kept_old);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = frame.changed() => if changed.is_err() { return },
        }
    }
}

/// A subscription to changes.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<consensus::Applied>);

impl Changes {
    /// The next change set's events; `None` once the manager has stopped. Those a slow reader missed are skipped.
    pub async fn next(&mut self) -> Option<Arc<[Event]>> {
        loop {
            match self.0.recv().await {
                Ok(applied) => return Some(applied.events),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

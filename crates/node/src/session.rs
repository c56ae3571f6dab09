//! A node's way to its managers: to the one that leads, in this process or on another host.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use manager::methods::{
    self, DetachRequest, HeartbeatRequest, Issued, RenewRequest, ReportRequest, SessionEvent,
    SessionRefusal, SessionRequest,
};
use manager::{Attached, Claim, Code, Error, Manager};
use rpc::{Channel, Client, Items, SharedIdentity};
use serde::Serialize;
use serde::de::DeserializeOwned;
use types::assignment::{ManagerPeer, SessionMessage, StatusReport};
use types::node::Description;
use types::{NetworkId, NodeId};

const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
const RENEW_TIMEOUT: Duration = Duration::from_secs(30);
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a manager may take to hear a heartbeat. Two that fail leave time to find another manager.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Managers asked, one after the other, before the search begins again.
const HOPS_MAX: usize = 4;

/// Who this node is.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) description: Description,
}

#[derive(Debug)]
struct Known {
    client: Arc<Client>,
    manager: Option<Arc<Manager>>,
    managers: Vec<ManagerPeer>,
}

/// Finds managers.
#[derive(Debug)]
pub(crate) struct Upstream {
    node: NodeId,
    known: Mutex<Known>,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoSession {
    /// The leader says that the swarm does not have this node any more.
    Removed,
    /// What the last manager said that was asked.
    Refused(String),
}

/// An open session.
#[derive(Debug)]
pub(crate) enum Link {
    Local(manager::Session),
    Remote(Items<SessionEvent>, Reporter),
}

/// The way back.
#[derive(Clone, Debug)]
pub(crate) enum Reporter {
    Local(manager::Reporter),
    Remote { channel: Channel, session: u64 },
}

impl Upstream {
    pub(crate) fn new(
        node: NodeId,
        identity: SharedIdentity,
        manager: Option<Arc<Manager>>,
        managers: Vec<ManagerPeer>,
    ) -> Self {
        let client = Arc::new(Client::new(identity));
        Self { node, known: Mutex::new(Known { client, manager, managers }) }
    }

    pub(crate) fn set_manager(&self, manager: Option<Arc<Manager>>) {
        self.lock().manager = manager;
    }

    pub(crate) fn set_managers(&self, managers: Vec<ManagerPeer>) {
        let mut known = self.lock();
        known.client.retain(|address| managers.iter().any(|peer| peer.address == address));
        known.managers = managers;
    }

    /// Begins anew with connections that show the present certificate.
    pub(crate) fn reconnect(&self, identity: SharedIdentity) {
        self.lock().client = Arc::new(Client::new(identity));
    }

    pub(crate) fn managers(&self) -> Vec<ManagerPeer> {
        self.lock().managers.clone()
    }

    /// Channels to other managers in random order, so that nodes spread over them.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        let known = self.lock();
        let mut others: Vec<_> =
            known.managers.iter().filter(|peer| peer.node != self.node).collect();
        let count = others.len();
        if count > 0 {
            others.rotate_left(rand::random_range(0..count));
        }
        others.iter().map(|peer| known.client.channel(&peer.address)).collect()
    }

    /// Opens a session with the manager that leads.
    ///
    /// # Errors
    /// [`NoSession`].
    pub(crate) async fn open(&self, info: &NodeInfo) -> Result<Link, NoSession> {
        let local = self.lock().manager.clone();
        let mut next = None;
        if let Some(manager) = local {
            let (node, description, address) =
                (info.node, info.description.clone(), info.address.clone());
            match manager.open_session(node, description, address).await {
                Ok(session) => return Ok(Link::Local(session)),
                Err(error) if error.is_not_leader() => next = manager.leader_address(),
                Err(error) => return Err(error.into()),
            }
        }
        let mut refusal = NoSession::Refused("no manager is known".to_owned());
        let mut candidates = self.channels().into_iter();
        for _ in 0..HOPS_MAX {
            let hinted = next.take().map(|address| self.lock().client.channel(&address));
            let Some(channel) = hinted.or_else(|| candidates.next()) else { break };
            match open_at(&channel, info).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(leader)) => {
                    refusal = NoSession::Refused(format!("{} does not lead", channel.address()));
                    next = leader;
                }
                Err(NoSession::Removed) => return Err(NoSession::Removed),
                Err(reason) => refusal = reason,
            }
        }
        Err(refusal)
    }

    /// Has the next certificate of this node signed.
    ///
    /// # Errors
    /// What the last manager said that was asked.
    pub(crate) async fn renew(&self, request: String) -> Result<Issued, String> {
        let local = self.lock().manager.clone();
        if let Some(manager) = local
            && let Ok(issued) = manager.renew(self.node, request.clone()).await
        {
            return Ok(issued);
        }
        let mut refusal = "no manager is known".to_owned();
        for channel in self.channels() {
            let request = RenewRequest { request: request.clone() };
            match channel.call(methods::CA_RENEW, &request, RENEW_TIMEOUT).await {
                Ok(Ok(issued)) => return Ok(issued),
                Ok(Err(error)) => refusal = Error::to_string(&error),
                Err(error) => refusal = error.to_string(),
            }
        }
        Err(refusal)
    }

    /// The manager in this process, if there is one.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.lock().manager.clone()
    }

    /// Has the managers give a container of this node a place in a network.
    ///
    /// # Errors
    /// What the manager said that was asked, or that none can be reached.
    pub(crate) async fn attach(&self, claim: Claim) -> Result<Attached, Error> {
        match self.manager() {
            Some(manager) => manager.attach(self.node, claim).await,
            None => self.ask_any(methods::ATTACH, &claim).await,
        }
    }

    /// Gives a place back.
    ///
    /// # Errors
    /// As of [`Upstream::attach`].
    pub(crate) async fn detach(&self, network: NetworkId, container: String) -> Result<(), String> {
        let detached = match self.manager() {
            Some(manager) => manager.detach(self.node, network, container).await,
            None => self.ask_any(methods::DETACH, &DetachRequest { network, container }).await,
        };
        detached.map_err(|error| error.to_string())
    }

    /// Tells the managers of all places that containers of this node hold.
    ///
    /// # Errors
    /// As of [`Upstream::attach`].
    pub(crate) async fn hold(&self, claims: Vec<Claim>) -> Result<(), String> {
        let held = match self.manager() {
            Some(manager) => manager.hold(self.node, claims).await,
            None => self.ask_any(methods::HOLD, &claims).await,
        };
        held.map_err(|error| error.to_string())
    }

    /// Asks managers one after another until one answers.
    async fn ask_any<Q: Serialize, R: DeserializeOwned>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<R, Error> {
        let mut unreached = Error::new(Code::Unavailable, "no manager is known");
        for channel in self.channels() {
            match channel.call(method, request, ATTACH_TIMEOUT).await {
                Ok(answer) => return answer,
                Err(error) => unreached = Error::new(Code::Unavailable, error.to_string()),
            }
        }
        Err(unreached)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session, or where the leader may be.
async fn open_at(
    channel: &Channel,
    info: &NodeInfo,
) -> Result<Result<Link, Option<String>>, NoSession> {
    let request =
        SessionRequest { description: info.description.clone(), address: info.address.clone() };
    let opened = channel
        .stream_out::<_, SessionEvent, SessionRefusal>(
            methods::OPEN_SESSION,
            &request,
            OPEN_TIMEOUT,
        )
        .await;
    let mut events = match opened.map_err(|error| NoSession::Refused(error.to_string()))? {
        Ok(events) => events,
        Err(SessionRefusal::NotLeader(leader)) => return Ok(Err(leader)),
        Err(SessionRefusal::Other(error)) => return Err(error.into()),
    };
    match tokio::time::timeout(OPEN_TIMEOUT, events.next()).await {
        Ok(Some(SessionEvent::Opened(session))) => {
            let reporter = Reporter::Remote { channel: channel.clone(), session };
            Ok(Ok(Link::Remote(events, reporter)))
        }
        _ => Err(NoSession::Refused(format!("{} opened no session", channel.address()))),
    }
}

impl From<Error> for NoSession {
    fn from(error: Error) -> Self {
        match error.code {
            Code::NotFound => Self::Removed,
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl fmt::Display for NoSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str("this node was removed from the swarm"),
            Self::Refused(refusal) => f.write_str(refusal),
        }
    }
}

impl Link {
    /// The next thing for the node; `None` when the session has ended.
    pub(crate) async fn next(&mut self) -> Option<SessionMessage> {
        match self {
            Self::Local(session) => session.next().await,
            Self::Remote(events, _) => match events.next().await? {
                SessionEvent::Message(message) => Some(message),
                SessionEvent::Opened(_) => None,
            },
        }
    }

    pub(crate) fn reporter(&self) -> Reporter {
        match self {
            Self::Local(session) => Reporter::Local(session.reporter()),
            Self::Remote(_, reporter) => reporter.clone(),
        }
    }
}

impl Reporter {
    /// Tells the manager of tasks; what was told is durable when this returns.
    pub(crate) async fn report(&self, reports: &[StatusReport]) -> Result<(), String> {
        match self {
            Self::Local(reporter) => {
                reporter.report(reports).await.map_err(|error| error.to_string())
            }
            Self::Remote { channel, session } => {
                let request = ReportRequest { session: *session, reports: reports.to_vec() };
                let told = channel.call(methods::REPORT, &request, REPORT_TIMEOUT).await;
                let told: Result<(), Error> = told.map_err(|error| error.to_string())?;
                told.map_err(|error| error.to_string())
            }
        }
    }

    /// Speaks as often as the manager asks for; returns when the manager does not hear any more.
    pub(crate) async fn keep_alive(&self) -> String {
        loop {
            match self.heartbeat(false).await {
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(reason) => return reason,
            }
        }
    }

    /// Says that the node goes, if anybody hears it.
    pub(crate) async fn goodbye(&self) {
        match self {
            Self::Local(reporter) => reporter.goodbye(),
            Self::Remote { .. } => drop(self.heartbeat(true).await),
        }
    }

    async fn heartbeat(&self, is_last: bool) -> Result<Duration, String> {
        match self {
            Self::Local(reporter) => reporter.heartbeat().map_err(|error| error.to_string()),
            Self::Remote { channel, session } => {
                let request = HeartbeatRequest { session: *session, is_last };
                let heard = channel.call(methods::HEARTBEAT, &request, HEARTBEAT_TIMEOUT).await;
                let heard: Result<Duration, Error> = heard.map_err(|error| error.to_string())?;
                heard.map_err(|error| error.to_string())
            }
        }
    }
}

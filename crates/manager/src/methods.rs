//! What nodes may ask of a manager, and where it is answered.

use std::sync::Arc;

use rpc::{Access, Caller, Frames, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use types::assignment::{ManagerPeer, SessionMessage, StatusReport};
use types::node::{Availability, Description, Role};
use types::{NetworkId, NodeId};

use crate::Manager;
use crate::control::attachment::Claim;
use crate::control::request::{Request, Response};
use crate::error::{Code, Error};

pub(crate) const CONTROL: &str = "skep.v1/control";
pub(crate) const RAFT_STATE: &str = "skep.v1/raft/state";
pub const CA_ROOT: &str = "skep.v1/ca/root";
pub const CA_ISSUE: &str = "skep.v1/ca/issue";
pub const CA_RENEW: &str = "skep.v1/ca/renew";
pub const TAKE_SEAT: &str = "skep.v1/members/seat";
pub const LEAVE: &str = "skep.v1/members/leave";
pub const OPEN_SESSION: &str = "skep.v1/dispatcher/session";
pub const HEARTBEAT: &str = "skep.v1/dispatcher/heartbeat";
pub const REPORT: &str = "skep.v1/dispatcher/report";
pub const ATTACH: &str = "skep.v1/networks/attach";
pub const DETACH: &str = "skep.v1/networks/detach";
pub const HOLD: &str = "skep.v1/networks/hold";

/// Messages of a session on their way into its stream.
const SESSION_MESSAGES_MAX: usize = 16;

/// A node without a certificate asks for one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IssueRequest {
    pub token: String,
    /// PEM of the certificate request.
    pub request: String,
    pub availability: Availability,
}

/// A node asks for the next certificate in the role it is to have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PEM of the certificate request.
    pub request: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Issued {
    pub node: NodeId,
    /// PEM.
    pub certificate: String,
    /// PEM of the roots to trust.
    pub roots: String,
    pub managers: Vec<ManagerPeer>,
}

/// A manager asks for its seat in the consensus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeatRequest {
    pub raft_id: u64,
    pub address: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRequest {
    pub description: Description,
    /// The address other nodes know the node by.
    pub address: String,
}

/// Why there is no session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SessionRefusal {
    /// Another manager leads; its address, where it is known.
    NotLeader(Option<String>),
    Other(Error),
}

/// What comes in a session's stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SessionEvent {
    /// The first one.
    Opened(u64),
    Message(SessionMessage),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    pub session: u64,
    /// The node goes, for good or for long.
    pub is_last: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportRequest {
    pub session: u64,
    pub reports: Vec<StatusReport>,
}

/// A node gives a container's place in a network back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DetachRequest {
    pub network: NetworkId,
    pub container: String,
}

/// Everything that is served on the cluster's port.
pub(crate) fn router(manager: &Arc<Manager>) -> Router {
    let mut router = Router::default();
    let own = manager.clone();
    router.shut_out(move |peer| {
        own.snapshot().cluster().is_some_and(|cluster| cluster.is_shut_out(peer.node))
    });
    add_authority(&mut router, manager);
    add_dispatcher(&mut router, manager);
    add_attachments(&mut router, manager);
    let own = manager.clone();
    router.unary(CONTROL, Access::Manager, move |caller, request: Request| {
        let own = own.clone();
        async move {
            check_manager(&own, caller)?;
            own.handle(request).await
        }
    });
    let own = manager.clone();
    router.unary(TAKE_SEAT, Access::Manager, move |caller, request: SeatRequest| {
        let own = own.clone();
        async move {
            let node = node_of(caller)?;
            let SeatRequest { raft_id, address } = request;
            own.ask(Request::TakeSeat { node, raft_id, address }).await?;
            Ok::<_, Error>(own.manager_peers())
        }
    });
    let links = manager.links.clone();
    router.pipes(move |pipe| links.called(pipe));
    let links = manager.links.clone();
    router.stream_in(RAFT_STATE, Access::Manager, move |caller, frames: Frames| {
        let links = links.clone();
        async move { links.receive_state(caller, frames).await }
    });
    router
}

fn add_authority(router: &mut Router, manager: &Arc<Manager>) {
    let own = manager.clone();
    router.unary(CA_ROOT, Access::Anyone, move |_, (): ()| {
        let own = own.clone();
        async move { Ok::<_, Error>(own.cluster()?.root_ca.certificate.clone()) }
    });
    let own = manager.clone();
    router.unary(CA_ISSUE, Access::Anyone, move |_, request: IssueRequest| {
        let own = own.clone();
        async move { issued(own.ask(Request::Issue(request)).await?) }
    });
    let own = manager.clone();
    router.unary(CA_RENEW, Access::AnyNode, move |caller, request: RenewRequest| {
        let own = own.clone();
        async move {
            let request = Request::Renew { node: node_of(caller)?, request: request.request };
            issued(own.ask(request).await?)
        }
    });
}

fn issued(response: Response) -> Result<Issued, Error> {
    match response {
        Response::Issued(issued) => Ok(*issued),
        _ => Err(Error::unexpected_answer()),
    }
}

fn add_dispatcher(router: &mut Router, manager: &Arc<Manager>) {
    let own = manager.clone();
    router.stream_out(OPEN_SESSION, Access::AnyNode, move |caller, request: SessionRequest| {
        let own = own.clone();
        async move { serve_session(&own, caller, request).await }
    });
    let dispatcher = manager.duties.dispatcher.clone();
    router.unary(HEARTBEAT, Access::AnyNode, move |caller, request: HeartbeatRequest| {
        let dispatcher = dispatcher.clone();
        async move {
            let node = node_of(caller)?;
            if request.is_last {
                dispatcher.goodbye(node, request.session);
            }
            dispatcher.heartbeat(node, request.session)
        }
    });
    let dispatcher = manager.duties.dispatcher.clone();
    router.unary(REPORT, Access::AnyNode, move |caller, request: ReportRequest| {
        let dispatcher = dispatcher.clone();
        async move { dispatcher.report(node_of(caller)?, request.session, &request.reports).await }
    });
    let own = manager.clone();
    router.unary(LEAVE, Access::AnyNode, move |caller, (): ()| {
        let own = own.clone();
        async move { own.ask(Request::Leave(node_of(caller)?)).await.map(drop) }
    });
}

/// A node speaks for itself alone: its certificate says who it is.
fn add_attachments(router: &mut Router, manager: &Arc<Manager>) {
    let own = manager.clone();
    router.unary(ATTACH, Access::AnyNode, move |caller, claim: Claim| {
        let own = own.clone();
        async move { own.attach(node_of(caller)?, claim).await }
    });
    let own = manager.clone();
    router.unary(DETACH, Access::AnyNode, move |caller, request: DetachRequest| {
        let own = own.clone();
        async move { own.detach(node_of(caller)?, request.network, request.container).await }
    });
    let own = manager.clone();
    router.unary(HOLD, Access::AnyNode, move |caller, claims: Vec<Claim>| {
        let own = own.clone();
        async move { own.hold(node_of(caller)?, claims).await }
    });
}

async fn serve_session(
    manager: &Manager,
    caller: Caller,
    request: SessionRequest,
) -> Result<mpsc::Receiver<SessionEvent>, SessionRefusal> {
    let node = node_of(caller).map_err(SessionRefusal::Other)?;
    let opened = manager.open_session(node, request.description, request.address).await;
    let mut session = match opened {
        Ok(session) => session,
        Err(error) if error.is_not_leader() => {
            let leader = manager.leader();
            let known =
                if leader == manager.raft_id { None } else { manager.links.address_of(leader) };
            return Err(SessionRefusal::NotLeader(known));
        }
        Err(error) => return Err(SessionRefusal::Other(error)),
    };
    let (events, stream) = mpsc::channel(SESSION_MESSAGES_MAX);
    tokio::spawn(async move {
        if events.send(SessionEvent::Opened(session.id())).await.is_err() {
            return;
        }
        loop {
            let message = tokio::select! {
                () = events.closed() => return,
                message = session.next() => message,
            };
            let Some(message) = message else { return };
            if events.send(SessionEvent::Message(message)).await.is_err() {
                return;
            }
        }
    });
    Ok(stream)
}

/// A certificate of a manager outlives the node's being one: what the leader does for managers asks for both.
fn check_manager(manager: &Manager, caller: Caller) -> Result<(), Error> {
    let id = node_of(caller)?;
    let snapshot = manager.snapshot();
    let node = snapshot.node(id);
    let is_manager = |node: &types::Node| node.spec.role == Role::Manager || node.manager.is_some();
    match node.is_some_and(|node| is_manager(node)) {
        true => Ok(()),
        false => {
            let desc = format!("node {id} is not a manager of this swarm any more");
            Err(Error::new(Code::FailedPrecondition, desc))
        }
    }
}

fn node_of(caller: Caller) -> Result<NodeId, Error> {
    let missing = || Error::new(Code::FailedPrecondition, "a certificate of this swarm is needed");
    Ok(caller.peer.ok_or_else(missing)?.node)
}

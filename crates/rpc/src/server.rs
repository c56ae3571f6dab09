//! The side that is called.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use types::node::Role;

use crate::frames::{self, FRAME_BYTES_MAX, Frames};
use crate::identity::{Peer, SharedIdentity, Side, shown};
use crate::pipe::{self, Pipe};

/// Connections of nodes at a time: they have one or two each.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections at a time of those who have not shown a certificate. They have to leave room for those who have.
const STRANGERS_MAX: usize = 1_024;
/// Connections from one address at a time, so that one host cannot take them all.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// Calls at a time on one connection: of a manager, of a worker, and of those without a certificate. Times the bytes
/// that each may send it is what one connection can make a manager hold.
const MANAGER_STREAMS_MAX: u32 = 256;
const WORKER_STREAMS_MAX: u32 = 32;
const STRANGER_STREAMS_MAX: u32 = 4;
/// Bytes that are taken in before they are read, of one call and of one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const STRANGER_WINDOW_BYTES: u32 = 64 << 10;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of what callers without a certificate send: a token and a certificate request.
const ANYONE_BYTES_MAX: usize = 64 << 10;
/// Bytes of what workers send: the status of thousands of tasks.
const NODE_BYTES_MAX: usize = 8 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller without a certificate may stay: as long as a signature by an external authority may take.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// After a connection could not be taken: files may have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much a server takes, and for how long it waits. [`Limits::default`] is what nodes run with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub strangers: usize,
    pub connections_per_address: usize,
    pub handshake: Duration,
    pub body: Duration,
    pub stranger_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            strangers: STRANGERS_MAX,
            connections_per_address: CONNECTIONS_PER_ADDRESS_MAX,
            handshake: HANDSHAKE_TIMEOUT,
            body: BODY_TIMEOUT,
            stranger_life: STRANGER_LIFE,
        }
    }
}

/// What is said to callers of newer versions, or of what is not served here.
const NO_METHOD: &str = "there is no such method in this version";

/// Whom a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Also those without a certificate, who have to show something else.
    Anyone,
    AnyNode,
    Manager,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `None` for those without a certificate.
    pub peer: Option<Peer>,
    pub address: SocketAddr,
}

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;
type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Box<dyn Fn(Caller, Incoming, Duration) -> Answer + Send + Sync>;

/// The methods of a server.
#[derive(Default)]
pub struct Router {
    methods: HashMap<&'static str, (Access, Handler)>,
    is_shut_out: Option<Box<dyn Fn(Peer) -> bool + Send + Sync>>,
    pipes: Option<Box<dyn Fn(Pipe) + Send + Sync>>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.methods.keys()).finish()
    }
}

impl Router {
    /// Names nodes that are no managers, whatever their certificates say.
    pub fn shut_out(&mut self, is_shut_out: impl Fn(Peer) -> bool + Send + Sync + 'static) {
        self.is_shut_out = Some(Box::new(is_shut_out));
    }

    /// Takes pipes of managers.
    pub fn pipes(&mut self, take: impl Fn(Pipe) + Send + Sync + 'static) {
        self.pipes = Some(Box::new(take));
    }

    /// One value in, one value or one refusal out.
    pub fn unary<Q, R, E, F>(
        &mut self,
        method: &'static str,
        access: Access,
        handler: impl Fn(Caller, Q) -> F + Clone + Send + Sync + 'static,
    ) where
        Q: DeserializeOwned + Send,
        R: Serialize,
        E: Serialize,
        F: Future<Output = Result<R, E>> + Send,
    {
        self.add(method, access, move |caller, body, timeout| {
            let handler = handler.clone();
            async move {
                let request = match read(body, access, timeout).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal,
                };
                match handler(caller, request).await {
                    Ok(value) => encoded(StatusCode::OK, &value),
                    Err(error) => encoded(StatusCode::UNPROCESSABLE_ENTITY, &error),
                }
            }
        });
    }

    /// One value in, a stream of values or one refusal out.
    pub fn stream_out<Q, T, E, F>(
        &mut self,
        method: &'static str,
        access: Access,
        handler: impl Fn(Caller, Q) -> F + Clone + Send + Sync + 'static,
    ) where
        Q: DeserializeOwned + Send,
        T: Serialize + Send + 'static,
        E: Serialize,
        F: Future<Output = Result<mpsc::Receiver<T>, E>> + Send,
    {
        self.add(method, access, move |caller, body, timeout| {
            let handler = handler.clone();
            async move {
                let request = match read(body, access, timeout).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal,
                };
                match handler(caller, request).await {
                    Ok(values) => {
                        let frames = ReceiverStream::new(values).map(|value| {
                            let frame = rmp_serde::to_vec_named(&value).expect("plain data");
                            Ok(Frame::data(frames::encode(&[frame.into()])))
                        });
                        Response::new(UnsyncBoxBody::new(StreamBody::new(frames)))
                    }
                    Err(error) => encoded(StatusCode::UNPROCESSABLE_ENTITY, &error),
                }
            }
        });
    }

    /// A stream of frames in, one refusal or nothing out.
    pub fn stream_in<E, F>(
        &mut self,
        method: &'static str,
        access: Access,
        handler: impl Fn(Caller, Frames) -> F + Clone + Send + Sync + 'static,
    ) where
        E: Serialize,
        F: Future<Output = Result<(), E>> + Send,
    {
        self.add(method, access, move |caller, body, _| {
            let handler = handler.clone();
            async move {
                match handler(caller, Frames::new(body)).await {
                    Ok(()) => encoded(StatusCode::OK, &()),
                    Err(error) => encoded(StatusCode::UNPROCESSABLE_ENTITY, &error),
                }
            }
        });
    }

    fn add<F>(
        &mut self,
        method: &'static str,
        access: Access,
        handler: impl Fn(Caller, Incoming, Duration) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler =
            Box::new(move |caller, body, timeout| Box::pin(handler(caller, body, timeout)));
        self.methods.insert(method, (access, handler));
    }

    async fn handle(
        &self,
        caller: Caller,
        request: Request<Incoming>,
        body_timeout: Duration,
    ) -> Response<Body> {
        let method = request.uri().path().trim_start_matches('/');
        let Some((access, handler)) = self.methods.get(method) else {
            return refusal(StatusCode::NOT_FOUND, NO_METHOD);
        };
        if let Some(reason) = self.refusal(method, *access, caller) {
            return refusal(StatusCode::FORBIDDEN, reason);
        }
        handler(caller, request.into_body(), body_timeout).await
    }

    /// Why `method` is not for this caller.
    fn refusal(&self, method: &str, access: Access, caller: Caller) -> Option<&'static str> {
        let role = caller.peer.map(|peer| peer.role);
        let is_shut_out = |peer| self.is_shut_out.as_ref().is_some_and(|is_out| is_out(peer));
        let reason = match (access, role) {
            (Access::Anyone, _) | (Access::AnyNode, Some(_)) => None,
            // Methods for any node have words of their own, by which a node knows that it was removed.
            _ if caller.peer.is_some_and(is_shut_out) => {
                Some("this node was removed from the swarm")
            }
            (Access::Manager, Some(Role::Manager)) => None,
            (_, None) => Some("a certificate of this swarm is needed"),
            (Access::Manager, Some(Role::Worker)) => Some("only managers may ask for this"),
        };
        if let Some(reason) = reason {
            warn!(method, address = %caller.address, peer = ?caller.peer, reason, "call refused");
        }
        reason
    }
}

async fn read<Q: DeserializeOwned>(
    body: Incoming,
    access: Access,
    timeout: Duration,
) -> Result<Q, Response<Body>> {
    let limit = match access {
        Access::Anyone => ANYONE_BYTES_MAX,
        Access::AnyNode => NODE_BYTES_MAX,
        Access::Manager => FRAME_BYTES_MAX,
    };
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await;
    let Ok(collected) = collected else {
        return Err(refusal(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time"));
    };
    let Ok(collected) = collected else {
        return Err(refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request is too large or broken off",
        ));
    };
    rmp_serde::from_slice(&collected.to_bytes())
        .map_err(|_| refusal(StatusCode::BAD_REQUEST, "the request cannot be read"))
}

fn refusal(status: StatusCode, reason: &'static str) -> Response<Body> {
    let mut response = Response::new(UnsyncBoxBody::new(Full::from(reason)));
    *response.status_mut() = status;
    response
}

fn encoded(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = rmp_serde::to_vec_named(value).expect("answers are plain data");
    let mut response = Response::new(UnsyncBoxBody::new(Full::from(bytes)));
    *response.status_mut() = status;
    response
}

/// Serves `router` on `listener` until told to stop.
pub async fn serve(
    listener: TcpListener,
    identity: SharedIdentity,
    router: Arc<Router>,
    limits: Limits,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        identity,
        router,
        limits,
        nodes: Arc::new(Semaphore::new(limits.connections)),
        strangers: Arc::new(Semaphore::new(limits.strangers)),
        counts: Arc::default(),
    });
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let count = server.counts.clone().enter(address.ip(), limits.connections_per_address);
        let (Ok(permit), Some(count)) = (server.strangers.clone().try_acquire_owned(), count)
        else {
            debug!(%address, "too many connections");
            continue;
        };
        let (server, stop) = (server.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = server.take(stream, address, permit) => {}
            }
            drop(count);
        });
    }
}

/// What every connection needs.
struct Server {
    identity: SharedIdentity,
    router: Arc<Router>,
    limits: Limits,
    nodes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    counts: Arc<Counts>,
}

impl Server {
    /// Everybody is a stranger who has not shown a certificate.
    async fn take(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        stranger: OwnedSemaphorePermit,
    ) {
        let _ = stream.set_nodelay(true);
        let ready = self.identity.ready();
        let accepting = TlsAcceptor::from(ready.server.clone()).accept(stream);
        let tls = match tokio::time::timeout(self.limits.handshake, accepting).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                debug!(%address, %error, "handshake failed");
                return;
            }
            Err(_) => {
                debug!(%address, "handshake took too long");
                return;
            }
        };
        let (shown, peer) = shown(tls.get_ref().1);
        if shown.is_empty() {
            let caller = Caller { peer: None, address };
            let served = self.serve(tls, caller);
            let _ = tokio::time::timeout(self.limits.stranger_life, served).await;
            return;
        }
        let Some(peer) = peer.filter(|peer| peer.cluster == ready.cluster) else {
            warn!(%address, ?peer, "the caller's certificate is of another swarm");
            return;
        };
        let Ok(_permit) = self.nodes.clone().try_acquire_owned() else {
            warn!(%address, ?peer, "too many connections of nodes");
            return;
        };
        drop(stranger);
        let distrust = self.identity.distrust(&shown, Side::Calls);
        let ended = if tls.get_ref().1.alpn_protocol() == Some(pipe::ALPN) {
            self.hand_on(tls, Caller { peer: Some(peer), address }, distrust).await
        } else {
            tokio::select! {
                () = self.serve(tls, Caller { peer: Some(peer), address }) => None,
                reason = distrust => Some(reason),
            }
        };
        if let Some(reason) = ended {
            info!(%address, ?peer, reason, "connection ended: the node's certificate is not believed any more");
        }
    }

    /// Gives a pipe to who moves what comes through it, and waits for its end.
    async fn hand_on(
        &self,
        tls: TlsStream<TcpStream>,
        caller: Caller,
        distrust: impl Future<Output = String>,
    ) -> Option<String> {
        let (stream, tls) = tls.into_inner();
        let (mut pipe, ender) = Pipe::new(stream, tls.into(), caller.peer?).ok()?;
        match (&self.router.pipes, self.router.refusal("pipe", Access::Manager, caller)) {
            (Some(take), None) => take(pipe),
            (None, None) => pipe.refuse(NO_METHOD),
            (_, Some(reason)) => pipe.refuse(reason),
        }
        ender.watch(distrust).await
    }

    async fn serve(&self, tls: TlsStream<TcpStream>, caller: Caller) {
        let (streams, window, connection_window) = match caller.peer.map(|peer| peer.role) {
            Some(Role::Manager) => {
                (MANAGER_STREAMS_MAX, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES)
            }
            Some(Role::Worker) => {
                (WORKER_STREAMS_MAX, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES)
            }
            None => (STRANGER_STREAMS_MAX, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES),
        };
        let (router, body_timeout) = (self.router.clone(), self.limits.body);
        let service = hyper::service::service_fn(move |request| {
            let router = router.clone();
            async move {
                let answer = router.handle(caller, request, body_timeout).await;
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(window)
            .initial_connection_window_size(connection_window)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(tls), service)
            .await;
        if let Err(error) = served {
            debug!(address = %caller.address, %error, "connection ended");
        }
    }
}

/// Connections by address.
#[derive(Debug, Default)]
struct Counts(Mutex<HashMap<IpAddr, usize>>);

struct Count(Arc<Counts>, IpAddr);

impl Counts {
    fn enter(self: Arc<Self>, address: IpAddr, most: usize) -> Option<Count> {
        {
            let mut counts = self.0.lock().expect("counting does not panic");
            let count = counts.entry(address).or_default();
            if *count >= most {
                return None;
            }
            *count += 1;
        }
        Some(Count(self, address))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().expect("counting does not panic");
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

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
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::node::Role;

use crate::frames::{self, FRAME_BYTES_MAX, Frames};
use crate::identity::{Peer, SharedIdentity};

/// Connections at a time: nodes have one or two each.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections from one address at a time, so that one host cannot take them all.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 256;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of what callers without a certificate send: a token and a certificate request.
const ANYONE_BYTES_MAX: usize = 64 << 10;
/// Bytes of what workers send: the status of thousands of tasks.
const NODE_BYTES_MAX: usize = 8 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller without a certificate may stay: as long as a signature by an external authority may take.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

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
type Handler = Box<dyn Fn(Caller, Incoming) -> Answer + Send + Sync>;

/// The methods of a server.
#[derive(Default)]
pub struct Router(HashMap<&'static str, (Access, Handler)>);

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Router {
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
        self.add(method, access, move |caller, body| {
            let handler = handler.clone();
            async move {
                let request = match read(body, access).await {
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
        self.add(method, access, move |caller, body| {
            let handler = handler.clone();
            async move {
                let request = match read(body, access).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal,
                };
                match handler(caller, request).await {
                    Ok(values) => {
                        let frames = ReceiverStream::new(values).map(|value| {
                            let frame = rmp_serde::to_vec_named(&value).expect("plain data");
                            Ok(Frame::data(frames::encode(&frame)))
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
        self.add(method, access, move |caller, body| {
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
        handler: impl Fn(Caller, Incoming) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |caller, body| Box::pin(handler(caller, body)));
        self.0.insert(method, (access, handler));
    }

    async fn handle(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        let method = request.uri().path().trim_start_matches('/');
        let Some((access, handler)) = self.0.get(method) else {
            return refusal(StatusCode::NOT_FOUND, "there is no such method in this version");
        };
        let role = caller.peer.map(|peer| peer.role);
        let reason = match (access, role) {
            (Access::Anyone, _) | (Access::AnyNode, Some(_)) => None,
            (Access::Manager, Some(Role::Manager)) => None,
            (_, None) => Some("a certificate of this swarm is needed"),
            (Access::Manager, Some(Role::Worker)) => Some("only managers may ask for this"),
        };
        if let Some(reason) = reason {
            warn!(method, address = %caller.address, peer = ?caller.peer, reason, "call refused");
            return refusal(StatusCode::FORBIDDEN, reason);
        }
        handler(caller, request.into_body()).await
    }
}

async fn read<Q: DeserializeOwned>(body: Incoming, access: Access) -> Result<Q, Response<Body>> {
    let limit = match access {
        Access::Anyone => ANYONE_BYTES_MAX,
        Access::AnyNode => NODE_BYTES_MAX,
        Access::Manager => FRAME_BYTES_MAX,
    };
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
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
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let counts = Arc::new(Counts::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (Ok(permit), Some(count)) =
            (permits.clone().try_acquire_owned(), counts.clone().enter(address.ip()))
        else {
            debug!(%address, "too many connections");
            continue;
        };
        let (identity, router, stop) = (identity.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            let connection = serve_connection(stream, address, identity, router);
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection => {}
            }
            drop((permit, count));
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    address: SocketAddr,
    identity: SharedIdentity,
    router: Arc<Router>,
) {
    let _ = stream.set_nodelay(true);
    let ready = identity.ready();
    let acceptor = TlsAcceptor::from(ready.server.clone());
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
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
    let certificates = tls.get_ref().1.peer_certificates();
    let peer = certificates.and_then(Peer::of);
    if certificates.is_some() && peer.is_none_or(|peer| peer.cluster != ready.cluster) {
        warn!(%address, ?peer, "the caller's certificate is of another swarm");
        return;
    }
    let caller = Caller { peer, address };
    let service = hyper::service::service_fn(move |request| {
        let router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(router.handle(caller, request).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(tls), service);
    let served = match peer {
        Some(_) => connection.await,
        None => match tokio::time::timeout(ANONYMOUS_LIFE, connection).await {
            Ok(served) => served,
            Err(_) => Ok(()),
        },
    };
    if let Err(error) = served {
        debug!(%address, %error, "connection ended");
    }
}

/// Connections by address.
#[derive(Debug, Default)]
struct Counts(Mutex<HashMap<IpAddr, usize>>);

struct Count(Arc<Counts>, IpAddr);

impl Counts {
    fn enter(self: Arc<Self>, address: IpAddr) -> Option<Count> {
        {
            let mut counts = self.0.lock().expect("counting does not panic");
            let count = counts.entry(address).or_default();
            if *count >= CONNECTIONS_PER_ADDRESS_MAX {
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

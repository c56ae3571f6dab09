//! The side that calls.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::info;
use types::{ClusterId, NodeId};

use crate::Error;
use crate::frames::{self, FRAME_BYTES_MAX, Frames};
use crate::identity::{self, Peer, SharedIdentity, Side, shown};
use crate::pipe::Pipe;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that is cut off is noticed after both of these.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Frames waiting to be sent on a stream.
const FRAMES_WAITING_MAX: usize = 256;
/// Frames that are sent as one piece when so many wait.
const FRAMES_TOGETHER_MAX: usize = 16;
/// Bytes of the text of a refusal.
const REASON_BYTES_MAX: usize = 4 << 10;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// How a client shows itself.
#[derive(Clone, Debug)]
enum Credentials {
    Node(SharedIdentity),
    /// Without a certificate, trusting the roots given, or whoever answers.
    Anonymous(Arc<ClientConfig>),
}

/// Makes channels and keeps one for each address.
#[derive(Debug)]
pub struct Client {
    credentials: Credentials,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Client {
    pub fn new(identity: SharedIdentity) -> Self {
        Self { credentials: Credentials::Node(identity), channels: Mutex::default() }
    }

    /// The channel to `address`, a host and a port. Nothing is connected before the first call.
    pub fn channel(&self, address: &str) -> Channel {
        let mut channels = self.channels.lock().expect("a map is left whole");
        let new = || Channel::new(address, self.credentials.clone());
        channels.entry(address.to_owned()).or_insert_with(new).clone()
    }

    /// Forgets the channels to all addresses but these.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.channels.lock().expect("a map is left whole").retain(|address, _| keep(address));
    }
}

/// A way to one address. It connects when it is used and connects again after a failure.
#[derive(Clone, Debug)]
pub struct Channel {
    address: Arc<str>,
    credentials: Credentials,
    connection: Arc<tokio::sync::Mutex<Option<Connection>>>,
}

#[derive(Clone, Debug)]
struct Connection {
    sender: SendRequest<Body>,
    peer: Option<Peer>,
}

impl Channel {
    fn new(address: &str, credentials: Credentials) -> Self {
        Self { address: address.into(), credentials, connection: Arc::default() }
    }

    /// A channel of a node that has no certificate yet. Without `roots` (PEM) it believes whoever answers: what it
    /// hears then counts only once it is compared with a digest.
    ///
    /// # Errors
    /// [`Error::Identity`] when the roots cannot be used.
    pub fn anonymous(address: &str, roots: Option<&str>) -> Result<Self, Error> {
        let config = identity::anonymous(roots)?;
        Ok(Self::new(address, Credentials::Anonymous(config)))
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The node at the other end, once there is a connection.
    pub async fn peer(&self) -> Option<NodeId> {
        Some(self.connection.lock().await.as_ref()?.peer?.node)
    }

    /// One value there, one value or one refusal back.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call<Q: Serialize, R: DeserializeOwned, E: DeserializeOwned>(
        &self,
        method: &'static str,
        request: &Q,
        timeout: Duration,
    ) -> Result<Result<R, E>, Error> {
        let body = rmp_serde::to_vec_named(request).expect("requests are plain data");
        let call = async {
            let response = self.send(method, UnsyncBoxBody::new(Full::from(body))).await?;
            self.outcome(method, response).await
        };
        let late = || Error::Timeout {
            address: self.address.to_string(),
            method,
            seconds: timeout.as_secs_f64(),
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(late()),
        }
    }

    /// One value there, a stream of values or one refusal back.
    ///
    /// # Errors
    /// When there is no answer within `timeout`.
    pub async fn stream_out<Q: Serialize, T: DeserializeOwned, E: DeserializeOwned>(
        &self,
        method: &'static str,
        request: &Q,
        timeout: Duration,
    ) -> Result<Result<Items<T>, E>, Error> {
        let body = rmp_serde::to_vec_named(request).expect("requests are plain data");
        let late = Error::Timeout {
            address: self.address.to_string(),
            method,
            seconds: timeout.as_secs_f64(),
        };
        let sent = self.send(method, UnsyncBoxBody::new(Full::from(body)));
        let response = tokio::time::timeout(timeout, sent).await.map_err(|_| late)??;
        if response.status() == StatusCode::OK {
            let frames = Frames::new(response.into_body());
            return Ok(Ok(Items { frames, kind: PhantomData }));
        }
        match self.outcome::<(), E>(method, response).await? {
            Ok(()) => Err(Error::Answer { address: self.address.to_string(), method }),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// A stream of frames there. The sender fails once the stream has ended.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn stream_in(&self, method: &'static str) -> Result<FrameSender, Error> {
        let (frames, waiting) = mpsc::channel::<Bytes>(FRAMES_WAITING_MAX);
        let body = ReceiverStream::new(waiting)
            .ready_chunks(FRAMES_TOGETHER_MAX)
            .map(|some| Ok::<_, std::convert::Infallible>(Frame::data(frames::encode(&some))));
        let mut sender = self.connected().await?.sender;
        let request = self.request(method, UnsyncBoxBody::new(StreamBody::new(body)));
        let (address, channel) = (self.address.clone(), self.clone());
        let response = sender.send_request(request);
        let outcome = tokio::spawn(async move {
            match response.await {
                Ok(response) => match channel.outcome::<(), String>(method, response).await? {
                    Ok(()) => Ok(()),
                    Err(reason) => {
                        Err(Error::Refused { address: address.to_string(), method, reason })
                    }
                },
                Err(error) => {
                    let reason = told(chain(&error));
                    Err(Error::Lost { address: address.to_string(), reason })
                }
            }
        });
        Ok(FrameSender { frames, outcome })
    }

    fn request(&self, method: &str, body: Body) -> Request<Body> {
        Request::post(format!("https://swarm/{method}"))
            .body(body)
            .expect("methods are plain paths")
    }

    async fn send(&self, method: &'static str, body: Body) -> Result<Response<Incoming>, Error> {
        let mut sender = self.connected().await?.sender;
        sender.send_request(self.request(method, body)).await.map_err(|error| {
            let (address, reason) = (self.address.to_string(), told(chain(&error)));
            match error.is_canceled() {
                // It never left this host.
                true => Error::Unreachable { address, reason },
                false => Error::Lost { address, reason },
            }
        })
    }

    async fn outcome<R: DeserializeOwned, E: DeserializeOwned>(
        &self,
        method: &'static str,
        response: Response<Incoming>,
    ) -> Result<Result<R, E>, Error> {
        let address = || self.address.to_string();
        let status = response.status();
        let is_value = matches!(status, StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY);
        let limit = if is_value { FRAME_BYTES_MAX } else { REASON_BYTES_MAX };
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body = body
            .map_err(|error| Error::Lost { address: address(), reason: error.to_string() })?
            .to_bytes();
        let unreadable = |_| Error::Answer { address: address(), method };
        match status {
            StatusCode::OK => Ok(Ok(rmp_serde::from_slice(&body).map_err(unreadable)?)),
            StatusCode::UNPROCESSABLE_ENTITY => {
                Ok(Err(rmp_serde::from_slice(&body).map_err(unreadable)?))
            }
            _ => {
                let reason = String::from_utf8_lossy(&body).into_owned();
                Err(Error::Refused { address: address(), method, reason })
            }
        }
    }

    async fn connected(&self) -> Result<Connection, Error> {
        let mut connection = self.connection.lock().await;
        if let Some(known) = connection.as_ref().filter(|known| !known.sender.is_closed()) {
            return Ok(known.clone());
        }
        *connection = None;
        let unreachable =
            |reason: String| Error::Unreachable { address: self.address.to_string(), reason };
        let made = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
        let made = made.map_err(|_| unreachable("no answer in time".into()))?;
        let made = made.map_err(unreachable)?;
        *connection = Some(made.clone());
        Ok(made)
    }

    /// Opens a pipe. Each call opens another one.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn pipe(&self) -> Result<Pipe, Error> {
        let unreachable =
            |reason: String| Error::Unreachable { address: self.address.to_string(), reason };
        let Credentials::Node(identity) = &self.credentials else {
            return Err(Error::Identity("there is none yet".into()));
        };
        let opened = async {
            let ready = identity.ready();
            let stream = self.reach().await?;
            let tls = handshake(stream, ready.pipe.clone(), Some(ready.cluster)).await?;
            let (shown, peer) = shown(tls.get_ref().1);
            let peer = peer.ok_or("its certificate is not one of a manager")?;
            let (stream, tls) = tls.into_inner();
            let opened = Pipe::new(stream, tls.into(), peer);
            let (pipe, ender) = opened.map_err(|error| error.to_string())?;
            let (identity, address) = (identity.clone(), self.address.clone());
            tokio::spawn(async move {
                let distrust = identity.distrust(&shown, Side::IsCalled);
                if let Some(reason) = ender.watch(distrust).await {
                    info!(%address, reason, "{ENDED}");
                }
            });
            Ok(pipe)
        };
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, opened).await;
        opened.map_err(|_| unreachable("no answer in time".into()))?.map_err(unreachable)
    }

    async fn reach(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(&*self.address).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = self.reach().await?;
        let (stream, ender) = with_ender(stream).map_err(|error| error.to_string())?;
        let (config, cluster, identity) = match &self.credentials {
            Credentials::Node(identity) => {
                let ready = identity.ready();
                (ready.client.clone(), Some(ready.cluster), Some(identity.clone()))
            }
            Credentials::Anonymous(config) => (config.clone(), None, None),
        };
        let tls = handshake(stream, config, cluster).await?;
        let (shown, peer) = shown(tls.get_ref().1);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| told(chain(&error)))?;
        let address = self.address.clone();
        tokio::spawn(async move {
            let Some(identity) = identity else { return drop(connection.await) };
            tokio::select! {
                _ = connection => {}
                reason = identity.distrust(&shown, Side::IsCalled) => {
                    info!(%address, reason, "{ENDED}");
                    // Streams hold the connection open, whoever lets go of it here.
                    let _ = ender.shutdown(Shutdown::Both);
                }
            }
        });
        Ok(Connection { sender, peer })
    }
}

/// Why a connection ended that was in order.
const ENDED: &str = "connection ended: the manager's certificate is not believed any more";

/// TLS with one who answers to the name of managers, and is of `cluster`, where it is known.
async fn handshake(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    cluster: Option<ClusterId>,
) -> Result<TlsStream<TcpStream>, String> {
    let tls = TlsConnector::from(config).connect(identity::manager_name(), stream).await;
    let tls = tls.map_err(|error| explained(&error))?;
    let (_, peer) = shown(tls.get_ref().1);
    if cluster.is_some() && peer.map(|peer| peer.cluster) != cluster {
        return Err("its certificate is of another swarm".into());
    }
    Ok(tls)
}

/// A second hold on a connection, to end it with everything that runs on it.
fn with_ender(stream: TcpStream) -> std::io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    let ender = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, ender))
}

/// TLS errors in words that say what to do.
fn explained(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let words = match inner {
        Some(rustls::Error::InvalidCertificate(fault)) => match fault {
            // All swarms' roots have the same name: one that is not this swarm's is known by its signature.
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature => {
                "its certificate is not signed by this swarm"
            }
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: check the clocks of both hosts"
            }
            rustls::CertificateError::NotValidYet
            | rustls::CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: check the clocks of both hosts"
            }
            rustls::CertificateError::NotValidForName
            | rustls::CertificateError::NotValidForNameContext { .. } => {
                "its certificate is not one of a manager"
            }
            _ => return format!("its certificate is not accepted: {fault}"),
        },
        _ => return told(error.to_string()),
    };
    words.to_owned()
}

/// What the other end complained of, in words that say what to do. In TLS 1.3 it may come after the first request.
pub(crate) fn told(text: String) -> String {
    let Some((_, alert)) = text.split_once("received fatal alert: ") else { return text };
    let reason = match alert.trim() {
        "UnknownCA" | "UnknownCa" | "DecryptError" => {
            "it is of another root: are both of the same swarm?"
        }
        "CertificateExpired" => "it has expired, or the clocks of both hosts differ",
        other => other,
    };
    format!("it does not accept this node's certificate: {reason}")
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Values as they come.
#[derive(Debug)]
pub struct Items<T> {
    frames: Frames,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Items<T> {
    /// The next value; `None` when the stream has ended, in whichever way.
    pub async fn next(&mut self) -> Option<T> {
        let frame = self.frames.next().await.ok()??;
        rmp_serde::from_slice(&frame).ok()
    }
}

/// Sends frames on an open stream.
#[derive(Debug)]
pub struct FrameSender {
    frames: mpsc::Sender<Bytes>,
    outcome: tokio::task::JoinHandle<Result<(), Error>>,
}

impl FrameSender {
    /// Waits for room and sends; false once the stream has ended.
    pub async fn send(&self, frame: Bytes) -> bool {
        !self.outcome.is_finished() && self.frames.send(frame).await.is_ok()
    }

    /// Ends the stream and waits for what the other side says to it.
    ///
    /// # Errors
    /// When the other side refused it or the connection broke.
    pub async fn finish(self) -> Result<(), Error> {
        drop(self.frames);
        self.outcome.await.unwrap_or(Ok(()))
    }

    /// Waits until the other side ends the stream.
    pub async fn ended(&mut self) {
        let _ = (&mut self.outcome).await;
    }
}

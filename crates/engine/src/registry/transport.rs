//! Connections to registries: TCP, TLS where the address says so, and a pool above them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{Error, Transport};
use super::lookup;
use super::proxy::{Proxies, Proxy};

/// Time to reach one address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time until an answer begins; registries that move large blobs about take long to finish one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Unused connections kept for each host: as many as layers are downloaded at once.
const IDLE_MAX: usize = 4;

/// Body of a request.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// An HTTP client for endpoints that share a TLS configuration.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client<Connector, Body>,
    proxies: Arc<Proxies>,
}

impl Http {
    pub(super) fn new(tls: ClientConfig, proxies: Proxies) -> Self {
        let proxies = Arc::new(proxies);
        let tls = TlsConnector::from(Arc::new(tls));
        let connector = Connector { tls, proxies: Arc::clone(&proxies) };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Self { client, proxies }
    }

    /// Sends one request and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        self.authorize_at_proxy(&mut request);
        let (method, url) = (request.method().clone(), request.uri().to_string());
        let failed = |source| Error::Transport { method, url, source };
        match tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(transport_error(error.into()))),
            Err(_) => Err(failed(Transport::Stalled { seconds: ANSWER_TIMEOUT.as_secs() })),
        }
    }
}

impl Http {
    /// A proxy that makes the request itself, in the clear, is told who asks with each.
    fn authorize_at_proxy(&self, request: &mut Request<Body>) {
        let uri = request.uri();
        if uri.scheme_str() != Some("http") {
            return;
        }
        let (host, port) = host_and_port(uri);
        let authorization = self.proxies.choose(false, &host, port).and_then(Proxy::authorization);
        if let Some(value) = authorization.and_then(|a| HeaderValue::from_str(&a).ok()) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
        }
    }
}

fn host_and_port(uri: &Uri) -> (String, u16) {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (host, uri.port_u16().unwrap_or(default))
}

/// Finds our own error among those of the layers between.
pub(super) fn transport_error(error: Box<dyn std::error::Error + Send + Sync>) -> Transport {
    let error = match error.downcast::<Transport>() {
        Ok(own) => return *own,
        Err(error) => error,
    };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(current) = cause {
        if let Some(own) = current.downcast_ref::<Transport>() {
            return own.duplicate();
        }
        cause = current.source();
    }
    Transport::Http(innermost(error.as_ref()).into())
}

/// The last cause says what happened; the ones before it say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Transport {
    /// hyper only lends the causes of its errors.
    fn duplicate(&self) -> Self {
        let io = |e: &io::Error| match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(e.kind(), e.to_string()),
        };
        match self {
            Self::Lookup { host } => Self::Lookup { host: host.clone() },
            Self::NameServer { host, server, source } => {
                Self::NameServer { host: host.clone(), server: *server, source: io(source) }
            }
            Self::Connect { address, source } => {
                Self::Connect { address: address.clone(), source: io(source) }
            }
            Self::ConnectTimeout { address } => Self::ConnectTimeout { address: address.clone() },
            Self::NotTls => Self::NotTls,
            Self::Tls(source) => Self::Tls(io(source)),
            Self::Stalled { seconds } => Self::Stalled { seconds: *seconds },
            Self::Proxy(reason) => Self::Proxy(reason.clone()),
            Self::Redirects => Self::Redirects,
            Self::Http(source) => Self::Http(source.to_string().into()),
        }
    }
}

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    proxies: Arc<Proxies>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = Transport;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Transport>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Transport>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, proxies) = (self.tls.clone(), Arc::clone(&self.proxies));
        Box::pin(async move {
            let is_tls = uri.scheme_str() == Some("https");
            let (host, port) = host_and_port(&uri);
            let proxy = proxies.choose(is_tls, &host, port);
            let tcp = match proxy {
                Some(proxy) => connect(&proxy.host, proxy.port).await?,
                None => connect(&host, port).await?,
            };
            if !is_tls {
                return Ok(Stream::Plain { io: TokioIo::new(tcp), is_proxied: proxy.is_some() });
            }
            let tcp = match proxy {
                Some(proxy) => {
                    let tunnel = proxy.tunnel(tcp, &host, port);
                    let late = |_| Transport::ConnectTimeout { address: format!("{host}:{port}") };
                    tokio::time::timeout(HANDSHAKE_TIMEOUT, tunnel).await.map_err(late)??
                }
                None => tcp,
            };
            let name = ServerName::try_from(host.clone())
                .map_err(|_| Transport::Lookup { host: host.clone() })?;
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.connect(name, tcp)).await;
            match handshake {
                Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(TokioIo::new(stream)))),
                Ok(Err(error)) => Err(handshake_error(error)),
                Err(_) => Err(Transport::ConnectTimeout { address: format!("{host}:{port}") }),
            }
        })
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Transport> {
    let mut last = Transport::Lookup { host: host.to_owned() };
    for address in lookup::addresses(host, port).await? {
        let text = address.to_string();
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are small and waited for.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Ok(Err(source)) => last = Transport::Connect { address: text, source },
            Err(_) => last = Transport::ConnectTimeout { address: text },
        }
    }
    Err(last)
}

/// A server that answers a TLS greeting with text does not speak TLS.
fn handshake_error(error: io::Error) -> Transport {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => Transport::NotTls,
        _ => Transport::Tls(error),
    }
}

/// A connection with or without TLS.
enum Stream {
    Plain { io: TokioIo<TcpStream>, is_proxied: bool },
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        // A proxy needs the whole address in the request line.
        Connected::new().proxy(matches!(self, Self::Plain { is_proxied: true, .. }))
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_write(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

//! Accepts connections and answers requests, with limits on both and Docker's headers on every answer.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::error::Error;
use crate::listen::{Bound, Listen};
use crate::routes;
use crate::state::ApiState;
use crate::version::{self, ApiVersion};

/// Connections at once over all listeners; further ones wait in the kernel's backlog. A followed log or an
/// attached terminal holds one each, and each costs a few KiB.
const CONNECTIONS_MAX: usize = 8192;
/// Request line and headers in bytes: registry credentials for many registries are the largest header sent.
const HEAD_BYTES_MAX: usize = 128 * 1024;
/// Header lines in one request.
const HEADERS_MAX: usize = 128;
/// A client that takes longer to send its headers holds a connection for nothing.
const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A TLS handshake has no reason to take longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in progress may go on after a shutdown began; streams would go on for ever.
const DRAIN_PERIOD: Duration = Duration::from_secs(2);
/// Pause after an accept error such as running out of file descriptors, which would else spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How the API is served.
#[derive(Debug)]
pub struct Config {
    pub listen: Vec<Listen>,
    /// The product's version, for the `Server` header.
    pub version: String,
}

/// A bound API server.
pub struct Server {
    listeners: Vec<Bound>,
    shared: Arc<Shared>,
}

/// What every connection needs.
struct Shared {
    router: Router,
    server_header: HeaderValue,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    /// No new requests: idle connections close, busy ones after their answer.
    closing: CancellationToken,
    /// What still runs is dropped.
    closed: CancellationToken,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish()
    }
}

impl Server {
    /// Binds all listeners; none answers before [`Server::serve`].
    ///
    /// # Errors
    /// An address that cannot be bound, or TLS files that cannot be used.
    pub async fn bind(config: Config, state: ApiState) -> Result<Self, Error> {
        Self::bind_router(config, routes::router(state)).await
    }

    /// The same for other routes, or fewer.
    pub(crate) async fn bind_router(config: Config, router: Router) -> Result<Self, Error> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        for listen in config.listen {
            listeners.push(listen.bind().await?);
        }
        // Clients read the operating system out of this header, in exactly this form.
        let server_header = HeaderValue::try_from(format!("Docker/{} (linux)", config.version))
            .unwrap_or(HeaderValue::from_static("Docker (linux)"));
        let shared = Shared {
            router,
            server_header,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        };
        Ok(Self { listeners, shared: Arc::new(shared) })
    }

    /// Where clients reach the listeners, as `DOCKER_HOST` takes it, in the order of the configuration.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(Bound::address).collect()
    }

    /// Serves until `shutdown`, then lets requests in progress end within a short period.
    pub async fn serve(self, shutdown: CancellationToken) {
        let mut accepting = tokio::task::JoinSet::new();
        for listener in self.listeners {
            let shared = Arc::clone(&self.shared);
            let shutdown = shutdown.clone();
            accepting.spawn(async move {
                shutdown.run_until_cancelled(accept(listener, shared)).await;
            });
        }
        accepting.join_all().await;
        self.shared.closing.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(DRAIN_PERIOD, self.shared.tasks.wait()).await.is_err() {
            tracing::debug!(open = self.shared.tasks.len(), "closing API connections in use");
        }
        self.shared.closed.cancel();
        self.shared.tasks.wait().await;
    }
}

async fn accept(listener: Bound, shared: Arc<Shared>) {
    match listener {
        Bound::Unix { listener, .. } => accept_unix(&listener, &shared).await,
        Bound::Tcp { listener, tls } => accept_tcp(&listener, tls.as_ref(), &shared).await,
    }
}

async fn accept_unix(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let permit = permit(shared).await;
        match listener.accept().await {
            Ok((stream, _)) => serve_connection(stream, shared, permit),
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn accept_tcp(listener: &TcpListener, tls: Option<&TlsAcceptor>, shared: &Arc<Shared>) {
    loop {
        let permit = permit(shared).await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept_failed(&error).await;
                continue;
            }
        };
        // Small answers should not wait for the client's acknowledgement of an earlier one.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            serve_connection(stream, shared, permit);
            continue;
        };
        let (handshake, shared) = (tls.accept(stream), Arc::clone(shared));
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => serve_connection(stream, &shared, permit),
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        });
    }
}

async fn permit(shared: &Shared) -> OwnedSemaphorePermit {
    let connections = Arc::clone(&shared.connections);
    connections.acquire_owned().await.expect("the semaphore is never closed")
}

async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "accept an API connection");
    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
}

fn serve_connection<S>(stream: S, shared: &Arc<Shared>, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (router, server_header) = (shared.router.clone(), shared.server_header.clone());
    let service = hyper::service::service_fn(move |request| {
        let (router, server_header) = (router.clone(), server_header.clone());
        async move { Ok::<_, Infallible>(answer(router, server_header, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let (closing, closed) = (shared.closing.clone(), shared.closed.clone());
    shared.tasks.spawn(closed.run_until_cancelled_owned(async move {
        let mut connection = pin!(connection);
        // A client that leaves in the middle of a stream is no event worth a log line.
        let ended = tokio::select! {
            _ = connection.as_mut() => true,
            () = closing.cancelled() => false,
        };
        if !ended {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
        drop(permit);
    }));
}

/// One request: version prefix off, route, headers on.
async fn answer(
    router: Router,
    server_header: HeaderValue,
    request: Request<Incoming>,
) -> Response {
    let mut request = request.map(Body::new);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match version::strip_prefix(request.uri()) {
        _ if method == Method::OPTIONS => StatusCode::OK.into_response(),
        Ok((version, uri)) => {
            match uri {
                Some(uri) => *request.uri_mut() = uri,
                None => drop(request.extensions_mut().insert(version::Unversioned)),
            }
            request.extensions_mut().insert(version);
            router.oneshot(request).await.unwrap_or_else(|never| match never {})
        }
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::SERVER, server_header);
    headers.insert(API_VERSION, ApiVersion::NEWEST.header());
    headers.insert(OSTYPE, HeaderValue::from_static("linux"));
    headers.insert(DOCKER_EXPERIMENTAL, HeaderValue::from_static("false"));
    tracing::debug!(%method, path, status = response.status().as_u16(), "api");
    response
}

const API_VERSION: HeaderName = HeaderName::from_static("api-version");
const OSTYPE: HeaderName = HeaderName::from_static("ostype");
const DOCKER_EXPERIMENTAL: HeaderName = HeaderName::from_static("docker-experimental");

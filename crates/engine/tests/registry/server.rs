//! Registries: the real one as a process, and small ones that do what a test tells them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// A request as a test sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With query; the whole address when a proxy is asked.
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Box<dyn Fn(&Seen) -> Response<Body> + Send + Sync>;

/// A server that answers as a test says and remembers what it was asked.
pub(crate) struct Fake {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(
        answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::start_tls(None, answer).await
    }

    pub(crate) async fn start_tls(
        tls: Option<rustls::ServerConfig>,
        answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(Box::new(answer));
        let tls = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        let task = tokio::spawn(accept(listener, tls, answer, Arc::clone(&seen)));
        Self { address, seen, task }
    }

    pub(crate) fn paths(&self, method: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.method == method).map(|s| s.path.clone()).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    answer: Arc<Answer>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (answer, seen, tls) = (Arc::clone(&answer), Arc::clone(&seen), tls.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                async move { Ok::<_, Infallible>(serve(request, &answer, &seen).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            match tls {
                None => server.serve_connection(TokioIo::new(stream), service).await.ok(),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await.ok(),
                    Err(_) => None,
                },
            }
        });
    }
}

async fn serve(
    request: Request<Incoming>,
    answer: &Answer,
    seen: &Mutex<Vec<Seen>>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let path = parts.uri.to_string();
    let one = Seen { method: parts.method.to_string(), path, headers: parts.headers, body };
    seen.lock().unwrap().push(one.clone());
    answer(&one)
}

pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub(crate) fn respond(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(bytes));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

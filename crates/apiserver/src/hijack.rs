//! Connections that stop being HTTP: attach, exec and session streams.
//!
//! A client that sends `Connection: Upgrade` gets 101 and the raw connection; one that does not gets a plain
//! 200 whose body is the output, with its request body as input.

use std::fmt;
use std::future::Future;
use std::io::{self, Cursor};
use std::os::fd::AsFd;
use std::pin::Pin;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures::TryStreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::hangup::hung_up;
use crate::version::ApiVersion;

/// Bytes held between a container's output and a client without an upgrade.
const PLAIN_BUFFER_BYTES: usize = 64 * 1024;

/// What the client reads and writes after the headers.
pub(crate) struct Duplex {
    /// Ends when the client has closed its sending half.
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    /// To be shut down at the end, which tells the client that all was sent.
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Ready when the client has closed both halves, where that can be seen: one that has only ended its
    /// sending half still listens.
    pub(crate) gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}

/// How output is laid on the stream, which the media type tells the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Bytes as they come, from a terminal.
    Raw,
    /// Frames of an 8-byte header (stream, three zeros, big-endian length) and a payload.
    Multiplexed,
}

impl Framing {
    pub(crate) fn of_tty(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    /// The multiplexed media type exists since 1.42; older clients are told `raw` for both.
    pub(crate) fn media_type(self, version: ApiVersion) -> HeaderValue {
        match self {
            Self::Multiplexed if version >= ApiVersion::new(1, 42) => {
                HeaderValue::from_static("application/vnd.docker.multiplexed-stream")
            }
            Self::Multiplexed | Self::Raw => {
                HeaderValue::from_static("application/vnd.docker.raw-stream")
            }
        }
    }
}

/// Answers the request and hands the connection to `serve`, which runs in a task of its own.
pub(crate) fn hijack<F, S>(mut request: Request, media_type: HeaderValue, serve: F) -> Response
where
    F: FnOnce(Duplex) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    if wants_upgrade(request.headers()) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => serve(duplex(upgraded)).await,
                Err(error) => tracing::debug!(%error, "client left before the upgrade"),
            }
        });
        return response;
    }
    let input = request.into_body().into_data_stream().map_err(io::Error::other);
    let (writer, output) = tokio::io::duplex(PLAIN_BUFFER_BYTES);
    *response.body_mut() = Body::from_stream(ReaderStream::new(output));
    let duplex = Duplex {
        reader: Box::new(StreamReader::new(input)),
        writer: Box::new(writer),
        gone: Box::pin(std::future::pending()),
    };
    tokio::spawn(serve(duplex));
    response
}

fn duplex(upgraded: Upgraded) -> Duplex {
    match upgraded.downcast::<TokioIo<UnixStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            let watched = stream.as_fd().try_clone_to_owned();
            let (reader, writer) = stream.into_split();
            Duplex {
                // What hyper has read already comes first.
                reader: Box::new(Cursor::new(parts.read_buf).chain(reader)),
                writer: Box::new(writer),
                gone: Box::pin(async move {
                    let seen = match watched {
                        Ok(watched) => hung_up(watched).await,
                        Err(error) => Err(error),
                    };
                    if seen.is_err() {
                        std::future::pending::<()>().await;
                    }
                }),
            }
        }
        Err(upgraded) => {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            Duplex {
                reader: Box::new(reader),
                writer: Box::new(writer),
                gone: Box::pin(std::future::pending()),
            }
        }
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
}

//! Bytes that are not what they should be, from somebody who has a certificate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rpc::{FRAME_BYTES_MAX, Identity, Limits};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use crate::{ANYONE, FRAMES, LINGER, MANAGER, NODE, Server, call, client, manager, worker};

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// A TLS client that says what it likes.
pub(crate) fn tls(server: &Server, shown: Option<&Identity>) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(server.root.certificate.as_bytes()).expect("PEM");
    roots.add(root).expect("is a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
            let chain = chain.collect::<Result<_, _>>().expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("fit")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) async fn connect(
    server: &Server,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("swarm-manager").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn speaker(server: &Server, shown: Option<&Identity>) -> SendRequest<Body> {
    let tls = connect(server, tls(server, shown)).await.expect("connects");
    let made = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(tls)).await;
    let (sender, connection) = made.expect("speaks");
    tokio::spawn(connection);
    sender
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that comes in the pieces that are sent.
fn in_pieces() -> (mpsc::Sender<Bytes>, Body) {
    let (pieces, waiting) = mpsc::channel::<Bytes>(1);
    let frames = futures::StreamExt::map(ReceiverStream::new(waiting), |piece| {
        Ok::<_, std::io::Error>(Frame::data(piece))
    });
    (pieces, BodyExt::boxed(StreamBody::new(frames)))
}

async fn post(sender: &mut SendRequest<Body>, method: &str, body: Body) -> (StatusCode, String) {
    let request = Request::post(format!("https://swarm/{method}")).body(body).expect("plain");
    let response = sender.send_request(request).await.expect("answers");
    let status = response.status();
    let text = response.into_body().collect().await.expect("answers").to_bytes();
    (status, String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused_and_the_connection_goes_on() {
    let server = Server::start().await;
    let mut sender = speaker(&server, Some(&manager(&server.root, 2))).await;
    for body in [&b""[..], b"\xc1", b"\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", &[0x91; 4_000]] {
        let (status, text) = post(&mut sender, NODE, whole(body)).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::BAD_REQUEST, "the request cannot be read")
        );
    }
    let hello = rmp_serde::to_vec_named("hello").expect("encodes");
    let (status, _) = post(&mut sender, NODE, whole(hello)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_are_read_only_up_to_what_their_sender_may_send() {
    let server = Server::start().await;
    for (shown, method, bytes) in [
        (None, ANYONE, 100 << 10),
        (Some(worker(&server.root, 3)), NODE, 9 << 20),
        (Some(manager(&server.root, 2)), MANAGER, FRAME_BYTES_MAX + 1),
    ] {
        let mut sender = speaker(&server, shown.as_ref()).await;
        let (status, text) = post(&mut sender, method, whole(vec![0xc0; bytes])).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{method}: {text}");
    }
}

#[tokio::test]
async fn frames_that_are_cut_or_too_large_end_their_stream_alone() {
    let mut server = Server::start().await;
    let mut sender = speaker(&server, Some(&worker(&server.root, 3))).await;
    let too_large = u32::try_from(FRAME_BYTES_MAX + 1).expect("fits").to_be_bytes();
    for (bytes, expected) in [
        (&b"\x00\x00\x00\x05hello\x00\x00\x00\x00"[..], "2 frames"),
        (b"\x00\x00\x00\x05hel", "the stream ended within a frame"),
        (b"\x00\x00", "the stream ended within a frame"),
        (b"\xff\xff\xff\xffhello", "is larger than allowed"),
        (&too_large, "is larger than allowed"),
        (b"", "0 frames"),
    ] {
        let (status, _) = post(&mut sender, FRAMES, whole(bytes.to_vec())).await;
        let end = server.ends.recv().await.expect("is told");
        assert!(end.contains(expected), "{bytes:?}: {end}");
        assert_eq!(status == StatusCode::OK, expected.ends_with(" frames"), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_no_end_of_a_stream() {
    let mut server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.expect("connects");
    let stream = stream.into_std().expect("a socket");
    let ender = stream.try_clone().expect("a socket");
    let stream = TcpStream::from_std(stream).expect("a socket");
    let config = Arc::new(tls(&server, Some(&worker(&server.root, 3))));
    let name = ServerName::try_from("swarm-manager").expect("a name");
    let tls = TlsConnector::from(config).connect(name, stream).await.expect("connects");
    let made = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(tls)).await;
    let (mut sender, connection) = made.expect("speaks");
    tokio::spawn(connection);
    let (pieces, body) = in_pieces();
    let request = Request::post(format!("https://swarm/{FRAMES}")).body(body).expect("plain");
    tokio::spawn(sender.send_request(request));
    pieces.send(Bytes::from_static(b"\x00\x00\x00\x05begun")).await.expect("is taken");
    assert_eq!(server.ends.recv().await.expect("is told"), "begun");
    ender.shutdown(std::net::Shutdown::Both).expect("ends");
    let end = server.ends.recv().await.expect("is told");
    assert!(end.contains("the stream broke"), "{end}");
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let server = Server::start().await;
    let mut sender = speaker(&server, Some(&worker(&server.root, 3))).await;
    let mut request = Request::post(format!("https://swarm/{NODE}"));
    for number in 0..2_000 {
        request = request.header(format!("x-{number}"), "some value that takes room");
    }
    let sent = sender.send_request(request.body(whole("")).expect("plain")).await;
    let status = sent.map(|response| response.status());
    assert!(
        status
            .as_ref()
            .map_or(true, |status| *status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        "{status:?}"
    );
    assert_eq!(
        call(&client(&worker(&server.root, 4)), &server.address(), NODE).await,
        "hello true"
    );
}

#[tokio::test]
async fn a_worker_may_not_keep_more_calls_open_than_it_needs() {
    let server = Server::start().await;
    let nothing = rmp_serde::to_vec_named(&()).expect("encodes");
    let mut sender = speaker(&server, Some(&worker(&server.root, 3))).await;
    // The first answer brings what the server takes at a time.
    post(&mut sender, LINGER, whole(nothing.clone())).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (mut sender, body) = (sender.clone(), whole(nothing.clone()));
        calls.spawn(async move { post(&mut sender, LINGER, body).await });
    }
    while let Some(done) = calls.join_next().await {
        assert_eq!(done.expect("ends").0, StatusCode::OK, "the others wait their turn");
    }
    let most = server.most.load(Ordering::SeqCst);
    assert!((2..=32).contains(&most), "{most} calls at a time");
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let limits = Limits { body: Duration::from_millis(300), ..Limits::default() };
    let server = Server::with(limits).await;
    for shown in [None, Some(worker(&server.root, 3))] {
        let mut sender = speaker(&server, shown.as_ref()).await;
        let (pieces, body) = in_pieces();
        let trickle = tokio::spawn(async move {
            while pieces.send(Bytes::from_static(b"\x91")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let (status, text) = post(&mut sender, ANYONE, body).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")
        );
        drop(sender);
        trickle.await.expect("ends with its stream");
    }
}

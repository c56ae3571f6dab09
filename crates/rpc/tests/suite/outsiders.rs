//! Who only knows the port: garbage, old TLS, patience, many connections.

use std::time::Duration;

use rpc::Limits;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::{connect, tls};
use crate::{NODE, PATIENCE, Server, call, client, manager, worker};

/// Reads until the server hangs up.
async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut buffer = [0; 1_024];
    let closed = async { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("the server hangs up");
}

async fn still_serves(server: &Server) {
    let answer = call(&client(&worker(&server.root, 3)), &server.address(), NODE).await;
    assert_eq!(answer, "hello true");
}

#[tokio::test]
async fn garbage_is_hung_up_on() {
    let server = Server::start().await;
    let long = [0xaa; 100_000];
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: swarm\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01",
        b"\x00",
        &long,
    ] {
        let mut stream = TcpStream::connect(server.address).await.expect("connects");
        // It may hang up before it has all.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        until_closed(&mut stream).await;
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn garbage_behind_a_good_handshake_is_hung_up_on() {
    let server = Server::start().await;
    for shown in [None, Some(worker(&server.root, 3))] {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 64],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage garbage",
        ] {
            let mut stream =
                connect(&server, tls(&server, shown.as_ref())).await.expect("connects");
            stream.write_all(bytes).await.expect("is taken");
            until_closed(&mut stream).await;
        }
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn tls_older_than_1_3_is_refused() {
    let server = Server::start().await;
    let identity = manager(&server.root, 2);
    let modern = connect(&server, tls(&server, Some(&identity))).await.expect("connects");
    assert_eq!(modern.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let mut roots = rustls::RootCertStore::empty();
    let root = server.root.certificate.as_bytes();
    let root = rustls::pki_types::pem::PemObject::from_pem_slice(root).expect("PEM");
    roots.add(root).expect("is a root");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("is known")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let refusal = connect(&server, old).await.expect_err("is refused").to_string();
    assert!(
        refusal.contains("ProtocolVersion") || refusal.contains("HandshakeFailure"),
        "{refusal}"
    );
}

#[tokio::test]
async fn no_session_is_resumed_and_so_nothing_can_be_sent_twice() {
    let server = Server::start().await;
    let mut config = tls(&server, Some(&worker(&server.root, 3)));
    config.enable_early_data = true;
    for _ in 0..3 {
        let mut stream = connect(&server, config.clone()).await.expect("connects");
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert!(!session.is_early_data_accepted());
    }
}

#[tokio::test]
async fn who_never_ends_a_handshake_is_hung_up_on() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let server = Server::with(limits).await;
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(server.address).await.expect("connects");
        stream.write_all(bytes).await.expect("is taken");
        until_closed(&mut stream).await;
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn who_has_no_certificate_does_not_stay() {
    let limits = Limits { stranger_life: Duration::from_millis(200), ..Limits::default() };
    let server = Server::with(limits).await;
    let mut stranger = connect(&server, tls(&server, None)).await.expect("connects");
    let known = client(&worker(&server.root, 3));
    assert_eq!(call(&known, &server.address(), NODE).await, "hello true");
    let connected = known.channel(&server.address()).peer().await;
    until_closed(&mut stranger).await;
    assert_eq!(known.channel(&server.address()).peer().await, connected, "nodes stay");
}

#[tokio::test]
async fn one_address_does_not_take_all_connections() {
    let limits = Limits { connections_per_address: 4, ..Limits::default() };
    let server = Server::with(limits).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(connect(&server, tls(&server, None)).await.expect("connects"));
    }
    for _ in 0..3 {
        assert!(connect(&server, tls(&server, None)).await.is_err());
    }
    // Another address is let in.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
    let stream = socket.connect(server.address).await.expect("connects");
    let name = rustls::pki_types::ServerName::try_from("swarm-manager").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls(&server, None)));
    connector.connect(name, stream).await.expect("is let in");
    // Whoever goes makes room.
    drop(held);
    let again = async {
        while connect(&server, tls(&server, None)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("there is room again");
}

#[tokio::test]
async fn strangers_leave_room_for_nodes() {
    let limits = Limits { strangers: 3, ..Limits::default() };
    let server = Server::with(limits).await;
    let mut nodes = Vec::new();
    for number in 0..6 {
        let client = client(&worker(&server.root, 10 + number));
        assert_eq!(call(&client, &server.address(), NODE).await, "hello true");
        nodes.push(client);
    }
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(connect(&server, tls(&server, None)).await.expect("connects"));
    }
    assert!(connect(&server, tls(&server, None)).await.is_err());
    for client in &nodes {
        assert_eq!(call(client, &server.address(), NODE).await, "hello true");
    }
}

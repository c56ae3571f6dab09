//! The sockets of one container, and the way out to the world's servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::datagrams::{Answerer, Place};
use crate::message::Transport;
use crate::zone::{Names, Reply, failure};

/// Bytes of a datagram that are read: what resolvers offer by EDNS, and more.
pub(crate) const DATAGRAM_BYTES: usize = 4_096;

/// Questions of one container that wait for the world at a time; more are told that it does not work.
const FORWARDS_MAX: usize = 128;

/// How long one server of the world may take before the next is asked.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a client on TCP may take for its next question.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Connections of one container at a time.
const CONNECTIONS_MAX: usize = 32;

const RESOLVER_FILE: &str = "/etc/resolv.conf";
/// The file systemd-resolved writes with the real servers behind its local stub.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
const PORT: u16 = 53;

/// Answers one container until it is dropped.
#[derive(Debug)]
pub struct Server {
    names: Arc<ArcSwap<Names>>,
    _place: Place,
    _stop: DropGuard,
}

/// What both of a container's sockets need.
#[derive(Debug)]
pub(crate) struct Shared {
    names: Arc<ArcSwap<Names>>,
    /// The servers of the world, first ones first.
    resolvers: Vec<SocketAddr>,
    forwards: Semaphore,
    runtime: Handle,
}

impl Server {
    /// Begins to answer on sockets that were bound in the container's namespace. To be called within an async runtime, in
    /// the host's network namespace.
    ///
    /// # Errors
    /// When the sockets cannot be used.
    pub fn start(
        answerer: &Answerer,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        names: Names,
        resolvers: Vec<SocketAddr>,
    ) -> io::Result<Self> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let tcp = TcpListener::from_std(tcp)?;
        let names = Arc::new(ArcSwap::from_pointee(names));
        let forwards = Semaphore::new(FORWARDS_MAX);
        let runtime = Handle::current();
        let shared = Arc::new(Shared { names: names.clone(), resolvers, forwards, runtime });
        let stop = CancellationToken::new();
        let place = answerer.answer(udp, shared.clone())?;
        tokio::spawn(stop.clone().run_until_cancelled_owned(connections(tcp, shared)));
        Ok(Self { names, _place: place, _stop: stop.drop_guard() })
    }

    /// What is known.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// From now on these names are known.
    pub fn set(&self, names: Names) {
        self.names.store(Arc::new(names));
    }
}

/// The host's servers, as its resolver file names them. Those on the host's loopback are left out where a local stub
/// tells of the real ones.
pub fn host_resolvers() -> Vec<SocketAddr> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| servers(&text));
    let own = read(RESOLVER_FILE).unwrap_or_default();
    match own.iter().all(|server| server.ip().is_loopback()) {
        true => read(RESOLVED_FILE).unwrap_or(own),
        false => own,
    }
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = named.filter_map(|address| address.trim().parse::<IpAddr>().ok());
    addresses.map(|address| SocketAddr::new(address, PORT)).collect()
}

async fn connections(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = converse(stream, &shared).await;
            drop(place);
        });
    }
}

/// Each message has its length before it (RFC 1035, 4.2.2).
async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(TCP_IDLE, read_message(&mut stream)).await??;
        let answer = match shared.reply(&question, Transport::Tcp) {
            Reply::Answer(answer) => Some(answer),
            Reply::Forward => shared.forward(&question, Transport::Tcp).await,
            Reply::Ignore => return Ok(()),
        };
        let Some(answer) = answer else { return Ok(()) };
        write_message(&mut stream, &answer).await?;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

impl Shared {
    pub(crate) fn reply(&self, question: &[u8], transport: Transport) -> Reply {
        self.names.load().answer(question, transport, |below| rand::random_range(0..below))
    }

    /// Asks the world, and sends what it answers to who asked.
    pub(crate) fn ask_for(
        self: &Arc<Self>,
        client: SocketAddr,
        socket: &Arc<std::net::UdpSocket>,
        question: Vec<u8>,
    ) {
        let (shared, socket) = (self.clone(), socket.clone());
        self.runtime.spawn(async move {
            if let Some(answer) = shared.forward(&question, Transport::Udp).await {
                let _ = socket.send_to(&answer, client);
            }
        });
    }

    /// Asks the world's servers one after another; a failure where none answers.
    async fn forward(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(_place) = self.forwards.try_acquire() else { return failure(question) };
        for server in &self.resolvers {
            let asked = async {
                match transport {
                    Transport::Udp => ask_by_datagram(*server, question).await,
                    Transport::Tcp => ask_by_stream(*server, question).await,
                }
            };
            match tokio::time::timeout(FORWARD_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%server, %error, "server of names does not answer"),
                Err(_) => debug!(%server, "server of names takes too long"),
            }
        }
        failure(question)
    }
}

async fn ask_by_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Somebody else's answer is not ours.
        if length >= 2 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_by_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_known_here_is_asked_of_the_next_server_when_the_first_fails() {
        let world = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let closed = UdpSocket::bind("127.0.0.1:0").await.expect("binds").local_addr();
        let resolvers = vec![closed.expect("bound"), world.local_addr().expect("bound")];
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, client) = world.recv_from(&mut buffer).await.expect("asked");
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            world.send_to(&answer, client).await.expect("answers");
        });
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = udp.local_addr().expect("bound");
        let answerer = Answerer::start().expect("starts");
        let server = Server::start(&answerer, udp, tcp, Names::default(), resolvers);
        let _server = server.expect("starts");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        // A query for the address of `a.`.
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        client.send_to(question, address).await.expect("asks");
        let mut answer = [0; 512];
        let (length, _) = client.recv_from(&mut answer).await.expect("is answered");
        assert_eq!(
            (&answer[..2], answer[2] & 0x80, length),
            (&b"\x12\x34"[..], 0x80, question.len())
        );
    }
}

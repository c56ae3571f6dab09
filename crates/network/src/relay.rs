//! Passes on what comes over IPv6 for processes that listen on IPv4 alone.
//!
//! ```text
//! client ─► the container's address of IPv6: a process listens there ─► it, and it sees the client
//!                                            nobody does ─► relay, in the container's namespace ─► over the bridge from the
//!                                                           host ─► the container's address of IPv4
//! ```
//! Which of the two is the kernel's to say for each connection (`nft/relay.rs`). Behind a relay a process sees the bridge's
//! address, as it does behind Docker's proxy. Relays end with the daemon, and are made anew by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{
    Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::features::text_of;
use crate::nft::{Awaited, RelayTable};
use crate::ports::Protocol;
use crate::{Error, Plug, State, ipv6, namespace};

/// Connections and clients of UDP that are passed on at once, in all containers: two descriptors each.
const RELAYED_MAX: usize = 4_096;

/// What is read at once, in each direction.
const BUFFER_BYTES: usize = 16 << 10;

/// A datagram's greatest length.
const DATAGRAM_BYTES: usize = 64 << 10;

/// How long a process may take to accept a connection.
const CONNECT_WITHIN_MAX: Duration = Duration::from_secs(10);

/// How long the next answer to a client of UDP is waited for: as long as the kernel remembers flows that were answered.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// How long to wait where the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// What can be passed on. Whoever speaks another protocol has to listen on IPv6 himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Connections,
    Datagrams,
}

impl Kind {
    pub(crate) fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Some(Self::Connections),
            Protocol::Udp => Some(Self::Datagrams),
            Protocol::Sctp => None,
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Self::Connections => Protocol::Tcp,
            Self::Datagrams => Protocol::Udp,
        }
    }
}

/// Where something comes to, and where it is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub(crate) kind: Kind,
    pub(crate) from: Ipv6Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) port: u16,
}

impl Way {
    fn awaited(&self) -> Awaited {
        (self.from, self.kind.protocol(), self.port)
    }

    fn target(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.to, self.port)
    }
}

impl State {
    /// Has what comes over IPv6 to these sockets of containers passed on to them where nobody awaits it. What cannot be is
    /// told: the ports answer over IPv4 all the same.
    pub(crate) fn relay(
        &mut self,
        run_dir: &Path,
        sockets: impl IntoIterator<Item = (Protocol, Ipv4Addr, u16)>,
    ) {
        let State { endpoints, bridges, relays, .. } = self;
        let default = endpoints.iter().map(|(container, it)| (container, it.address, None));
        let plugs = bridges.all_plugs().iter().flat_map(|(container, plugs)| {
            plugs.iter().map(move |it| (container, it.address, it.ipv6.map(|ipv6| ipv6.address)))
        });
        let homes = default.chain(plugs).map(|(container, address, of_ipv6)| {
            let of_ipv6 = of_ipv6.unwrap_or_else(|| ipv6::of_container(address));
            (address, (container, of_ipv6))
        });
        let homes: BTreeMap<_, _> = homes.collect();
        let mut wanted: BTreeMap<&String, BTreeSet<Way>> = BTreeMap::new();
        for (protocol, to, port) in sockets {
            if let (Some(kind), Some((container, from))) = (Kind::of(protocol), homes.get(&to)) {
                wanted.entry(container).or_default().insert(Way { kind, from: *from, to, port });
            }
        }
        for (container, ways) in wanted {
            let netns = crate::namespaces(run_dir).join(container);
            if let Err(error) = relays.add(container, &netns, &ways) {
                tracing::warn!(
                    container.id = container,
                    error = text_of(&error),
                    "a process that listens on IPv4 alone is not reached over IPv6"
                );
            }
        }
    }
}

/// All relays of this node.
#[derive(Debug)]
pub(crate) struct Relays {
    /// Made for the first one; a thread of its own, as the daemon's may be busy.
    runtime: Option<Runtime>,
    containers: BTreeMap<String, Relayed>,
    room: Arc<Semaphore>,
    /// Whether the kernel cannot tell who listens: it was asked, and need not be again.
    is_refused: bool,
}

/// What is passed on to one container.
#[derive(Debug)]
struct Relayed {
    table: RelayTable,
    ways: BTreeMap<Way, Relay>,
}

/// One that listens. What it passes on ends with it.
#[derive(Debug)]
struct Relay {
    port: u16,
    task: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // May be dropped where nobody may wait.
            runtime.shutdown_background();
        }
    }
}

impl Relays {
    pub(crate) fn new() -> Self {
        let room = Arc::new(Semaphore::new(RELAYED_MAX));
        Self { runtime: None, containers: BTreeMap::new(), room, is_refused: false }
    }

    /// Whether all of this is passed on, or never will be.
    pub(crate) fn has(&self, container: &str, ways: &BTreeSet<Way>) -> bool {
        let known = self.containers.get(container).map(|relayed| &relayed.ways);
        self.is_refused || ways.iter().all(|way| known.is_some_and(|it| it.contains_key(way)))
    }

    /// Passes these on too, for the container whose namespace is at `netns`.
    ///
    /// # Errors
    /// What the kernel refuses. One that cannot tell who listens says so once.
    pub(crate) fn add(
        &mut self,
        container: &str,
        netns: &Path,
        ways: &BTreeSet<Way>,
    ) -> Result<(), Error> {
        if self.has(container, ways) {
            return Ok(());
        }
        let mut added = Vec::new();
        for way in ways {
            if self.has(container, &[*way].into()) {
                continue;
            }
            let bound = namespace::within(netns, || Ok(Bound::new(way)))?;
            match bound {
                Ok(bound) => added.push((*way, self.start(bound, way)?)),
                // The container has no IPv6 there, and nobody comes by it.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(Error::kernel("listen for a container")(error)),
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        if !self.containers.contains_key(container) {
            let (table, ways) = (RelayTable::open(netns)?, BTreeMap::new());
            self.containers.insert(container.to_owned(), Relayed { table, ways });
        }
        let relayed = self.containers.get_mut(container).expect("made where it was missing");
        relayed.ways.extend(added);
        let is_set = relayed.set_table();
        if let Err(error) = &is_set {
            self.is_refused = is_missing(error);
            self.containers.remove(container);
        }
        is_set
    }

    /// Passes nothing on any more to a container. Idempotent.
    pub(crate) fn remove(&mut self, container: &str) {
        self.containers.remove(container);
    }

    /// The container does not have this address any more.
    pub(crate) fn forget(&mut self, container: &str, address: Ipv4Addr) -> Result<(), Error> {
        let Some(relayed) = self.containers.get_mut(container) else { return Ok(()) };
        let before = relayed.ways.len();
        relayed.ways.retain(|way, _| way.to != address);
        if relayed.ways.len() == before { Ok(()) } else { relayed.set_table() }
    }

    /// The container is about to leave the network, in which it has one of `plugs`.
    pub(crate) fn quit(
        &mut self,
        container: &str,
        plugs: &[Plug],
        network: &str,
    ) -> Result<(), Error> {
        let left = plugs.iter().find(|plug| plug.network == network);
        left.map_or(Ok(()), |plug| self.forget(container, plug.address))
    }

    /// How the kernel differs from what was asked for; with `mends`, it is put right.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn audit(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        for (container, relayed) in &mut self.containers {
            let faults = relayed.table.faults();
            if mends && !faults.is_empty() {
                relayed.table.renew()?;
            }
            all.extend(faults.iter().map(|fault| format!("container {container}: {fault}")));
        }
        Ok(all)
    }

    fn start(&mut self, bound: Bound, way: &Way) -> Result<Relay, Error> {
        if self.runtime.is_none() {
            let mut builder = Builder::new_multi_thread();
            let built = builder.worker_threads(1).thread_name("relay").enable_all().build();
            self.runtime = Some(built.map_err(Error::kernel("start a thread"))?);
        }
        let runtime = self.runtime.as_ref().expect("built where it was missing");
        let failed = |error| Error::kernel("listen for a container")(error);
        let _context = runtime.enter();
        let port = bound.port().map_err(failed)?;
        let (target, room) = (way.target(), self.room.clone());
        let task = match bound {
            Bound::Tcp(listener) => {
                let listener = net::TcpListener::from_std(listener).map_err(failed)?;
                runtime.spawn(pass_connections(listener, target, room))
            }
            Bound::Udp(socket) => {
                let socket = net::UdpSocket::from_std(socket).map_err(failed)?;
                runtime.spawn(pass_datagrams(socket, target, room))
            }
        };
        Ok(Relay { port, task: task.abort_handle() })
    }
}

impl Relayed {
    fn set_table(&mut self) -> Result<(), Error> {
        let relays = self.ways.iter().map(|(way, relay)| (way.awaited(), relay.port));
        self.table.set(relays.collect())
    }
}

/// A socket in a container's namespace, on a port that the kernel chose.
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Bound {
    fn new(way: &Way) -> io::Result<Self> {
        let any_port = SocketAddrV6::new(way.from, 0, 0, 0);
        match way.kind {
            Kind::Connections => {
                let listener = TcpListener::bind(any_port)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Kind::Datagrams => {
                let socket = UdpSocket::bind(any_port)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    fn port(&self) -> io::Result<u16> {
        let address = match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        Ok(address?.port())
    }
}

async fn pass_connections(listener: net::TcpListener, to: SocketAddrV4, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // Where there is no room, the client hears so at once.
        let Ok(place) = room.clone().try_acquire_owned() else {
            reset(client);
            continue;
        };
        connections.spawn(async move {
            let _place = place;
            pass_connection(client, to).await;
        });
    }
}

async fn pass_connection(mut client: net::TcpStream, to: SocketAddrV4) {
    let connected = timeout(CONNECT_WITHIN_MAX, net::TcpStream::connect(to)).await;
    let Ok(Ok(mut process)) = connected else {
        reset(client);
        return;
    };
    for stream in [&client, &process] {
        // What comes in small pieces goes on in small pieces; who vanishes is not kept.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
    }
    let (client_bytes, process_bytes) = (BUFFER_BYTES, BUFFER_BYTES);
    let passed =
        copy_bidirectional_with_sizes(&mut client, &mut process, client_bytes, process_bytes);
    if passed.await.is_err() {
        // One of them was reset: so is the other.
        reset(client);
        reset(process);
    }
}

/// Ends a connection as one that is refused.
fn reset(stream: net::TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}

async fn pass_datagrams(socket: net::UdpSocket, to: SocketAddrV4, room: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut clients: BTreeMap<SocketAddr, Arc<net::UdpSocket>> = BTreeMap::new();
    let mut answering: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            Some(ended) = answering.join_next(), if !answering.is_empty() => {
                ended.into_iter().for_each(|client| drop(clients.remove(&client)));
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        // Errors are about datagrams of before.
        let Ok((length, client)) = received else { continue };
        let process = match clients.get(&client) {
            Some(process) => process.clone(),
            None => {
                let Ok(place) = room.clone().try_acquire_owned() else { continue };
                let Ok(process) = connected(to).await.map(Arc::new) else { continue };
                clients.insert(client, process.clone());
                let (socket, from) = (socket.clone(), process.clone());
                answering.spawn(async move {
                    let _place = place;
                    answer(&socket, client, &from).await;
                    client
                });
                process
            }
        };
        let _ = process.send(&buffer[..length]).await;
    }
}

/// Passes answers on until there are none any more.
async fn answer(socket: &net::UdpSocket, client: SocketAddr, process: &net::UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    while let Ok(received) = timeout(SILENCE_MAX, process.recv(&mut buffer)).await {
        // Refused: whoever listens later answers later.
        let Ok(length) = received else { continue };
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}

async fn connected(to: SocketAddrV4) -> io::Result<net::UdpSocket> {
    let socket = net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Whether the kernel does not know a part of the rules.
fn is_missing(error: &Error) -> bool {
    let kind = match error {
        Error::Kernel { source, .. } => source.kind(),
        _ => return false,
    };
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::Unsupported)
}

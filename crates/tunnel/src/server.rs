//! The tunnel's main thread: start-up, the daemons' requests, the protocol's clock.

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use boringtun::noise::TunnResult;
use runtime::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
    sockopt,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::peers::Peers;
use crate::protocol::{Answer, Config, Request, State, VERSION};
use crate::{Error, confine, inward, outward, packet, sys};

/// Files of a tunnel's directory.
pub(crate) const CONFIG_FILE: &str = "config.json";
pub(crate) const SOCKET_FILE: &str = "socket";

/// Daemons connected at a time; an older one makes room.
const CONNECTIONS_MAX: usize = 16;
const BACKLOG: i32 = 8;

/// Between two looks at the protocol's timers, the shortest of which runs for five seconds.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// The longest datagram that only time brings about: the beginning of a handshake.
const TIMED_BYTES_MAX: usize = 148;

/// Datagrams that wait to be opened, in bytes: a few milliseconds of a fast link.
const SOCKET_BYTES: usize = 4 << 20;

struct Server {
    listener: OwnedFd,
    connections: Vec<OwnedFd>,
    socket: Arc<OwnedFd>,
    peers: Arc<Peers>,
    state: State,
}

/// Runs the tunnel of a directory; returns at its end.
pub(crate) fn run(directory: &Path) -> Result<(), Error> {
    let path = directory.join(CONFIG_FILE);
    let config = std::fs::read(&path).map_err(Error::file("read", &path))?;
    let config: Config = serde_json::from_slice(&config)
        .map_err(|error| Error::file("read", &path)(error.into()))?;
    let socket = open_socket(config.port)
        .map_err(Error::step(format!("listen on UDP port {}", config.port)))?;
    let path = directory.join(SOCKET_FILE);
    let listener = listen_at(&path).map_err(Error::file("listen at", &path))?;
    enter(&config.netns)?;
    let device = sys::open_tun(&config.device)
        .map_err(Error::step(format!("make tun device {}", config.device)))?;
    let fork = process::fork().map_err(|errno| Error::step("fork")(errno.into()))?;
    if fork != 0 {
        process::exit_now(0);
    }
    detach().map_err(|errno| Error::step("detach from the daemon")(errno.into()))?;
    let peers = Arc::new(Peers::new(random()?));
    let made_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let pid = rustix::process::getpid().as_raw_pid();
    let state = State { version: VERSION, key: peers.key(), port: config.port, made_at, pid };
    let socket = Arc::new(socket);
    carry(&Arc::new(device), &socket, &peers)?;
    confine::confine()?;
    let mut server = Server { listener, connections: Vec::new(), socket, peers, state };
    while server.turn().map_err(|errno| Error::step("wait for events")(errno.into()))? {}
    Ok(())
}

/// One socket for both families.
fn open_socket(port: u16) -> io::Result<OwnedFd> {
    let socket = OwnedFd::from(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?);
    sys::allow_fragments(&socket)?;
    // Older kernels do not join datagrams; then each is read by itself.
    let _ = sys::join_datagrams(&socket);
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)?;
    sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BYTES)?;
    Ok(socket)
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = bind(&listener, &SocketAddrUnix::new(path)?);
    rustix::process::umask(mask);
    bound?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn enter(netns: &Path) -> Result<(), Error> {
    let file = File::open(netns).map_err(Error::file("open", netns))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| Error::file("enter", netns)(errno.into()))
}

fn detach() -> rustix::io::Result<()> {
    setsid()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"skep-tunnel")?;
    rustix::process::chdir("/")?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
        process::ignore(signal);
    }
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        0.into(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|errno| Error::step("get random bytes")(errno.into()))?;
    }
    Ok(bytes)
}

type Carry = fn(&OwnedFd, &OwnedFd, &Arc<Peers>) -> rustix::io::Result<()>;

/// One thread for each direction. With either of them the process ends: a tunnel that works in one direction only would
/// hide what is wrong.
fn carry(device: &Arc<OwnedFd>, socket: &Arc<OwnedFd>, peers: &Arc<Peers>) -> Result<(), Error> {
    let directions: [(&str, Carry); 2] = [("outward", outward::run), ("inward", inward::run)];
    for (name, direction) in directions {
        let (device, socket, peers) = (device.clone(), socket.clone(), peers.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if confine::confine().is_ok() {
                let _ = direction(&device, &socket, &peers);
            }
            process::exit_now(1)
        });
        thread.map_err(Error::step("start a thread"))?;
    }
    Ok(())
}

impl Server {
    /// Waits for something to do and does it; false when it is time to end.
    fn turn(&mut self) -> rustix::io::Result<bool> {
        let mut set = vec![PollFd::new(&self.listener, PollFlags::IN)];
        set.extend(self.connections.iter().map(|it| PollFd::new(it, PollFlags::IN)));
        match poll(&mut set, Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = set.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(set);
        self.tick();
        let (accepts, ready) = ready.split_first().expect("the listener is there");
        let mut goes_on = true;
        let mut ready = ready.iter();
        for connection in std::mem::take(&mut self.connections) {
            if !ready.next().copied().unwrap_or(false) {
                self.connections.push(connection);
                continue;
            }
            match self.serve(&connection) {
                Some(false) => goes_on = false,
                Some(true) => self.connections.push(connection),
                None => {}
            }
        }
        if *accepts {
            self.accept();
        }
        Ok(goes_on)
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(connection) = accept_with(&self.listener, flags) {
            if self.connections.len() >= CONNECTIONS_MAX {
                self.connections.remove(0);
            }
            self.connections.push(connection);
        }
    }

    /// Answers one request; `None` when the daemon is gone, false when it wants the end.
    fn serve(&self, connection: &OwnedFd) -> Option<bool> {
        let request = match packet::receive(connection) {
            Ok(bytes) if bytes.is_empty() => return None,
            Ok(bytes) => serde_json::from_slice(&bytes),
            Err(Errno::AGAIN) => return Some(true),
            Err(_) => return None,
        };
        let is_end = matches!(request, Ok(Request::End));
        let answer = match request {
            Ok(request) => self.answer(request),
            Err(error) => Answer::Refused { said: error.to_string() },
        };
        let bytes = serde_json::to_vec(&answer).expect("an answer has only text and numbers");
        let sent = packet::send(connection, &bytes);
        if is_end { Some(false) } else { sent.is_ok().then_some(true) }
    }

    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::State => Answer::State(self.state.clone()),
            Request::Peers { after } => Answer::Peers { peers: self.peers.told_after(after) },
            Request::Change { set, gone } => match self.peers.change(&set, &gone) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Refused { said: error.to_string() },
            },
            Request::End => Answer::Done,
        }
    }

    /// Lets the protocol repeat handshakes, renew sessions and forget old ones.
    fn tick(&self) {
        self.peers.limiter.reset_count();
        let mut buffer = [0; TIMED_BYTES_MAX];
        for link in self.peers.all() {
            let mut state = link.lock();
            let to = state.endpoint;
            if let TunnResult::WriteToNetwork(datagram) = state.noise.update_timers(&mut buffer) {
                let _ = sys::send_segments(&*self.socket, datagram, datagram.len(), to);
            }
        }
    }
}

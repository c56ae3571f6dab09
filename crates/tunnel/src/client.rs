//! The daemon's side: starts tunnels, finds them again, talks to them. Calls block for as long as a tunnel takes to
//! answer, which is at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::protocol::{Answer, Config, Key, PEERS_PER_MESSAGE_MAX, Peer, Request, State};
use crate::server::{CONFIG_FILE, SOCKET_FILE};
use crate::{Error, packet};

/// How long a tunnel may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection to a tunnel.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    state: State,
    /// What the tunnel was told of peers.
    peers: BTreeMap<Key, SocketAddr>,
}

impl Client {
    /// Starts a tunnel that lives in `directory`, in the network namespace of the calling thread. `program` becomes one
    /// when its first argument is `tunnel`.
    ///
    /// # Errors
    /// [`Error::NotStarted`] with what it complained of.
    pub fn launch(program: &Path, directory: &Path, config: &Config) -> Result<Self, Error> {
        std::fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        let path = directory.join(CONFIG_FILE);
        let text = serde_json::to_vec(config).expect("plain data");
        std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        let mut command = Command::new(program);
        command.arg0("skep").arg("tunnel").arg(directory).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // The process forks once it is ready, and its first half ends.
        let output = command.output().map_err(Error::step("run a tunnel"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::NotStarted { said });
        }
        Self::connect(directory)
    }

    /// Finds the tunnel that lives in `directory`.
    ///
    /// # Errors
    /// Where nobody listens: the tunnel has ended.
    pub fn connect(directory: &Path) -> Result<Self, Error> {
        let socket = connected(directory)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(ANSWER_MAX))
                .map_err(|errno| Error::step("connect to a tunnel")(errno.into()))?;
        }
        let state = match ask(&socket, &Request::State)? {
            Answer::State(state) => state,
            other => return Err(unexpected(&other)),
        };
        let mut client = Self { socket, state, peers: BTreeMap::new() };
        client.recall()?;
        Ok(client)
    }

    /// Reads what a daemon before us has told the tunnel.
    fn recall(&mut self) -> Result<(), Error> {
        loop {
            let after = self.peers.last_key_value().map(|(key, _)| *key);
            match ask(&self.socket, &Request::Peers { after })? {
                Answer::Peers { peers } if peers.is_empty() => return Ok(()),
                Answer::Peers { peers } => {
                    self.peers.extend(peers.into_iter().map(|peer| (peer.key, peer.endpoint)));
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// How the tunnel was when it was found.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the tunnel was told of peers.
    pub fn peers(&self) -> &BTreeMap<Key, SocketAddr> {
        &self.peers
    }

    /// Becomes readable when the tunnel of `directory` ends, and is not for anything else. It does not block.
    ///
    /// # Errors
    /// Where nobody listens: the tunnel has ended.
    pub fn watch(directory: &Path) -> Result<UnixStream, Error> {
        let socket = connected(directory)?;
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|errno| Error::step("watch a tunnel")(errno.into()))?;
        Ok(UnixStream::from(socket))
    }

    /// Becomes readable when the tunnel ends.
    pub fn life(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Says who the peers are and where; all others are forgotten.
    ///
    /// # Errors
    /// When the tunnel has ended, or has no room for so many.
    pub fn set_peers(&mut self, peers: &BTreeMap<Key, SocketAddr>) -> Result<(), Error> {
        let gone: Vec<_> =
            self.peers.keys().filter(|key| !peers.contains_key(*key)).copied().collect();
        for gone in gone.chunks(PEERS_PER_MESSAGE_MAX) {
            self.tell(&Request::Change { set: Vec::new(), gone: gone.to_vec() })?;
            self.peers.retain(|key, _| !gone.contains(key));
        }
        let new = peers.iter().filter(|(key, endpoint)| self.peers.get(key) != Some(endpoint));
        let new: Vec<_> =
            new.map(|(key, endpoint)| Peer { key: *key, endpoint: *endpoint }).collect();
        for set in new.chunks(PEERS_PER_MESSAGE_MAX) {
            self.tell(&Request::Change { set: set.to_vec(), gone: Vec::new() })?;
            self.peers.extend(set.iter().map(|peer| (peer.key, peer.endpoint)));
        }
        Ok(())
    }

    /// Ends the tunnel, and with it its device and its key.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn end(self) -> Result<(), Error> {
        self.tell(&Request::End)?;
        // Its end is the connection's.
        match packet::receive(&self.socket) {
            Ok(bytes) if !bytes.is_empty() => Err(unexpected(&parse(&bytes)?)),
            _ => Ok(()),
        }
    }

    fn tell(&self, request: &Request) -> Result<(), Error> {
        match ask(&self.socket, request)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn connected(directory: &Path) -> Result<OwnedFd, Error> {
    let path = directory.join(SOCKET_FILE);
    let fault = |errno: rustix::io::Errno| Error::file("connect to tunnel", &path)(errno.into());
    let flags = SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(fault)?;
    connect(&socket, &SocketAddrUnix::new(&path).map_err(fault)?).map_err(fault)?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, request: &Request) -> Result<Answer, Error> {
    let fault = |errno: rustix::io::Errno| Error::step("ask a tunnel")(errno.into());
    let bytes = serde_json::to_vec(request).expect("a request has only text and numbers");
    packet::send(socket, &bytes).map_err(fault)?;
    let answer = packet::receive(socket).map_err(fault)?;
    if answer.is_empty() {
        return Err(fault(rustix::io::Errno::PIPE));
    }
    parse(&answer)
}

fn parse(bytes: &[u8]) -> Result<Answer, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Refused { said: error.to_string() })
}

fn unexpected(answer: &Answer) -> Error {
    match answer {
        Answer::Refused { said } => Error::Refused { said: said.clone() },
        other => Error::Refused { said: format!("answer to another question: {other:?}") },
    }
}

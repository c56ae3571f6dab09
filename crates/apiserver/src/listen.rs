//! The sockets the API answers on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, chown};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;
use crate::tls::TlsFiles;

/// Connections the kernel holds until we accept them.
const BACKLOG: i32 = 1024;
/// Who may use the API beside root: the members of the socket's group.
const SOCKET_MODE: u32 = 0o660;

/// A place to listen, as `-H` names it.
#[derive(Debug)]
pub enum Listen {
    /// `unix://path`, given to `group` where that group exists.
    Unix { path: PathBuf, group: String },
    /// `tcp://address`, plain without `tls`.
    Tcp { address: SocketAddr, tls: Option<TlsFiles> },
    /// `fd://`: a listening unix socket that a service manager opened for us.
    Inherited(OwnedFd),
}

/// A bound listener.
pub(crate) enum Bound {
    Unix { listener: UnixListener, path: Option<PathBuf> },
    Tcp { listener: TcpListener, tls: Option<TlsAcceptor> },
}

impl Listen {
    pub(crate) async fn bind(self) -> Result<Bound, Error> {
        match self {
            Self::Unix { path, group } => {
                clear_stale(&path).await?;
                let listener = bind_unix(&path, &group).map_err(|source| Error::Listen {
                    address: format!("unix://{}", path.display()),
                    source,
                })?;
                Ok(Bound::Unix { listener, path: Some(path) })
            }
            Self::Tcp { address, tls } => {
                let tls = tls.as_ref().map(TlsFiles::acceptor).transpose()?;
                let listener = TcpListener::bind(address).await.map_err(|source| {
                    Error::Listen { address: format!("tcp://{address}"), source }
                })?;
                if tls.is_none() && !address.ip().is_loopback() {
                    tracing::warn!(%address, "API is open to the network without TLS: whoever reaches it is root here");
                }
                Ok(Bound::Tcp { listener, tls })
            }
            Self::Inherited(fd) => {
                let inherited = || -> io::Result<UnixListener> {
                    let listener = std::os::unix::net::UnixListener::from(fd);
                    listener.set_nonblocking(true)?;
                    UnixListener::from_std(listener)
                };
                let listener = inherited()
                    .map_err(|source| Error::Listen { address: "fd://".to_owned(), source })?;
                Ok(Bound::Unix { listener, path: None })
            }
        }
    }
}

impl Bound {
    /// Where clients reach this listener, as `DOCKER_HOST` takes it.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Unix { path: Some(path), .. } => format!("unix://{}", path.display()),
            Self::Unix { path: None, .. } => "fd://".to_owned(),
            Self::Tcp { listener, .. } => match listener.local_addr() {
                Ok(address) => format!("tcp://{address}"),
                Err(_) => "tcp://".to_owned(),
            },
        }
    }
}

/// Removes the socket of a daemon that is gone; one that still answers is left alone.
async fn clear_stale(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: format!("unix://{}", path.display()), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket")));
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::SocketInUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(failed)
}

/// Binds, sets owner and mode, and only then listens: nobody connects before the mode holds.
fn bind_unix(path: &Path, group: &str) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if let Some(gid) = group_id(group) {
        chown(path, None, Some(Gid::from_raw(gid)))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// The id of a group by name or number, from `/etc/group`: a static binary has no name service to ask.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (name == group).then(|| fields.nth(1)?.parse().ok())?
    })
}

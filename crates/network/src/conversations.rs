//! Which of the connections that others opened to a container are in use (linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{Error, namespace};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
/// `struct inet_diag_req_v2`, `struct inet_diag_msg`.
const REQUEST_BYTES: usize = 56;
const MESSAGE_BYTES: usize = 72;
/// The attribute with a connection's `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;
/// Where that has the milliseconds since data was last sent, and came.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;

/// The connections of one network namespace.
pub struct Conversations(Socket);

impl std::fmt::Debug for Conversations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Conversations").finish()
    }
}

/// What the kernel says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    state: u8,
    here: SocketAddr,
    there: SocketAddr,
    /// How long nothing was sent and nothing came.
    silent: Option<Duration>,
}

impl Conversations {
    /// Of the namespace at `netns`.
    pub(crate) fn within(netns: &Path) -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            Ok(socket)
        };
        let failed = || Error::kernel("ask for the connections of a container");
        namespace::within(netns, || open().map(Self).map_err(failed()))
    }

    /// Connections from outside to ports that are listened on, on which something came or went during the last `recently`.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn in_use(&self, recently: Duration) -> Result<usize, Error> {
        let listed = self.list().map_err(Error::kernel("list the connections of a container"))?;
        Ok(used(&listed, recently))
    }

    fn list(&self) -> io::Result<Vec<Told>> {
        let mut told = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.0.send(&question(family), 0)?;
            while !collect(&self.0.recv_from_full()?.0, &mut told)? {}
        }
        Ok(told)
    }
}

fn used(listed: &[Told], recently: Duration) -> usize {
    let listening: BTreeSet<_> =
        listed.iter().filter(|it| it.state == TCP_LISTEN).map(|it| it.here.port()).collect();
    let ways: BTreeSet<_> = listed.iter().map(|it| (it.here, it.there)).collect();
    let is_used = |it: &&Told| {
        it.state == TCP_ESTABLISHED
            && listening.contains(&it.here.port())
            // Both ends are here of what a container opened to itself.
            && !ways.contains(&(it.there, it.here))
            && it.silent.is_some_and(|silent| silent < recently)
    };
    listed.iter().filter(is_used).count()
}

fn question(family: u8) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + REQUEST_BYTES).expect("small");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend((1_u32 << TCP_ESTABLISHED | 1 << TCP_LISTEN).to_ne_bytes());
    bytes.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    bytes
}

/// Takes the messages of one datagram; true when the list is complete.
fn collect(mut bytes: &[u8], told: &mut Vec<Told>) -> io::Result<bool> {
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = number(header, 0).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = bytes.get(HEADER_BYTES..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            _ => told.extend(told_by(body)),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn told_by(body: &[u8]) -> Option<Told> {
    let (message, mut attributes) = body.split_at_checked(MESSAGE_BYTES)?;
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(*message[port..].first_chunk()?);
        let address: IpAddr = match message[0] {
            AF_INET => Ipv4Addr::from(*message[address..].first_chunk::<4>()?).into(),
            _ => Ipv6Addr::from(*message[address..].first_chunk::<16>()?).into(),
        };
        Some(SocketAddr::new(address.to_canonical(), port))
    };
    let (state, here, there) = (message[1], end(4, 8)?, end(6, 24)?);
    let mut silent = None;
    while let Some(head) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let info = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == INET_DIAG_INFO {
            let times = [LAST_DATA_SENT, LAST_DATA_RECEIVED].map(|at| number(info, at));
            let least = times.into_iter().flatten().min();
            silent = least.and_then(|it| u64::try_from(it).ok()).map(Duration::from_millis);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Told { state, here, there, silent })
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const RECENTLY: Duration = Duration::from_millis(250);

    #[test]
    fn only_what_others_opened_and_use_counts() {
        let told = |state, here: u16, there: u16, silent| Told {
            state,
            here: SocketAddr::from(([10, 0, 0, 1], here)),
            there: SocketAddr::from(([10, 0, 0, 2], there)),
            silent: Some(Duration::from_millis(silent)),
        };
        let listens = told(TCP_LISTEN, 80, 0, 0);
        let used_by = |there, silent| told(TCP_ESTABLISHED, 80, there, silent);
        let back = |it: Told| Told { here: it.there, there: it.here, ..it };
        for (what, listed, expected) in [
            ("in use", vec![listens, used_by(5, 3)], 1),
            ("silent for long", vec![listens, used_by(5, 900)], 0),
            ("opened to others", vec![listens, told(TCP_ESTABLISHED, 5, 80, 3)], 0),
            ("opened to itself", vec![listens, used_by(5, 3), back(used_by(5, 3))], 0),
            ("two of three", vec![used_by(5, 1), used_by(6, 400), used_by(7, 2), listens], 2),
        ] {
            assert_eq!(used(&listed, RECENTLY), expected, "{what}");
        }
    }

    #[test]
    fn the_kernel_tells_of_a_connection_that_is_in_use() {
        let ours = Conversations::within(Path::new("/proc/self/ns/net"));
        // Only who may enter namespaces can ask.
        let Ok(ours) = ours else { return };
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let listens_at = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(listens_at).unwrap();
            let (_server, _) = listener.accept().unwrap();
            client.write_all(b"a").unwrap();
            let mut found = ours.list().unwrap().into_iter().filter(|it| it.here == listens_at);
            let connected = found.find(|it| it.state == TCP_ESTABLISHED).expect("it is there");
            let connected = [connected, Told { state: TCP_LISTEN, ..connected }];
            assert_eq!(used(&connected, Duration::from_secs(60)), 1, "{connected:?}");
        }
    }
}

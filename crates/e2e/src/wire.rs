//! What passes on a switch between hosts, as somebody on the wire sees it.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Frames that wait to be looked at, in bytes.
const BUFFER_BYTES: usize = 64 << 20;

/// How often the end of the capture is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Looks at every frame of a switch, or of another namespace. Dropping it ends that.
#[derive(Debug)]
pub struct Wire {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    is_over: AtomicBool,
    words: Mutex<Vec<(String, usize)>>,
    /// UDP datagrams by port, from or to.
    ports: Mutex<Vec<(u16, usize)>>,
    /// Parts of packets that a router has taken apart.
    parts: AtomicUsize,
}

impl Wire {
    /// Begins to look for words and UDP ports in a network namespace.
    pub fn look(namespace: &Path, words: &[&str], ports: &[u16]) -> Self {
        let seen = Arc::new(Seen {
            words: Mutex::new(words.iter().map(|word| ((*word).to_owned(), 0)).collect()),
            ports: Mutex::new(ports.iter().map(|port| (*port, 0)).collect()),
            ..Seen::default()
        });
        let path = namespace.to_owned();
        let (noted, (ready, is_ready)) = (seen.clone(), std::sync::mpsc::sync_channel(1));
        let thread = std::thread::spawn(move || {
            let file = File::open(path).expect("the namespace is there");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enters");
            let socket = open();
            ready.send(()).expect("somebody waits");
            note(&socket, &noted);
        });
        is_ready.recv().expect("the capture begins");
        Self { seen, thread: Some(thread) }
    }

    /// Frames in which the word stood readable.
    pub fn readable(&self, word: &str) -> usize {
        let words = self.seen.words.lock().expect("looks");
        words.iter().find(|(known, _)| known == word).expect("it is looked for").1
    }

    /// IPv4 packets that are parts of longer ones.
    pub fn parts(&self) -> usize {
        self.seen.parts.load(Ordering::Relaxed)
    }

    /// UDP datagrams from or to the port.
    pub fn datagrams(&self, port: u16) -> usize {
        let ports = self.seen.ports.lock().expect("looks");
        ports.iter().find(|(known, _)| *known == port).expect("it is looked for").1
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.seen.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> OwnedFd {
    // `ETH_P_ALL`, as it stands in a frame.
    let every = NonZeroU32::new(u32::from(0x0003_u16.to_be())).expect("it is 3");
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(Protocol::from_raw(every)),
    );
    let socket = socket.expect("captures");
    set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).expect("has room");
    set_socket_timeout(&socket, Timeout::Recv, Some(LOOK)).expect("looks up");
    socket
}

fn note(socket: &OwnedFd, seen: &Seen) {
    let mut frame = vec![0; 1 << 16];
    while !seen.is_over.load(Ordering::Relaxed) {
        let Ok((_, length)) = recv(socket, &mut frame[..], RecvFlags::empty()) else { continue };
        let frame = &frame[..length];
        seen.parts.fetch_add(usize::from(is_part(frame)), Ordering::Relaxed);
        for (word, count) in seen.words.lock().expect("looks").iter_mut() {
            let holds = |part: &[u8]| part == word.as_bytes();
            *count += usize::from(frame.windows(word.len()).any(holds));
        }
        if let Some((from, to)) = udp_ports(frame) {
            for (port, count) in seen.ports.lock().expect("looks").iter_mut() {
                *count += usize::from(from == *port || to == *port);
            }
        }
    }
}

/// Whether more follows, or something came before.
fn is_part(frame: &[u8]) -> bool {
    let Some(field) = frame.get(20..22) else { return false };
    frame[12..14] == [0x08, 0x00] && u16::from_be_bytes([field[0], field[1]]) & 0x3fff != 0
}

/// The ports of a UDP datagram over IPv4 without options.
fn udp_ports(frame: &[u8]) -> Option<(u16, u16)> {
    let is_udp = frame.get(12..14)? == [0x08, 0x00] && *frame.get(23)? == 17;
    let ports = frame.get(34..38).filter(|_| is_udp)?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

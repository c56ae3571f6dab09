//! A connection that carries frames both ways and nothing else, for who moves them on a thread of its own.
//!
//! ```text
//! TLS 1.3 with the protocol "skep-pipe" ── frame | frame | … | refusal
//! frame:   length 4, big-endian | bytes
//! refusal: length 4, its top bit set | why the other side will hear nothing more
//! ```
//! Managers agree by it: what waits for a disk anyway should not wait for four tasks and two queues besides. It is
//! opened, judged and ended by the runtime, as every connection is; only what goes through it is moved without.

use std::future::Future;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rustix::net::sockopt;
use tokio::sync::oneshot;

use crate::frames::{self, FRAME_BYTES_MAX, FrameError};
use crate::identity::Peer;

/// How TLS tells pipes from calls.
pub(crate) const ALPN: &[u8] = b"skep-pipe";

/// Bytes waiting to be sent beyond which nothing more is taken: a peer that takes nothing costs no more than that and
/// one frame.
const UNSENT_BYTES_MAX: usize = 8 << 20;

/// Bytes taken from the connection at a time, so that no peer holds the others up.
const READ_BYTES_MAX: usize = 1 << 20;

/// Bytes of room kept for frames while none waits.
const KEPT_BYTES: usize = 64 << 10;

/// Bytes of the text of a refusal.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// Marks a refusal in the length.
const REFUSAL: u32 = 1 << 31;

/// How long sent bytes may stay without the kernel of the other side taking them.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(2_500);

/// Silence after which the kernel asks the other side whether it is there, how often, and how many times.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBES: u32 = 3;

/// An open connection. Nothing it does blocks.
#[derive(Debug)]
pub struct Pipe {
    socket: TcpStream,
    tls: rustls::Connection,
    peer: Peer,
    /// Frames for the connection, and how many of their bytes it has taken.
    unsent: Vec<u8>,
    taken: usize,
    /// What has come and was not yet asked for.
    received: BytesMut,
    /// Goes with the pipe, which tells those who watch over it.
    _held: oneshot::Sender<()>,
}

/// Ends a pipe when it is dropped, wherever the pipe is by then.
#[derive(Debug)]
pub(crate) struct Ender {
    socket: TcpStream,
    ended: oneshot::Receiver<()>,
}

impl Drop for Ender {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Ender {
    /// Waits until the pipe is given up, or ends it when `distrust` says why.
    pub(crate) async fn watch(mut self, distrust: impl Future<Output = String>) -> Option<String> {
        tokio::select! {
            _ = &mut self.ended => None,
            reason = distrust => Some(reason),
        }
    }
}

impl Pipe {
    /// Takes over a connection after its handshake.
    pub(crate) fn new(
        socket: tokio::net::TcpStream,
        mut tls: rustls::Connection,
        peer: Peer,
    ) -> io::Result<(Self, Ender)> {
        let socket = socket.into_std()?;
        let within = u32::try_from(ACKNOWLEDGED_WITHIN.as_millis()).expect("seconds");
        sockopt::set_tcp_user_timeout(&socket, within)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, PROBES)?;
        let (held, ended) = oneshot::channel();
        let ender = Ender { socket: socket.try_clone()?, ended };
        let mut received = BytesMut::new();
        drain(&mut tls, &mut received)?;
        let pipe = Self { socket, tls, peer, unsent: Vec::new(), taken: 0, received, _held: held };
        Ok((pipe, ender))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Keeps a frame for [`Pipe::flush`]; false where too much waits already.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        if self.unsent.len() - self.taken > UNSENT_BYTES_MAX {
            return false;
        }
        self.unsent.put_u32(u32::try_from(frame.len()).expect("frames are bounded"));
        self.unsent.extend_from_slice(frame);
        true
    }

    /// Whether something waits for the connection to take it.
    pub fn has_unsent(&self) -> bool {
        self.taken < self.unsent.len() || self.tls.wants_write()
    }

    /// Gives the connection what it takes now.
    ///
    /// # Errors
    /// When it is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            if self.taken < self.unsent.len() {
                // Takes as much as its own buffer holds.
                self.taken += self.tls.writer().write(&self.unsent[self.taken..])?;
            }
            match self.tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.taken == self.unsent.len() {
            self.unsent.clear();
            self.unsent.shrink_to(KEPT_BYTES);
            self.taken = 0;
        }
        Ok(())
    }

    /// Takes in what has arrived, by way of `buffer`. [`Pipe::take_frame`] has the frames then.
    ///
    /// # Errors
    /// When the connection has ended or is broken. Frames that came before may still be asked for.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FrameError> {
        let broken = |error: io::Error| FrameError::Broken(error.to_string());
        let mut taken = 0;
        while taken < READ_BYTES_MAX {
            let count = match self.socket.read(buffer) {
                Ok(0) => return Err(FrameError::Broken("the other side closed it".into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            self.decrypt(&buffer[..count])?;
            taken += count;
            if count < buffer.len() {
                break;
            }
        }
        // TLS may have something to say to what it read.
        if self.tls.wants_write() { self.flush().map_err(broken) } else { Ok(()) }
    }

    fn decrypt(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        let broken = |error: io::Error| FrameError::Broken(error.to_string());
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).map_err(broken)?;
            let state = self.tls.process_new_packets();
            state.map_err(|error| FrameError::Broken(crate::client::told(error.to_string())))?;
            drain(&mut self.tls, &mut self.received).map_err(broken)?;
        }
        Ok(())
    }

    /// The next whole frame of what has come.
    ///
    /// # Errors
    /// When it is too large, or the other side refused to hear more.
    pub fn take_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if let Some(header) = self.received.first_chunk::<{ frames::HEADER_BYTES }>() {
            let length = u32::from_be_bytes(*header);
            if length & REFUSAL != 0 {
                return self.refusal((length & !REFUSAL) as usize);
            }
        }
        frames::take(&mut self.received)
    }

    fn refusal(&mut self, length: usize) -> Result<Option<Bytes>, FrameError> {
        if length > REFUSAL_BYTES_MAX {
            return Err(FrameError::TooLarge(length));
        }
        let Some(text) = self.received.get(frames::HEADER_BYTES..frames::HEADER_BYTES + length)
        else {
            return Ok(None);
        };
        Err(FrameError::Refused(String::from_utf8_lossy(text).into_owned()))
    }

    /// Tells the other side why nothing more is heard, as far as it listens, and ends the connection.
    pub fn refuse(&mut self, reason: &str) {
        let text = &reason.as_bytes()[..reason.len().min(REFUSAL_BYTES_MAX)];
        let length = u32::try_from(text.len()).expect("a few KiB");
        self.unsent.put_u32(length | REFUSAL);
        self.unsent.extend_from_slice(text);
        let _ = self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes what TLS has decrypted.
fn drain(tls: &mut rustls::Connection, into: &mut BytesMut) -> io::Result<()> {
    let mut reader = tls.reader();
    loop {
        let count = match reader.fill_buf() {
            Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                into.extend_from_slice(bytes);
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        reader.consume(count);
    }
}

const _: () = assert!(FRAME_BYTES_MAX < REFUSAL as usize);

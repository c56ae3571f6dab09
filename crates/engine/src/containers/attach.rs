//! Clients at a container's streams.
//!
//! The shim gets one end of a pipe for each stream, and the client works with the other: nothing a container
//! writes passes through a queue of ours. A client may attach before the start (as `docker run` does) and
//! then misses nothing.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;
use shim::client::Attachment;
use shim::protocol::WhenFull;
use tokio::net::unix::pipe;

use super::container::Container;
use super::invalid::Invalid;
use super::status::Phase;
use super::{Containers, Shared};
use crate::error::{Attempt, Error};
use crate::logs;

/// Clients that may wait for one container's start.
const WAITING_MAX: usize = 64;
/// Keys that leave a terminal without ending its container: Ctrl-P Ctrl-Q.
const DETACH_KEYS_DEFAULT: &str = "ctrl-p,ctrl-q";

/// Which streams a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// What has been written so far.
    pub logs: bool,
    /// What is written from now on.
    pub stream: bool,
    /// `ctrl-p,ctrl-q` and the like; empty is the default.
    pub detach_keys: String,
}

/// A client's ends of the streams.
pub struct Attached {
    /// What the client types goes here.
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    /// Whether output comes from a terminal.
    pub tty: bool,
    /// Whether input is open at all: what a client types goes nowhere otherwise.
    pub open_stdin: bool,
    /// Bytes that mean "leave"; only under a terminal.
    pub detach_keys: Vec<u8>,
    /// Earlier output, when it was asked for.
    pub logs: Option<logs::LogStream>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("tty", &self.tty).finish_non_exhaustive()
    }
}

impl Containers {
    /// Attaches to a container's streams; one that does not run yet is waited for.
    ///
    /// # Errors
    /// Detach keys that are none, or too many clients.
    pub async fn attach(&self, name: &str, options: &AttachOptions) -> Result<Attached, Error> {
        let container = self.shared.registry.find(name)?;
        if container.phase() == Phase::Paused {
            return Err(Error::AttachPaused { id: container.id.clone() });
        }
        if container.phase() == Phase::Restarting {
            return Err(Error::Restarting { id: container.id.clone() });
        }
        let detach_keys = parse_keys(&options.detach_keys)?;
        let record = container.record();
        let (attachment, mut attached) = pipes(&container, options)?;
        attached.detach_keys = if record.config.tty { detach_keys } else { Vec::new() };
        if options.logs {
            let wanted = logs::LogOptions {
                stdout: options.stdout,
                stderr: options.stderr,
                ..logs::LogOptions::default()
            };
            attached.logs = Some(logs::read(container.log_path(), wanted, None));
        }
        if options.stream {
            self.shared.hand_over(&container, attachment).await?;
        }
        self.shared.event(&container, "attach", &[]);
        Ok(attached)
    }

    /// Notes that a client has left a container with the detach keys.
    pub fn detached_from(&self, name: &str) {
        if let Ok(container) = self.shared.registry.find(name) {
            self.shared.event(&container, "detach", &[]);
        }
    }

    /// Whether output comes from a terminal.
    ///
    /// # Errors
    /// No such container.
    pub fn has_tty(&self, name: &str) -> Result<bool, Error> {
        Ok(self.shared.registry.find(name)?.record().config.tty)
    }

    /// Sets the size of a container's terminal in character cells.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub async fn resize(&self, name: &str, height: u16, width: u16) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        let shim = container.running_shim()?;
        shim.resize(height, width)
            .await
            .map_err(|source| super::stop::shim_error(&container, source))?;
        let size = [("height", height.to_string()), ("width", width.to_string())];
        self.shared.event(&container, "resize", &size);
        Ok(())
    }
}

impl Shared {
    /// Gives the shim its ends, now or at the start.
    async fn hand_over(
        &self,
        container: &Arc<Container>,
        attachment: Attachment,
    ) -> Result<(), Error> {
        // Under the lock no start is half done: either its shim is there, or it will find what waits.
        let _operation = container.operation.lock().await;
        if let Some(shim) = container.shim() {
            return match shim.attach(attachment).await {
                Ok(_) => Ok(()),
                // It has just ended: the client finds its streams closed.
                Err(shim::client::Error::Ended) => Ok(()),
                Err(source) => Err(super::stop::shim_error(container, source)),
            };
        }
        if container.wait_for_start(attachment, WAITING_MAX) {
            return Ok(());
        }
        Err(Error::AttachmentsFull { id: container.id.clone() })
    }
}

/// Whether the client of a waiting attachment has gone.
pub(super) fn is_abandoned(attachment: &Attachment) -> bool {
    let gone = |fd: &OwnedFd| {
        let mut fds = [PollFd::new(fd, PollFlags::empty())];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    };
    [&attachment.stdout, &attachment.stderr, &attachment.stdin].into_iter().flatten().any(gone)
}

/// A pipe for each stream: the shim's ends and the client's.
fn pipes(container: &Container, options: &AttachOptions) -> Result<(Attachment, Attached), Error> {
    let record = container.record();
    let tty = record.config.tty;
    let open = || -> io::Result<(Attachment, Attached)> {
        let mut attachment = Attachment { when_full: WhenFull::Wait, ..Attachment::default() };
        let mut attached = Attached {
            stdin: None,
            stdout: None,
            stderr: None,
            tty,
            open_stdin: record.config.open_stdin,
            detach_keys: Vec::new(),
            logs: None,
        };
        if options.stream && options.stdin && record.config.open_stdin {
            let (read, write) = pipe_pair()?;
            attachment.stdin = Some(read);
            attached.stdin = Some(pipe::Sender::from_owned_fd(write)?);
        }
        if options.stream && options.stdout {
            let (read, write) = pipe_pair()?;
            attachment.stdout = Some(write);
            attached.stdout = Some(pipe::Receiver::from_owned_fd(read)?);
        }
        // A terminal has one output.
        if options.stream && options.stderr && !tty {
            let (read, write) = pipe_pair()?;
            attachment.stderr = Some(write);
            attached.stderr = Some(pipe::Receiver::from_owned_fd(read)?);
        }
        Ok((attachment, attached))
    };
    open().attempt(|| "make pipes for a client".to_owned())
}

/// A pipe. The ends the shim or a process gets must block: processes expect it of their streams, and the
/// client's ends are set not to when tokio takes them.
pub(super) fn pipe_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// The bytes of `ctrl-a,ctrl-b,x`.
pub(super) fn parse_keys(text: &str) -> Result<Vec<u8>, Invalid> {
    let text = if text.is_empty() { DETACH_KEYS_DEFAULT } else { text };
    let key = |word: &str| -> Option<u8> {
        let mut bytes = word.bytes();
        match (bytes.next(), bytes.next()) {
            (Some(byte), None) => return Some(byte),
            (None, _) => return None,
            _ => {}
        }
        let letter = word.strip_prefix("ctrl-")?;
        match letter.as_bytes() {
            [byte @ b'a'..=b'z'] => Some(byte - b'a' + 1),
            [b'@'] => Some(0),
            [b'['] => Some(27),
            [b'\\'] => Some(28),
            [b']'] => Some(29),
            [b'^'] => Some(30),
            [b'_'] => Some(31),
            _ => None,
        }
    };
    let unknown = |word: &str| Invalid::DetachKeys { keys: word.to_owned() };
    text.split(',').map(|word| key(word).ok_or_else(|| unknown(word))).collect()
}

/// Finds the detach keys in what a client types, over any split into reads.
#[derive(Clone, Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were seen last, and so are held back.
    matched: usize,
}

impl DetachKeys {
    /// No keys never match.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// What of `input` is to be passed on, and whether the keys were seen.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        if self.keys.is_empty() {
            passed.extend_from_slice(input);
            return (passed, false);
        }
        for byte in input {
            if *byte != self.keys[self.matched] {
                passed.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if *byte != self.keys[self.matched] {
                passed.push(*byte);
                continue;
            }
            self.matched += 1;
            if self.matched == self.keys.len() {
                self.matched = 0;
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::{DetachKeys, parse_keys};

    #[test]
    fn detach_keys_are_read() {
        assert_eq!(parse_keys("").unwrap(), [16, 17]);
        assert_eq!(parse_keys("ctrl-a,x,ctrl-[").unwrap(), [1, b'x', 27]);
        for wrong in ["ctrl-", "ctrl-A", "ab", "a,,b"] {
            assert!(parse_keys(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn detach_keys_are_found_over_several_reads_and_false_starts_passed_on() {
        let mut keys = DetachKeys::new(vec![16, 17]);
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(DetachKeys::new(Vec::new()).filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}

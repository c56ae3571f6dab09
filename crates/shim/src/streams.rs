//! The container's streams: read its output, log it, hand it to attached clients, feed its input.
//!
//! Everything here is non-blocking and bounded. The log comes first; a client that does not read
//! is dropped, or makes the container wait when it asked for that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ioctl_fionbio, read, write};

use crate::log::{Log, Stream};
use crate::protocol::WhenFull;
use crate::time::now_ns;

/// Bytes read from the container at a time.
const READ_BYTES: usize = 16 * 1024;
/// Reads in a row from one stream, so that a busy one does not starve the rest.
const READS_IN_A_ROW_MAX: u32 = 16;
/// Bytes a client may be behind before it is dropped.
const BACKLOG_DROP_BYTES: usize = 1024 * 1024;
/// Bytes a client may be behind before the container waits for it.
const BACKLOG_WAIT_BYTES: usize = 64 * 1024;
/// Bytes of input the container may be behind before clients wait.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Clients attached at a time.
const ATTACHMENTS_MAX: usize = 64;

/// A client's output or error stream.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    backlog: Vec<u8>,
}

/// One attached client.
#[derive(Debug)]
struct Attachment {
    id: u64,
    stdin: Option<OwnedFd>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    when_full: WhenFull,
}

/// What an attaching client brings.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) when_full: WhenFull,
}

/// What a descriptor in the poll set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Output(Stream),
    Input,
    ClientInput(u64),
    ClientOutput(u64, Stream),
}

/// All streams of one container.
#[derive(Debug)]
pub(crate) struct Streams {
    log: Log,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// The far end of the terminal, kept open so that it is never hung up while programs come and
    /// go.
    far_terminal: Option<OwnedFd>,
    is_terminal: bool,
    /// Whether the container's ends are here. Before, what clients send waits in their pipes.
    is_open: bool,
    input: Vec<u8>,
    close_input: bool,
    stdin_once: bool,
    attachments: Vec<Attachment>,
    next_id: u64,
    dropped: Vec<u64>,
    buffer: Vec<u8>,
}

impl Streams {
    pub(crate) fn new(log: Log, stdin_once: bool) -> Self {
        Self {
            log,
            stdin: None,
            stdout: None,
            stderr: None,
            far_terminal: None,
            is_terminal: false,
            is_open: false,
            input: Vec::new(),
            close_input: false,
            stdin_once,
            attachments: Vec::new(),
            next_id: 1,
            dropped: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Takes the near ends of the container's pipes.
    pub(crate) fn take_pipes(
        &mut self,
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> rustix::io::Result<()> {
        for fd in [Some(&stdout), Some(&stderr), stdin.as_ref()].into_iter().flatten() {
            ioctl_fionbio(fd, true)?;
        }
        self.stdin = stdin;
        self.stdout = Some(stdout);
        self.stderr = Some(stderr);
        self.open();
        Ok(())
    }

    /// Takes the controlling end of the container's terminal.
    pub(crate) fn take_terminal(
        &mut self,
        master: OwnedFd,
        open_stdin: bool,
    ) -> rustix::io::Result<()> {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
        ioctl_fionbio(&master, true)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        self.far_terminal = ioctl_tiocgptpeer(&master, flags).ok();
        if open_stdin {
            self.stdin = Some(rustix::io::fcntl_dupfd_cloexec(&master, 3)?);
        }
        self.stdout = Some(master);
        self.is_terminal = true;
        self.open();
        Ok(())
    }

    fn open(&mut self) {
        self.is_open = true;
        // The input may have been ended already.
        self.pump_input();
    }

    /// The controlling end of the terminal, where there is one.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.stdout.as_ref().filter(|_| self.is_terminal)
    }

    /// Adds a client; none when there are too many.
    pub(crate) fn attach(&mut self, client: Client) -> Option<u64> {
        if self.attachments.len() >= ATTACHMENTS_MAX {
            return None;
        }
        let ends = [&client.stdin, &client.stdout, &client.stderr];
        for fd in ends.into_iter().flatten() {
            // What cannot be made non-blocking would stop the shim.
            ioctl_fionbio(fd, true).ok()?;
        }
        let id = self.next_id;
        self.next_id += 1;
        let sink = |fd: OwnedFd| Sink { fd, backlog: Vec::new() };
        self.attachments.push(Attachment {
            id,
            stdin: client.stdin,
            stdout: client.stdout.map(sink),
            stderr: client.stderr.map(sink),
            when_full: client.when_full,
        });
        Some(id)
    }

    /// Clients let go since the last call.
    pub(crate) fn take_dropped(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.dropped)
    }

    /// Ends the container's input once what is held has been written.
    pub(crate) fn close_stdin(&mut self) {
        self.close_input = true;
        self.pump_input();
    }

    /// Whether all output has been read.
    pub(crate) fn is_read(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Whether clients still have output to read.
    pub(crate) fn has_backlog(&self) -> bool {
        self.sinks().any(|sink| !sink.backlog.is_empty())
    }

    fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.attachments.iter().flat_map(|it| [&it.stdout, &it.stderr]).flatten()
    }

    /// Adds everything worth waiting for to the poll set.
    pub(crate) fn poll_set<'a>(&'a self, add: &mut impl FnMut(Token, PollFd<'a>)) {
        if !self.must_wait() {
            for (stream, fd) in [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)] {
                if let Some(fd) = fd {
                    add(Token::Output(stream), PollFd::new(fd, PollFlags::IN));
                }
            }
        }
        if let Some(fd) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            add(Token::Input, PollFd::new(fd, PollFlags::OUT));
        }
        let takes_input = self.is_open && self.input.len() < INPUT_BYTES_MAX;
        for it in &self.attachments {
            if let Some(fd) = it.stdin.as_ref().filter(|_| takes_input) {
                add(Token::ClientInput(it.id), PollFd::new(fd, PollFlags::IN));
            }
            for (stream, sink) in [(Stream::Stdout, &it.stdout), (Stream::Stderr, &it.stderr)] {
                if let Some(sink) = sink.as_ref().filter(|sink| !sink.backlog.is_empty()) {
                    let fd = PollFd::new(&sink.fd, PollFlags::OUT);
                    add(Token::ClientOutput(it.id, stream), fd);
                }
            }
        }
    }

    /// Whether a client that makes the container wait is too far behind.
    fn must_wait(&self) -> bool {
        self.attachments.iter().filter(|it| it.when_full == WhenFull::Wait).any(|it| {
            let sinks = [&it.stdout, &it.stderr].into_iter().flatten();
            sinks.into_iter().any(|sink| sink.backlog.len() >= BACKLOG_WAIT_BYTES)
        })
    }

    /// Does what a ready descriptor asks for.
    pub(crate) fn handle(&mut self, token: Token) {
        match token {
            Token::Output(stream) => self.read_output(stream),
            Token::Input => self.pump_input(),
            Token::ClientInput(id) => self.read_client(id),
            Token::ClientOutput(id, stream) => self.pump_client(id, stream),
        }
    }

    /// Reads what is there without waiting, after the container has ended.
    pub(crate) fn drain(&mut self) {
        // Now the terminal may be hung up: that is the end of its output.
        self.far_terminal = None;
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.read_output(stream);
        }
    }

    /// Gives up reading and writes unfinished lines to the log.
    pub(crate) fn finish(&mut self) {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.log.finish(now_ns());
        for it in &mut self.attachments {
            it.stdin = None;
        }
        self.close_idle();
    }

    /// Closes the streams of clients that have everything: that is their end of file.
    pub(crate) fn close_idle(&mut self) {
        for it in &mut self.attachments {
            for sink in [&mut it.stdout, &mut it.stderr] {
                if sink.as_ref().is_some_and(|sink| sink.backlog.is_empty()) {
                    *sink = None;
                }
            }
        }
        self.forget_empty();
    }

    fn read_output(&mut self, stream: Stream) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        for _ in 0..READS_IN_A_ROW_MAX {
            let fd = match stream {
                Stream::Stdout => &self.stdout,
                Stream::Stderr => &self.stderr,
            };
            let Some(fd) = fd.as_ref().map(AsFd::as_fd) else { break };
            match read(fd, &mut buffer[..]) {
                Ok(0) => {
                    self.end_output(stream);
                    break;
                }
                Ok(length) => {
                    self.log.write(stream, &buffer[..length], now_ns());
                    self.give(stream, &buffer[..length]);
                    if length < READ_BYTES || self.must_wait() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // EIO: the last program has left the terminal.
                Err(_) => {
                    self.end_output(stream);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn end_output(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
    }

    /// Hands a piece of output to every client.
    fn give(&mut self, stream: Stream, bytes: &[u8]) {
        for it in &mut self.attachments {
            let when_full = it.when_full;
            let sink = match stream {
                Stream::Stdout => &mut it.stdout,
                Stream::Stderr => &mut it.stderr,
            };
            let Some(open) = sink else { continue };
            let fits = open.give(bytes).is_ok();
            let slow = when_full == WhenFull::Drop && open.backlog.len() > BACKLOG_DROP_BYTES;
            if !fits {
                *sink = None;
            } else if slow {
                self.dropped.push(it.id);
            }
        }
        self.attachments.retain(|it| !self.dropped.contains(&it.id));
        self.forget_empty();
    }

    fn pump_client(&mut self, id: u64, stream: Stream) {
        let Some(it) = self.attachments.iter_mut().find(|it| it.id == id) else { return };
        let sink = match stream {
            Stream::Stdout => &mut it.stdout,
            Stream::Stderr => &mut it.stderr,
        };
        if sink.as_mut().is_some_and(|open| open.pump().is_err()) {
            *sink = None;
        }
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        self.attachments
            .retain(|it| it.stdin.is_some() || it.stdout.is_some() || it.stderr.is_some());
    }

    fn read_client(&mut self, id: u64) {
        let Some(it) = self.attachments.iter_mut().find(|it| it.id == id) else { return };
        let Some(fd) = it.stdin.as_ref().map(AsFd::as_fd) else { return };
        let mut bytes = [0; 4096];
        match read(fd, &mut bytes) {
            Ok(0) => self.end_client_input(id),
            Ok(length) => {
                // Without an open input there is nobody to read it.
                if self.stdin.is_some() && !self.close_input {
                    self.input.extend_from_slice(&bytes[..length]);
                    self.pump_input();
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.end_client_input(id),
        }
    }

    fn end_client_input(&mut self, id: u64) {
        if let Some(it) = self.attachments.iter_mut().find(|it| it.id == id) {
            it.stdin = None;
        }
        if self.stdin_once && !self.is_terminal {
            self.close_stdin();
        }
        self.forget_empty();
    }

    fn pump_input(&mut self) {
        let Some(fd) = self.stdin.as_ref().map(AsFd::as_fd) else {
            self.input.clear();
            return;
        };
        match pump(fd, &mut self.input) {
            Ok(()) if self.input.is_empty() && self.close_input => self.stdin = None,
            Ok(()) => {}
            Err(_) => {
                self.stdin = None;
                self.input.clear();
            }
        }
    }
}

impl Sink {
    fn give(&mut self, bytes: &[u8]) -> rustix::io::Result<()> {
        self.backlog.extend_from_slice(bytes);
        self.pump()
    }

    fn pump(&mut self) -> rustix::io::Result<()> {
        let result = pump(self.fd.as_fd(), &mut self.backlog);
        if self.backlog.is_empty() {
            // A burst should not cost memory for ever.
            self.backlog = Vec::new();
        }
        result
    }
}

/// Writes as much as the descriptor takes.
fn pump(fd: BorrowedFd<'_>, held: &mut Vec<u8>) -> rustix::io::Result<()> {
    let mut written = 0;
    let result = loop {
        if written == held.len() {
            break Ok(());
        }
        match write(fd, &held[written..]) {
            Ok(length) => written += length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break Ok(()),
            Err(errno) => break Err(errno),
        }
    };
    held.drain(..written);
    result
}

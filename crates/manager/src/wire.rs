//! The pipes to the other managers, as the consensus' own thread uses them.
//!
//! The runtime opens pipes, and takes those that others open; the thread that drives the consensus reads from them and
//! writes to them. Either side of a pipe may be the one that opened it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use consensus::{Arrival, Bell, Message, Outgoing};
use rpc::{Peer, Pipe};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::{mpsc, watch};
use tracing::debug;

/// Bytes of messages that wait for a pipe to be opened. More are lost, which raft mends.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// After a failure to reach a member.
const RECONNECT: Duration = Duration::from_millis(100);

/// Bytes read from a pipe by one call.
const READ_BYTES: usize = 64 << 10;

/// Whether the peer may speak as the member, in this state of the cluster.
pub(crate) type Judge = Box<dyn Fn(Peer, u64) -> Result<(), String> + Send + Sync>;

/// What the thread wants of the runtime.
#[derive(Debug)]
pub(crate) enum Wish {
    /// A pipe to this member.
    Pipe(u64),
    /// A whole state is to be sent.
    State(Box<Outgoing>),
}

/// What the runtime has for the thread.
enum News {
    Opened { to: u64, pipe: Option<Pipe> },
    Called(Pipe),
}

/// Where the thread and the runtime meet.
pub(crate) struct Exchange {
    /// Pipes are as many as connections of managers, which are limited.
    news: Mutex<Vec<News>>,
    bell: OwnedFd,
    judge: OnceLock<(Judge, watch::Receiver<u64>)>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Exchange {
    /// Has `judge` say who may speak as whom; what it said holds until `frame` changes. Call it before any pipe is handed
    /// over.
    pub(crate) fn judge_by(&self, judge: Judge, frame: watch::Receiver<u64>) {
        let _ = self.judge.set((judge, frame));
    }

    /// A pipe that was wished for, or `None` when the member could not be reached.
    pub(crate) fn opened(&self, to: u64, pipe: Option<Pipe>) {
        self.tell(News::Opened { to, pipe });
    }

    /// A pipe that another member opened.
    pub(crate) fn called(&self, pipe: Pipe) {
        self.tell(News::Called(pipe));
    }

    fn tell(&self, news: News) {
        self.news.lock().expect("a list is left whole").push(news);
        self.ring();
    }
}

impl Bell for Exchange {
    fn ring(&self) {
        // It fails only when it has been rung 2^64 times unheard.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// One pipe.
#[derive(Debug)]
struct Line {
    pipe: Pipe,
    /// Whether it was opened here.
    is_own: bool,
    /// Whom it leads to; a member that called says so by its first message.
    to: Option<u64>,
    /// The member its other end may speak as, and the state of the cluster in which that was found.
    allowed: Option<(u64, u64)>,
    is_readable: bool,
}

impl Line {
    /// What has come may have been read off the connection already, with its handshake.
    fn new(pipe: Pipe, is_own: bool, to: Option<u64>) -> Self {
        Self { pipe, is_own, to, allowed: None, is_readable: true }
    }

    /// Takes the messages that have come. An error is the end of the pipe.
    fn read(
        &mut self,
        buffer: &mut [u8],
        exchange: &Exchange,
        take: &mut dyn FnMut(Arrival),
    ) -> Result<(), String> {
        let filled = self.pipe.fill(buffer);
        while let Some(frame) = self.pipe.take_frame().map_err(|error| error.to_string())? {
            let message = match Message::decode(&frame) {
                Ok(message) => self.judge(exchange, message.from()).map(|()| message),
                Err(error) => Err(error.to_string()),
            };
            match message {
                Ok(message) => take(Arrival::Message(message)),
                Err(reason) => {
                    self.pipe.refuse(&reason);
                    return Err(reason);
                }
            }
        }
        filled.map_err(|error| error.to_string())
    }

    fn judge(&mut self, exchange: &Exchange, speaks_as: u64) -> Result<(), String> {
        let (judge, frame) = exchange.judge.get().ok_or("this manager is not ready yet")?;
        let now = *frame.borrow();
        if self.allowed != Some((speaks_as, now)) {
            judge(self.pipe.peer(), speaks_as)?;
            self.allowed = Some((speaks_as, now));
        }
        self.to.get_or_insert(speaks_as);
        Ok(())
    }
}

/// A member to whom there is no pipe.
#[derive(Debug)]
enum Way {
    /// What waits for it, and its bytes.
    Opening(Vec<Vec<u8>>, usize),
    /// Not before this.
    Failed(Instant),
}

#[derive(Debug)]
pub(crate) struct Wire {
    exchange: Arc<Exchange>,
    wishes: mpsc::Sender<Wish>,
    /// Newer ones last.
    lines: Vec<Line>,
    ways: BTreeMap<u64, Way>,
    arrived: Vec<Arrival>,
    has_polled: bool,
    buffer: Vec<u8>,
}

impl Wire {
    /// # Errors
    /// When the kernel has no file descriptor left.
    pub(crate) fn new(wishes: mpsc::Sender<Wish>) -> std::io::Result<(Self, Arc<Exchange>)> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let exchange = Arc::new(Exchange { news: Mutex::default(), bell, judge: OnceLock::new() });
        let wire = Self {
            exchange: exchange.clone(),
            wishes,
            lines: Vec::new(),
            ways: BTreeMap::new(),
            arrived: Vec::new(),
            has_polled: false,
            buffer: vec![0; READ_BYTES],
        };
        Ok((wire, exchange))
    }

    /// Looks which pipes have something to read or take something again; waits for it as `timeout` says.
    fn look(&mut self, timeout: Option<Duration>) {
        let timeout = timeout.map(|timeout| {
            let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: seconds, tv_nsec: timeout.subsec_nanos().into() }
        });
        let mut set = Vec::with_capacity(self.lines.len() + 1);
        set.push(PollFd::new(&self.exchange.bell, PollFlags::IN));
        set.extend(self.lines.iter().map(|line| {
            let flags = match line.pipe.has_unsent() {
                true => PollFlags::IN | PollFlags::OUT,
                false => PollFlags::IN,
            };
            PollFd::from_borrowed_fd(line.pipe.as_fd(), flags)
        }));
        let is_told = poll(&mut set, timeout.as_ref()).is_ok();
        let seen: Vec<_> = set.iter().map(PollFd::revents).collect();
        self.has_polled = true;
        if !is_told {
            return;
        }
        if !seen[0].is_empty() {
            let _ = rustix::io::read(&self.exchange.bell, &mut [0; 8]);
        }
        for (line, seen) in self.lines.iter_mut().zip(&seen[1..]) {
            line.is_readable = seen.intersects(!PollFlags::OUT);
        }
        self.flush();
    }

    /// Gives the pipes what they take, and lets go of those that are broken.
    fn flush(&mut self) {
        let arrived = &mut self.arrived;
        self.lines.retain_mut(|line| {
            let Err(error) = line.pipe.flush() else { return true };
            debug!(raft_id = line.to, %error, "pipe broke");
            arrived.extend(line.to.map(Arrival::Unreachable));
            false
        });
    }

    fn take_news(&mut self) {
        let news = std::mem::take(&mut *self.exchange.news.lock().expect("a list is left whole"));
        for news in news {
            match news {
                News::Opened { to, pipe: Some(pipe) } => {
                    self.lines.push(Line::new(pipe, true, Some(to)));
                    if let Some(Way::Opening(waiting, _)) = self.ways.remove(&to) {
                        waiting.into_iter().for_each(|message| self.post(to, message));
                    }
                }
                News::Opened { to, pipe: None } => {
                    self.ways.insert(to, Way::Failed(Instant::now() + RECONNECT));
                    self.arrived.push(Arrival::Unreachable(to));
                }
                News::Called(pipe) => {
                    // Whoever calls again has given up its earlier pipe.
                    let caller = pipe.peer().node;
                    self.lines.retain(|line| line.is_own || line.pipe.peer().node != caller);
                    self.lines.push(Line::new(pipe, false, None));
                }
            }
        }
    }

    /// Queues a message for the newest pipe to a member, or has one opened.
    fn post(&mut self, to: u64, message: Vec<u8>) {
        let line = self.lines.iter_mut().rev().find(|line| line.to == Some(to));
        if let Some(line) = line {
            if !line.pipe.send(&message) {
                self.arrived.push(Arrival::Unreachable(to));
            }
            return;
        }
        match self.ways.get_mut(&to) {
            Some(Way::Opening(waiting, bytes)) => {
                if *bytes + message.len() <= WAITING_BYTES_MAX {
                    *bytes += message.len();
                    waiting.push(message);
                }
            }
            Some(Way::Failed(until)) if Instant::now() < *until => {}
            _ => {
                if self.wishes.try_send(Wish::Pipe(to)).is_ok() {
                    let bytes = message.len();
                    self.ways.insert(to, Way::Opening(vec![message], bytes));
                }
            }
        }
    }
}

impl consensus::Wire for Wire {
    fn bell(&self) -> Arc<dyn Bell> {
        self.exchange.clone()
    }

    fn wait(&mut self, patience: Option<Duration>) {
        match self.arrived.is_empty() {
            true => self.look(patience),
            false => self.look(Some(Duration::ZERO)),
        }
    }

    fn receive(&mut self, take: &mut dyn FnMut(Arrival)) {
        if !std::mem::take(&mut self.has_polled) {
            self.look(Some(Duration::ZERO));
            self.has_polled = false;
        }
        self.take_news();
        let Self { lines, buffer, exchange, arrived, .. } = self;
        lines.retain_mut(|line| {
            if !std::mem::take(&mut line.is_readable) {
                return true;
            }
            let Err(reason) = line.read(buffer, exchange, take) else { return true };
            let node = line.pipe.peer().node;
            debug!(raft_id = line.to, node.id = %node, reason, "pipe ended");
            arrived.extend(line.to.map(Arrival::Unreachable));
            false
        });
        self.flush();
        self.arrived.drain(..).for_each(take);
    }

    fn send(&mut self, messages: Vec<Outgoing>) {
        for outgoing in messages {
            if outgoing.state.is_some() {
                let to = outgoing.message.to();
                if self.wishes.try_send(Wish::State(Box::new(outgoing))).is_err() {
                    self.arrived.push(Arrival::Unreachable(to));
                }
                continue;
            }
            self.post(outgoing.message.to(), outgoing.message.encode());
        }
        self.flush();
    }
}

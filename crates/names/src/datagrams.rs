//! The thread that answers the datagrams of all containers.
//!
//! It does nothing else, so that a name is told at once whatever the daemon is busy with: a container mostly waits for it.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::answers::Answers;
use crate::message::Transport;
use crate::server::{DATAGRAM_BYTES, Shared};
use crate::zone::Reply;

/// Datagrams of one container that are answered before others have their turn.
const DATAGRAMS_PER_TURN: usize = 64;

/// Sockets that the kernel names at a time.
const EVENTS_MAX: usize = 64;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Who asks again so soon is in the middle of a series of questions: the thread stays awake for the next one, and for no
/// longer than that. To be woken takes about as long as all the rest of an answer.
const SERIES: Duration = Duration::from_micros(60);

/// The number of no socket: it is time to end.
const END: u64 = u64::MAX;

/// Answers on the sockets it is given, until it is dropped.
#[derive(Debug)]
pub struct Answerer {
    common: Arc<Common>,
    end: OwnedFd,
}

/// A socket's place; the socket is let go of with it.
#[derive(Debug)]
pub(crate) struct Place {
    common: Arc<Common>,
    number: u64,
}

#[derive(Debug)]
struct Common {
    epoll: OwnedFd,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    answered: BTreeMap<u64, Arc<Answered>>,
    last: u64,
}

#[derive(Debug)]
struct Answered {
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
}

impl Answerer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel gives no descriptors or no thread.
    pub fn start() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let common = Arc::new(Common { epoll, sockets: Mutex::default() });
        let work = common.clone();
        std::thread::Builder::new().name("names".into()).spawn(move || work.run())?;
        Ok(Self { common, end })
    }

    /// Answers on this socket, which must not block.
    pub(crate) fn answer(&self, socket: UdpSocket, shared: Arc<Shared>) -> io::Result<Place> {
        let mut sockets = self.common.lock();
        sockets.last += 1;
        let number = sockets.last;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.common.epoll, &socket, data, epoll::EventFlags::IN)?;
        sockets.answered.insert(number, Arc::new(Answered { socket: Arc::new(socket), shared }));
        Ok(Place { common: self.common.clone(), number })
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(answered) = self.common.lock().answered.remove(&self.number) {
            let _ = epoll::delete(&self.common.epoll, &*answered.socket);
        }
    }
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut answered_at = Instant::now();
        let mut stays_awake = false;
        loop {
            events.clear();
            let timeout = stays_awake.then_some(&AT_ONCE);
            let space = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.epoll, space, timeout)
                .is_err_and(|errno| errno != rustix::io::Errno::INTR)
            {
                return;
            }
            stays_awake = answered_at.elapsed() < SERIES;
            if events.is_empty() {
                std::thread::yield_now();
                continue;
            }
            for event in &events {
                let data = event.data;
                if data.u64() == END {
                    return;
                }
                let answered = self.lock().answered.get(&data.u64()).cloned();
                if let Some(answered) = answered {
                    answered.turn(&mut buffer);
                }
            }
            answered_at = Instant::now();
        }
    }
}

impl Answered {
    fn turn(&self, buffer: &mut [u8]) {
        let mut answers = Answers::default();
        for _ in 0..DATAGRAMS_PER_TURN {
            let Ok((length, client)) = self.socket.recv_from(buffer) else { break };
            let question = &buffer[..length];
            match self.shared.reply(question, Transport::Udp) {
                Reply::Answer(answer) => answers.add(client, &answer),
                Reply::Ignore => {}
                Reply::Forward => self.shared.ask_for(client, &self.socket, question.to_vec()),
            }
        }
        answers.send(&self.socket);
    }
}

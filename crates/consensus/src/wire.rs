//! How a member's thread hears others and speaks to them.
//!
//! The thread that decides also moves the messages: on its way between two members one passes no other thread, and
//! each of them is woken once.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use crate::message::{Message, Outgoing};

/// What came by a [`Wire`].
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    Message(Message),
    /// A message to this member could not be delivered.
    Unreachable(u64),
}

/// The ways to the other members. One thread alone uses it, and nothing but [`Wire::wait`] may block.
pub trait Wire: Debug + Send {
    /// What ends a [`Wire::wait`] from other threads.
    fn bell(&self) -> Arc<dyn Bell>;

    /// Waits until something has arrived, the bell rings, or `patience` ends; without `patience`, for as long as it takes.
    fn wait(&mut self, patience: Option<Duration>);

    /// Gives what has arrived to `take`.
    fn receive(&mut self, take: &mut dyn FnMut(Arrival));

    /// Sends messages on their way before it returns. What cannot be sent is lost, as on a network: raft sends it again.
    fn send(&mut self, messages: Vec<Outgoing>);
}

/// Wakes the thread that waits on a [`Wire`].
pub trait Bell: Debug + Send + Sync {
    fn ring(&self);
}

/// A bell that is rung only when somebody sleeps.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    bell: Arc<dyn Bell>,
    is_asleep: Arc<AtomicBool>,
}

impl Alarm {
    pub(crate) fn new(bell: Arc<dyn Bell>) -> Self {
        Self { bell, is_asleep: Arc::default() }
    }

    /// Call it after a command was queued.
    pub(crate) fn wake(&self) {
        // Whoever queues looks at the flag after queueing, who sleeps looks at the queue after setting the flag.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// Waits on `wire` unless a command is queued; answers with the queue's next command, if there is one.
    pub(crate) fn sleep<T>(
        &self,
        wire: &mut dyn Wire,
        queue: &Receiver<T>,
        patience: Option<Duration>,
    ) -> Result<T, TryRecvError> {
        match queue.try_recv() {
            Err(TryRecvError::Empty) => {}
            found => return found,
        }
        self.is_asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let found = queue.try_recv();
        if matches!(found, Err(TryRecvError::Empty)) {
            wire.wait(patience);
        }
        self.is_asleep.store(false, Ordering::SeqCst);
        match found {
            Err(TryRecvError::Empty) => queue.try_recv(),
            found => found,
        }
    }
}

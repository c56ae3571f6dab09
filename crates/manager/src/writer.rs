//! The one way to change the cluster: draft, plan, propose, wait.
//!
//! Drafts are made on the head, which is the agreed state with everything already proposed on top. So writes need not
//! wait for each other's flush, and none can conflict with another of the same leader. When a proposal fails, the head
//! falls back to the agreed state, and what was built on the failed one is rejected by its versions.

use std::sync::{Arc, Mutex, MutexGuard};

use consensus::{Consensus, Leadership};
use planner::Planner;
use store::{ChangeSet, Draft, Snapshot, apply_to};
use tokio::sync::{Semaphore, watch};
use types::Timestamp;
use types::limits::PROPOSALS_MAX;

use crate::clock::now;
use crate::error::Error;

#[derive(Debug)]
struct Head {
    /// The term of leadership it was made in. In another one it may lack what others have written.
    term: u64,
    snapshot: Snapshot,
    planner: Planner,
}

#[derive(Debug)]
pub(crate) struct Writer {
    consensus: Arc<Consensus>,
    leadership: watch::Receiver<Leadership>,
    head: Mutex<Option<Head>>,
    /// Keeps callers waiting here instead of filling the log's queue.
    permits: Semaphore,
    wake_at: watch::Sender<Option<Timestamp>>,
}

impl Writer {
    pub(crate) fn new(consensus: Arc<Consensus>) -> Self {
        Self {
            leadership: consensus.leadership(),
            consensus,
            head: Mutex::new(None),
            permits: Semaphore::new(PROPOSALS_MAX / 2),
            wake_at: watch::Sender::new(Some(Timestamp::ZERO)),
        }
    }

    pub(crate) fn consensus(&self) -> &Arc<Consensus> {
        &self.consensus
    }

    /// When the planner wants to look again, beginning with now.
    pub(crate) fn wake_now(&self) -> watch::Receiver<Option<Timestamp>> {
        self.wake_at.send_replace(Some(Timestamp::ZERO));
        self.wake_at.subscribe()
    }

    /// Lets `change` write into a draft, plans what follows, and waits until a majority has it on disk.
    ///
    /// # Errors
    /// What `change` refuses, or why the change was not agreed to; nothing is changed then. Only the leader writes:
    /// elsewhere the error is [`Error::is_not_leader`].
    pub(crate) async fn write<T>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _permit = self.permits.acquire().await.map_err(|_| Error::stopped())?;
        let (value, proposal) = self.offer(change)?;
        let Some(proposal) = proposal else { return Ok(value) };
        match proposal.await {
            Ok(()) => Ok(value),
            Err(error) => {
                self.fall_back();
                Err(error.into())
            }
        }
    }

    /// Everything up to the proposal happens under the lock, so that the log has the order of the drafts.
    fn offer<T>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T, Error>,
    ) -> Result<(T, Option<consensus::Proposal>), Error> {
        let mut head = self.lock();
        let head = self.current(&mut head)?;
        let mut draft = Draft::new(std::mem::take(&mut head.snapshot), now());
        let value = match change(&mut draft) {
            Ok(value) => value,
            Err(error) => {
                head.snapshot = draft.undo();
                return Err(error);
            }
        };
        let wake_at = head.planner.plan(&mut draft, &mut rand::random::<u128>);
        let (mut set, snapshot) = draft.commit();
        head.snapshot = snapshot;
        self.wake_at.send_if_modified(|known| std::mem::replace(known, wake_at) != wake_at);
        if set.is_empty() {
            if head.snapshot.sequence() == self.consensus.sequence() {
                return Ok((value, None));
            }
            // What it asks for was proposed by others, and may yet be refused.
            set = ChangeSet::nothing_after(&head.snapshot, now());
            apply_to(&mut head.snapshot, set.clone()).expect("it follows the head");
        }
        Ok((value, Some(self.consensus.propose(set))))
    }

    /// The head of the present term; a new one begins at the agreed state.
    fn current<'a>(&self, head: &'a mut Option<Head>) -> Result<&'a mut Head, Error> {
        let Leadership { is_leader, term, .. } = *self.leadership.borrow();
        if !is_leader {
            *head = None;
            return Err(Error::not_leader());
        }
        if head.as_ref().is_none_or(|head| head.term != term) {
            let snapshot = (*self.consensus.snapshot()).clone();
            let planner = Planner::new(&snapshot);
            *head = Some(Head { term, snapshot, planner });
        }
        Ok(head.as_mut().expect("made just now where it was missing"))
    }

    fn fall_back(&self) {
        *self.lock() = None;
        self.wake_at.send_replace(Some(Timestamp::ZERO));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Head>> {
        self.head.lock().expect("planning does not panic")
    }
}

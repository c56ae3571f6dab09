//! What a manager has while it leads: the head of the state, the plan, the sessions of the nodes.

use std::collections::BTreeMap;

use consensus::{Member, Offer, Ticket};
use dispatcher::Dispatcher;
use planner::Planner;
use store::{ChangeSet, Draft, Snapshot, apply_to};
use types::{NodeId, Timestamp};

use crate::network::LinkId;
use crate::random::Random;

/// Docker's default, which says how long a silence is accepted.
pub(crate) const PERIOD: std::time::Duration = std::time::Duration::from_secs(5);

/// A node's session, as the leader sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) link: LinkId,
    pub(crate) session: u64,
}

#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    head: Option<(Snapshot, Planner)>,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) streams: BTreeMap<NodeId, Stream>,
    pub(crate) wake_at: Option<Timestamp>,
}

impl Leading {
    pub(crate) fn new(term: u64, state: &Snapshot, now: Timestamp) -> Self {
        Self {
            term,
            head: None,
            dispatcher: Dispatcher::new(state, term << 32, PERIOD, now),
            streams: BTreeMap::new(),
            wake_at: Some(Timestamp::ZERO),
        }
    }

    /// Lets `change` write, plans what follows, and offers both; the way of the manager's writer. `None` where nothing
    /// changed.
    pub(crate) fn write(
        &mut self,
        member: &mut Member,
        ticket: Ticket,
        now: Timestamp,
        random: &mut Random,
        change: impl FnOnce(&mut Draft),
    ) -> Result<Option<ChangeSet>, consensus::Error> {
        let (snapshot, planner) = self.head.get_or_insert_with(|| {
            let state = member.state();
            let planner = Planner::new(&state);
            (state, planner)
        });
        let mut draft = Draft::new(std::mem::take(snapshot), now);
        change(&mut draft);
        self.wake_at = planner.plan(&mut draft, &mut || random.id());
        let (mut set, next) = draft.commit();
        *snapshot = next;
        if set.is_empty() {
            if snapshot.sequence() == member.state().sequence() {
                return Ok(None);
            }
            set = ChangeSet::nothing_after(snapshot, now);
            apply_to(snapshot, set.clone()).expect("it follows the head");
        }
        let proposed = Offer::new(set.clone()).and_then(|offer| member.propose(ticket, offer));
        if let Err(error) = proposed {
            self.fall_back();
            return Err(error);
        }
        Ok(Some(set))
    }

    /// A proposal failed: what was built on it is forgotten.
    pub(crate) fn fall_back(&mut self) {
        self.head = None;
        self.wake_at = Some(Timestamp::ZERO);
    }
}

//! What travels between hosts: late, twice, out of order, or never.

use std::collections::{BTreeMap, BTreeSet};

use consensus::Outgoing;
use types::assignment::{SessionMessage, StatusReport};

use crate::clock::Millis;
use crate::random::Random;

/// A host's number.
pub(crate) type HostId = usize;

/// A session as both ends name it: the node's host, the attempt.
pub(crate) type LinkId = (HostId, u64);

/// Between a node and the manager it has its session with.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    Open,
    Opened { session: u64 },
    NotLeader,
    Message(Box<SessionMessage>),
    Heartbeat { session: u64 },
    Heard,
    Report { session: u64, reports: Vec<StatusReport> },
    Reported(Vec<StatusReport>),
}

/// Something on its way.
#[derive(Clone, Debug)]
pub(crate) enum Parcel {
    /// Raft takes loss, doubles and disorder.
    Raft(Box<Outgoing>),
    /// A connection keeps its order, and breaks when something is lost.
    Link { link: LinkId, wire: Wire },
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Hosts that reach only each other. Host numbers not named here are in no group.
    groups: Option<Vec<BTreeSet<HostId>>>,
    /// Per cent of raft's messages that are lost, and that arrive twice.
    pub(crate) loss: u64,
    /// Milliseconds a message takes at most.
    pub(crate) delay: u64,
    broken: BTreeSet<LinkId>,
    last_arrival: BTreeMap<(LinkId, HostId), Millis>,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self { delay: 5, ..Self::default() }
    }

    pub(crate) fn partition(&mut self, groups: Vec<BTreeSet<HostId>>) {
        self.groups = Some(groups);
    }

    pub(crate) fn heal(&mut self) {
        self.groups = None;
        (self.loss, self.delay) = (0, 5);
    }

    pub(crate) fn connects(&self, one: HostId, other: HostId) -> bool {
        let Some(groups) = &self.groups else { return true };
        one == other || groups.iter().any(|group| group.contains(&one) && group.contains(&other))
    }

    pub(crate) fn is_broken(&self, link: LinkId) -> bool {
        self.broken.contains(&link)
    }

    pub(crate) fn break_link(&mut self, link: LinkId) {
        self.broken.insert(link);
    }

    /// When the parcel arrives, as often as it does.
    pub(crate) fn arrivals(
        &mut self,
        now: Millis,
        (from, to): (HostId, HostId),
        parcel: &Parcel,
        random: &mut Random,
    ) -> Vec<Millis> {
        let is_cut = !self.connects(from, to);
        match parcel {
            Parcel::Raft(_) if is_cut || random.chance(self.loss) => Vec::new(),
            Parcel::Raft(_) => {
                let copies = if random.chance(self.loss) { 2 } else { 1 };
                (0..copies).map(|_| now + random.between(1, self.delay)).collect()
            }
            Parcel::Link { link, .. } => {
                if is_cut || self.is_broken(*link) || random.chance(self.loss / 8) {
                    self.broken.insert(*link);
                    return Vec::new();
                }
                let last = self.last_arrival.entry((*link, to)).or_default();
                *last = (now + random.between(1, self.delay)).max(*last);
                vec![*last]
            }
        }
    }
}

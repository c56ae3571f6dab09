//! A host: its disk, its containers, and the daemon that may be running.

use std::collections::BTreeMap;

use agent::Agent;
use consensus::{DataKey, DataKeys, Member};
use types::{NodeId, TaskId};

use crate::clock::{Clock, Millis};
use crate::disk::SimDisk;
use crate::leading::Leading;
use crate::network::{HostId, LinkId};
use crate::plan::Moment;
use crate::told::Told;

/// A task's container, which outlives the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    Created,
    Running,
    Exited { code: i32 },
}

/// A node's session, as the node sees it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) manager: HostId,
    pub(crate) session: Option<u64>,
    pub(crate) last_heard: Millis,
}

/// What a run of the daemon has in memory.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) member: Option<Member>,
    /// Older keys are forgotten when the member needs them no more.
    pub(crate) is_rekeying: bool,
    pub(crate) leading: Option<Leading>,
    pub(crate) agent: Agent,
    pub(crate) link: Option<Link>,
    pub(crate) told: Told,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) clock: Clock,
    pub(crate) disk: SimDisk,
    /// What log and snapshots are sealed with, as the node remembers it.
    pub(crate) keys: DataKeys,
    /// The seat in the consensus that the node remembers.
    pub(crate) seat: Option<u64>,
    pub(crate) containers: BTreeMap<TaskId, Container>,
    pub(crate) daemon: Option<Daemon>,
    /// Counts starts of the daemon: what was begun in an earlier one ends with it.
    pub(crate) run: u64,
    pub(crate) frozen_until: Millis,
    pub(crate) is_disk_slow: bool,
    /// The power fails at this moment, and comes back after the milliseconds.
    pub(crate) armed: Option<(Moment, Millis)>,
    /// It has left the swarm.
    pub(crate) is_away: bool,
    pub(crate) links: u64,
    /// When a seat was last asked for.
    pub(crate) seat_asked: Option<Millis>,
}

impl Host {
    pub(crate) fn new(node: NodeId, clock: Clock) -> Self {
        Self {
            node,
            clock,
            disk: SimDisk::default(),
            keys: DataKey::new([7; 32]).into(),
            seat: None,
            containers: BTreeMap::new(),
            daemon: None,
            run: 0,
            frozen_until: 0,
            is_disk_slow: false,
            armed: None,
            is_away: false,
            links: 0,
            seat_asked: None,
        }
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.leading.is_some())
    }
}

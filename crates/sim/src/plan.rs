//! What happens in a run: the operator's doings and the faults, each at its time.

use crate::clock::Millis;
use crate::random::Random;

/// Hosts of every run; the first three begin as managers.
pub const HOSTS: usize = 5;
pub const FIRST_MANAGERS: usize = 3;

/// Milliseconds in which things are done and fail.
pub const BUSY: Millis = 60_000;

/// Milliseconds after the last fault in which the desired state has to be reached.
pub const QUIET: Millis = 90_000;

const SERVICES: u64 = 4;

/// Networks of the swarm beside the ingress network.
pub const NETWORKS: u64 = 2;

/// One thing at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub at: Millis,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Creates the service, or updates it.
    Service {
        number: u64,
        replicas: u64,
        shape: Shape,
    },
    RemoveService {
        number: u64,
    },
    Global {
        number: u64,
    },
    Availability {
        host: usize,
        word: u8,
    },
    Promote {
        host: usize,
    },
    Demote {
        host: usize,
    },
    /// A worker leaves the swarm and joins it again as a new node after the milliseconds.
    Leave {
        host: usize,
        back_after: Millis,
    },
    /// Nodes that are down and were left by their hosts are removed.
    RemoveNodes,
    /// The daemon is killed and started again after the milliseconds; containers run on.
    Kill {
        host: usize,
        back_after: Millis,
    },
    /// The power fails; containers end.
    PowerLoss {
        host: usize,
        back_after: Millis,
    },
    /// The power fails at the next moment of this kind.
    PowerLossAt {
        host: usize,
        moment: Moment,
        back_after: Millis,
    },
    /// The leader is cut off, and whoever votes for another loses power at once and is back in a moment.
    VoteStorm {
        back_after: Millis,
        duration: Millis,
    },
    /// The daemon does nothing for the milliseconds.
    Freeze {
        host: usize,
        duration: Millis,
    },
    Partition {
        mask: u64,
        duration: Millis,
    },
    Unreliable {
        loss: u64,
        delay: u64,
        duration: Millis,
    },
    FullDisk {
        host: usize,
        duration: Millis,
    },
    SlowDisk {
        host: usize,
        duration: Millis,
    },
    /// A container ends by itself.
    Crash {
        host: usize,
    },
    /// Leadership is handed over.
    HandOver,
    /// The host's log and snapshots are sealed with another key from now on.
    Rekey {
        host: usize,
    },
}

/// What a service's tasks are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub image: u64,
    pub is_start_first: bool,
    /// A bit for each network of the swarm.
    pub networks: u64,
    /// Whether a port is published, which the swarm chooses.
    pub is_published: bool,
}

/// The worst times to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// In a flush: what was sent before it is out, what it was to keep may not be kept.
    Flush,
    /// Right after a vote was given to another.
    Vote,
}

/// A run's plan, in order of time.
pub(crate) fn generate(random: &mut Random) -> Vec<Action> {
    let count = random.between(8, 40);
    let mut actions: Vec<_> =
        (0..count).map(|_| Action { at: random.below(BUSY), what: one(random) }).collect();
    actions.sort_by_key(|action| action.at);
    actions
}

fn one(random: &mut Random) -> What {
    let host = random.index(HOSTS);
    let number = random.below(SERVICES);
    let duration = random.between(200, 12_000);
    match random.below(100) {
        0..22 => What::Service {
            number,
            replicas: random.below(7),
            shape: Shape {
                image: random.below(3),
                is_start_first: random.chance(30),
                networks: random.below(1 << NETWORKS),
                is_published: random.chance(30),
            },
        },
        22..26 => What::RemoveService { number },
        26..28 => What::VoteStorm { back_after: random.between(10, 60), duration },
        28..29 => What::Global { number: SERVICES + random.below(2) },
        29..35 => What::Availability { host, word: u8::try_from(random.below(3)).expect("small") },
        35..39 => What::Promote { host },
        39..43 => What::Demote { host },
        43..56 => What::Kill { host, back_after: duration },
        56..60 => What::PowerLoss { host, back_after: duration },
        60..64 => What::PowerLossAt {
            host,
            moment: if random.chance(50) { Moment::Flush } else { Moment::Vote },
            back_after: random.between(10, 1_500),
        },
        64..69 => What::Freeze { host, duration },
        69..80 => What::Partition { mask: random.below(1 << HOSTS), duration },
        80..86 => What::Unreliable {
            loss: random.between(1, 25),
            delay: random.between(5, 400),
            duration,
        },
        86..89 => What::FullDisk { host, duration },
        89..92 => What::SlowDisk { host, duration },
        92..95 => What::Crash { host },
        95..97 => What::Leave { host, back_after: duration },
        97..98 => What::RemoveNodes,
        98..99 => What::HandOver,
        _ => What::Rekey { host },
    }
}

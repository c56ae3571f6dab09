//! Every limit that more than one crate must know, with its unit and its reason.

use std::time::Duration;

/// Tasks one service may ask for. Far above any use; keeps one request from filling the store.
pub const REPLICAS_MAX: u64 = 100_000;

/// Bytes of one service spec in the log. Docker refuses request bodies of this size too.
pub const SPEC_BYTES_MAX: usize = 4 << 20;

/// Bytes of one log entry: a spec and the tasks of one planning pass.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

/// Changes of one planning pass. A longer plan goes on in the next pass, so that no entry grows without bound.
pub const PLAN_CHANGES_MAX: usize = 8_192;

/// Bytes of a name: Docker's limit for services, which DNS sets.
pub const NAME_BYTES_MAX: usize = 63;

/// First and last port that a service gets when it names none (swarmkit's range).
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// After so long a task on a node that is down counts as lost for good; Docker's time.
pub const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a replacement waits for its predecessor to end before it starts anyway.
pub const PREDECESSOR_WAIT: Duration = Duration::from_secs(60);

/// Grace between the stop signal and SIGKILL where the spec names none: Docker's default.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Least period between two heartbeats an operator may set.
pub const HEARTBEAT_PERIOD_MIN: Duration = Duration::from_millis(100);

/// Least life of a node's certificate (swarmkit: one hour).
pub const CERTIFICATE_EXPIRY_MIN: Duration = Duration::from_secs(60 * 60);

/// Removed nodes whose certificates are refused before they end. The whole list is written with each change of the
/// cluster; beyond this the earliest ones are forgotten.
pub const REMOVED_NODES_MAX: usize = 1_024;

/// Restarts remembered for a slot. More attempts than this within a window are treated as this many.
pub const RESTARTS_REMEMBERED_MAX: usize = 64;

/// Status reports waiting in an agent: one for each task, newest wins, so this bounds tasks on a node.
pub const TASKS_PER_NODE_MAX: usize = 10_000;

/// Events kept for a subscriber that lags; beyond this it starts again from a snapshot.
pub const FEED_EVENTS_MAX: usize = 4_096;

/// Writes waiting for the log. Callers beyond this wait their turn.
pub const PROPOSALS_MAX: usize = 4_096;

/// Least memory a limit may name, in bytes (Docker: 4 MiB).
pub const MEMORY_LIMIT_BYTES_MIN: i64 = 4 << 20;

/// Least CPU a limit may name, in billionths of a core (Docker: 0.001 cores).
pub const NANO_CPUS_MIN: i64 = 1_000_000;

/// Plain containers of one node in networks of the cluster: each is an object that every manager holds.
pub const ATTACHMENTS_PER_NODE_MAX: usize = 1_000;

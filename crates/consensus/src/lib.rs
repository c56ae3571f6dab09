//! Agreement on the cluster's state: raft-rs, driven by one thread over an encrypted, checksummed log.
//!
//! ```text
//! propose ──► raft ──► Wal::append (one fdatasync for many entries) ──► store::apply ──► subscribers
//! ```
//! Nothing is acknowledged before it is on disk. What was applied can be read at any time as a [`store::Snapshot`].

mod cipher;
mod driver;
mod handle;
mod log;
mod snapshot_file;
mod wal;

use std::io;
use std::path::PathBuf;

pub use cipher::DataKey;
pub use handle::{Applied, Config, Consensus, Leadership, Proposal};
pub use wal::Corruption;

/// Why the log could not be opened or a proposal was not agreed to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("log segment {path} is damaged at byte {offset}: {damage}")]
    Damaged { path: PathBuf, offset: u64, damage: Corruption },
    #[error("snapshot {path} is damaged: {damage}")]
    DamagedSnapshot { path: PathBuf, damage: Corruption },
    #[error("no consensus state in {path}")]
    NotBootstrapped { path: PathBuf },
    #[error("raft")]
    Raft(#[from] raft::Error),
    #[error("entry of {bytes} bytes exceeds the limit of {limit} bytes")]
    EntryTooLarge { bytes: usize, limit: usize },
    #[error(transparent)]
    Rejected(#[from] store::Rejected),
    /// The words are Docker's.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."
    )]
    NoLeader,
    #[error("the log is full: {0} proposals wait")]
    Busy(usize),
    #[error("consensus has stopped")]
    Stopped,
}

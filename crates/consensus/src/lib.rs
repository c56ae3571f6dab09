//! Agreement on the cluster's state: raft-rs, driven by one thread over an encrypted, checksummed log.
//!
//! ```text
//! propose ──► raft ──► Wal::append (one fdatasync for many entries) ──► store::apply ──► subscribers
//! ```
//! Nothing is acknowledged before it is on disk. What was applied can be read at any time as a [`store::Snapshot`].

mod backup;
mod cipher;
mod disk;
mod driver;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handle;
mod live;
mod log;
mod member;
mod message;
mod offer;
mod random;
mod reads;
mod sealed;
mod snapshot_file;
mod wal;
mod wire;

use std::io;
use std::path::PathBuf;

pub use backup::{read_backup, write_backup};
pub use cipher::{DataKey, DataKeys};
pub use disk::{Disk, DiskFile, Folder};
pub use handle::{Applied, Config, Consensus, Leadership, Proposal};
pub use member::{
    ELECTION_TICKS, Member, MemberConfig, MembershipChange, Output, Send, SnapshotJob, Ticket,
};
pub use message::{Message, NotAMessage, Outgoing, StateTransfer};
pub use offer::Offer;
pub use wal::Corruption;
pub use wire::{Arrival, Bell, Wire};

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
    #[error("this is not a backup of a swarm")]
    NotABackup,
    #[error("the backup is damaged or was made with another key: {damage}")]
    DamagedBackup { damage: Corruption },
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
    /// Requests go to the member with this raft identifier.
    #[error("member {leader:x} leads")]
    NotLeader { leader: u64 },
    /// The words are Docker's. What was asked for may still come about.
    #[error("raft: failed to process the request: node lost leader status")]
    LostLeadership,
    #[error("another change of the managers is under way: try again in a moment")]
    MembershipBusy,
    /// The words are Docker's.
    #[error("can't remove member from the raft: this would result in a loss of quorum")]
    QuorumLoss,
    #[error("no member {0:x} in the cluster")]
    UnknownMember(u64),
    #[error(
        "the disk of this manager is full and nothing can be written: free some space and try again"
    )]
    DiskFull,
    #[error("the log is full: {0} proposals wait")]
    Busy(usize),
    #[error("consensus has stopped")]
    Stopped,
}

impl Error {
    /// Whether the log can go on once there is room on the disk.
    pub fn is_disk_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        match self {
            Self::DiskFull => true,
            Self::File { source, .. } => full.contains(&source.kind()),
            _ => false,
        }
    }
}

//! What is offered for agreement, and what waits for it.

use raft::eraftpb::Entry;
use store::ChangeSet;
use types::limits::ENTRY_BYTES_MAX;

use crate::Error;
use crate::member::Ticket;

/// A change set in the form in which it is agreed to.
#[derive(Clone, Debug)]
pub struct Offer {
    pub(crate) data: Vec<u8>,
    pub(crate) set: ChangeSet,
}

impl Offer {
    /// # Errors
    /// [`Error::EntryTooLarge`].
    pub fn new(set: ChangeSet) -> Result<Self, Error> {
        let data = rmp_serde::to_vec_named(&set).expect("a change set is plain data");
        match data.len() <= ENTRY_BYTES_MAX {
            true => Ok(Self { data, set }),
            false => Err(Error::EntryTooLarge { bytes: data.len(), limit: ENTRY_BYTES_MAX }),
        }
    }
}

/// What an entry says.
pub(crate) fn read(entry: &Entry) -> ChangeSet {
    rmp_serde::from_slice(&entry.data)
        .expect("entries are made by `Offer` and sealed against change")
}

/// A proposal of this member that is not agreed to yet.
pub(crate) struct Waiting {
    pub(crate) term: u64,
    pub(crate) ticket: Ticket,
    /// What the entry says, so that it need not be read again. None for changes of the membership.
    pub(crate) set: Option<ChangeSet>,
}

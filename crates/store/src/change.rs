//! What a log entry says, and what subscribers hear.

use serde::{Deserialize, Serialize};
use types::Timestamp;

use crate::{Key, Object, Snapshot};

/// One object's change, with the version it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Create(Object),
    Update { object: Object, from: u64 },
    Delete { key: Key, from: u64 },
}

impl Change {
    pub fn key(&self) -> Key {
        match self {
            Self::Create(object) | Self::Update { object, .. } => object.key(),
            Self::Delete { key, .. } => *key,
        }
    }
}

/// The content of one log entry. Time is part of it, so that every replica writes the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    pub at: Timestamp,
    pub changes: Vec<Change>,
    /// The sequence of the state it has to be applied to. Objects have their versions; this is for a set that changes
    /// nothing, because everything it asks for was proposed before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
}

impl ChangeSet {
    /// Changes nothing, and is applied only where everything proposed before it was.
    pub fn nothing_after(snapshot: &Snapshot, at: Timestamp) -> Self {
        Self { at, changes: Vec::new(), follows: Some(snapshot.sequence()) }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// An object before and after; one of them is missing when it was created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub before: Option<Object>,
    pub after: Option<Object>,
}

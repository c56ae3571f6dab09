//! What a log entry says, and what subscribers hear.

use serde::{Deserialize, Serialize};
use types::Timestamp;

use crate::{Key, Object};

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
}

impl ChangeSet {
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

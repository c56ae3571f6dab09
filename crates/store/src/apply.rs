//! The one function that turns a log entry into the next state.

use types::Timestamp;

use crate::{Change, ChangeSet, Event, Key, Object, Snapshot};

/// A change set was made from a state that is no longer the current one; nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("update out of sequence")]
pub enum Rejected {
    /// The first object whose version differed.
    Object {
        key: Key,
        /// The version the change was made from; `None` for a creation.
        from: Option<u64>,
        /// The version in the store; `None` where there is no such object.
        found: Option<u64>,
    },
    /// Something was proposed before it that was not applied.
    State {
        /// The sequence it was made from.
        from: u64,
        found: u64,
    },
}

/// The state after `set`, and what changed.
///
/// # Errors
/// [`Rejected`] when any change was made from another version than the stored one.
pub fn apply(snapshot: &Snapshot, set: &ChangeSet) -> Result<(Snapshot, Vec<Event>), Rejected> {
    if let Some(from) = set.follows.filter(|from| *from != snapshot.sequence) {
        return Err(Rejected::State { from, found: snapshot.sequence });
    }
    let mut next = snapshot.clone();
    next.sequence += 1;
    let mut events = Vec::with_capacity(set.changes.len());
    for change in &set.changes {
        events.push(apply_one(&mut next, change, set.at)?);
    }
    Ok((next, events))
}

fn apply_one(next: &mut Snapshot, change: &Change, at: Timestamp) -> Result<Event, Rejected> {
    let key = change.key();
    let before = next.get(key);
    check(key, change, before.as_ref())?;
    let after = match change {
        Change::Create(object) | Change::Update { object, .. } => {
            Some(stamped(object.clone(), before.as_ref(), next.sequence, at))
        }
        Change::Delete { .. } => None,
    };
    match &after {
        Some(object) => next.put(object.clone()),
        None => next.remove(key),
    }
    Ok(Event { key, before, after })
}

fn check(key: Key, change: &Change, before: Option<&Object>) -> Result<(), Rejected> {
    let from = match change {
        Change::Create(_) => None,
        Change::Update { from, .. } | Change::Delete { from, .. } => Some(*from),
    };
    let found = before.map(Object::version);
    if from == found { Ok(()) } else { Err(Rejected::Object { key, from, found }) }
}

/// Writes version and times; the creation time is kept from the stored object.
fn stamped(mut object: Object, before: Option<&Object>, version: u64, at: Timestamp) -> Object {
    let mut created_at = at;
    if let Some(mut before) = before.cloned() {
        before.with_meta(|meta| created_at = meta.created_at);
    }
    object.with_meta(|meta| {
        meta.version = version;
        meta.created_at = created_at;
        meta.updated_at = at;
    });
    object
}

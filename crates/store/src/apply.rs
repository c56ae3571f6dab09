//! The one function that turns a log entry into the next state.

use types::{Meta, Timestamp};

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
    let mut next = snapshot.clone();
    let events = apply_to(&mut next, set.clone())?;
    Ok((next, events))
}

/// The same in place: where nobody holds a copy of `snapshot`, nothing of it is copied either. A set names each object
/// once.
///
/// # Errors
/// As [`apply`]; nothing is changed then.
pub fn apply_to(snapshot: &mut Snapshot, set: ChangeSet) -> Result<Vec<Event>, Rejected> {
    if let Some(from) = set.follows.filter(|from| *from != snapshot.sequence) {
        return Err(Rejected::State { from, found: snapshot.sequence });
    }
    let mut stored = Vec::with_capacity(set.changes.len());
    for change in &set.changes {
        let key = change.key();
        let before = snapshot.get(key);
        check(key, change, before.as_ref())?;
        stored.push((key, before));
    }
    snapshot.sequence += 1;
    let replaced = stored.into_iter().zip(set.changes);
    let events = replaced.map(|((key, before), change)| {
        let after = match change {
            Change::Create(object) | Change::Update { object, .. } => {
                let object = stamped(object, before.as_ref(), snapshot.sequence, set.at);
                snapshot.put(object.clone());
                Some(object)
            }
            Change::Delete { .. } => {
                snapshot.remove(key);
                None
            }
        };
        Event { key, before, after }
    });
    Ok(events.collect())
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
pub(crate) fn stamped(
    mut object: Object,
    before: Option<&Object>,
    version: u64,
    at: Timestamp,
) -> Object {
    let created_at = before.and_then(Object::meta).map_or(at, |meta| meta.created_at);
    let stamp = Meta { version, created_at, updated_at: at };
    // One that carries its stamp already may be shared, and stays so.
    if object.meta().is_some_and(|meta| *meta != stamp) {
        object.with_meta(|meta| *meta = stamp);
    }
    object
}

//! The cluster's state: immutable snapshots, drafts of changes, and the deterministic `apply`.
//!
//! ```text
//! Snapshot ──Draft──► ChangeSet ──consensus──► apply(Snapshot, ChangeSet) ──► Snapshot' + Vec<Event>
//! ```
//! A change set names the version of each object it was made from. `apply` decides nothing: it checks those
//! versions and stores the objects, the same way on every manager, or rejects the whole set.

mod apply;
mod change;
mod draft;
mod object;
mod snapshot;

pub use apply::{Rejected, apply, apply_to};
pub use change::{Change, ChangeSet, Event};
pub use draft::Draft;
pub use object::{Key, Object};
pub use snapshot::Snapshot;

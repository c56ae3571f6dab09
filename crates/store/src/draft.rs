//! Changes being made on top of a snapshot, before anybody agreed to them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use types::{Cluster, Node, Service, Task, Timestamp};

use crate::apply::stamped;
use crate::{Change, ChangeSet, Event, Key, Object, Snapshot};

/// A working copy that reads as if the changes were done. Derefs to the [`Snapshot`] with them in it.
#[derive(Debug)]
pub struct Draft {
    now: Timestamp,
    working: Snapshot,
    /// What each touched object was before the draft.
    originals: BTreeMap<Key, Option<Object>>,
    events: Vec<Event>,
}

impl Deref for Draft {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.working
    }
}

impl Draft {
    pub fn new(base: Snapshot, now: Timestamp) -> Self {
        Self { now, working: base, originals: BTreeMap::new(), events: Vec::new() }
    }

    /// The time the change set will carry.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The version that objects will carry once this draft is applied.
    pub fn next_version(&self) -> u64 {
        self.working.sequence + 1
    }

    /// How many objects are touched so far.
    pub fn len(&self) -> usize {
        self.originals.len()
    }

    pub fn is_empty(&self) -> bool {
        self.originals.is_empty()
    }

    /// Creates or replaces an object.
    pub fn put(&mut self, object: impl Into<Object>) {
        let object = object.into();
        let key = object.key();
        let before = self.remember(key);
        self.working.put(object.clone());
        self.events.push(Event { key, before, after: Some(object) });
    }

    /// Removes an object; nothing happens where there is none.
    pub fn delete(&mut self, key: Key) {
        let before = self.remember(key);
        if before.is_none() {
            return;
        }
        self.working.remove(key);
        self.events.push(Event { key, before, after: None });
    }

    /// Changes a task in place; nothing happens where there is none.
    pub fn update_task(&mut self, task: &Arc<Task>, change: impl FnOnce(&mut Task)) {
        let mut changed = Task::clone(task);
        change(&mut changed);
        if changed != **task {
            self.put(changed);
        }
    }

    pub fn update_service(&mut self, service: &Arc<Service>, change: impl FnOnce(&mut Service)) {
        let mut changed = Service::clone(service);
        change(&mut changed);
        if changed != **service {
            self.put(changed);
        }
    }

    pub fn update_node(&mut self, node: &Arc<Node>, change: impl FnOnce(&mut Node)) {
        let mut changed = Node::clone(node);
        change(&mut changed);
        if changed != **node {
            self.put(changed);
        }
    }

    pub fn update_cluster(&mut self, cluster: &Arc<Cluster>, change: impl FnOnce(&mut Cluster)) {
        let mut changed = Cluster::clone(cluster);
        change(&mut changed);
        if changed != **cluster {
            self.put(changed);
        }
    }

    /// What changed since the last call, step by step, for those who keep sums.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The net changes: an object that ends as it began is left out.
    pub fn finish(self) -> ChangeSet {
        let mut changes = Vec::with_capacity(self.originals.len());
        for (key, before) in self.originals {
            match (before, self.working.get(key)) {
                (None, Some(object)) => changes.push(Change::Create(object)),
                (Some(before), Some(object)) if before != object => {
                    changes.push(Change::Update { object, from: before.version() });
                }
                (Some(before), None) => {
                    changes.push(Change::Delete { key, from: before.version() });
                }
                _ => {}
            }
        }
        ChangeSet { at: self.now, changes, follows: None }
    }

    /// The same, together with the state after them: what [`crate::apply`] would make of the state the draft began
    /// with. Nothing of it is copied when nobody else holds that state.
    pub fn commit(self) -> (ChangeSet, Snapshot) {
        let Self { now, mut working, originals, .. } = self;
        let version = working.sequence + 1;
        let mut changes = Vec::with_capacity(originals.len());
        for (key, before) in originals {
            let after = working.get(key);
            if before == after {
                continue;
            }
            let after = after.map(|object| stamped(object, before.as_ref(), version, now));
            after.iter().for_each(|object| working.put(object.clone()));
            changes.push(match (before.as_ref().map(Object::version), after) {
                (None, Some(object)) => Change::Create(object),
                (Some(from), Some(object)) => Change::Update { object, from },
                (from, None) => Change::Delete { key, from: from.unwrap_or(0) },
            });
        }
        if !changes.is_empty() {
            working.sequence = version;
        }
        (ChangeSet { at: now, changes, follows: None }, working)
    }

    /// The state that the draft began with.
    pub fn undo(self) -> Snapshot {
        let mut working = self.working;
        // First all that is new: a name may have gone from one object to another.
        self.originals.keys().for_each(|key| working.remove(*key));
        self.originals.into_values().flatten().for_each(|object| working.put(object));
        working
    }

    /// Notes the object as it was before the draft; answers with it as it is now.
    fn remember(&mut self, key: Key) -> Option<Object> {
        let current = self.working.get(key);
        self.originals.entry(key).or_insert_with(|| current.clone());
        current
    }
}

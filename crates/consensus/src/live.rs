//! The newest applied state: one thread changes it in place, anybody may have a copy.

use std::sync::{Arc, Mutex, MutexGuard};

use store::Snapshot;

/// Copies share their memory with the state, and while one is held, what the next changes touch is copied. So there is
/// none that nobody asked for.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: Snapshot,
    /// For all who ask between two changes.
    copy: Option<Arc<Snapshot>>,
}

impl Live {
    pub(crate) fn new(state: Snapshot) -> Self {
        Self(Arc::new(Mutex::new(Inner { state, copy: None })))
    }

    pub(crate) fn copy(&self) -> Arc<Snapshot> {
        let Inner { state, copy } = &mut *self.lock();
        copy.get_or_insert_with(|| Arc::new(state.clone())).clone()
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.lock().state.sequence()
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        let mut inner = self.lock();
        inner.copy = None;
        change(&mut inner.state)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("changes do not panic")
    }
}

//! Nothing acknowledged is ever lost (design, section 8).

use std::collections::{BTreeMap, BTreeSet};

use store::Snapshot;
use types::ServiceId;

/// What an operator's write leaves behind when nothing later replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The service has the label of this write, or of a later one.
    Service {
        id: ServiceId,
        write: u64,
    },
    Removed {
        id: ServiceId,
        write: u64,
    },
}

/// The label that carries a write's number.
pub(crate) const LABEL: &str = "write";

#[derive(Debug, Default)]
pub(crate) struct AcknowledgedWrites {
    /// The newest acknowledged write of each service.
    newest: BTreeMap<ServiceId, Written>,
    removals_asked: BTreeSet<ServiceId>,
    pub(crate) count: usize,
}

impl AcknowledgedWrites {
    pub(crate) fn note(&mut self, written: Written) {
        self.count += 1;
        let (id, write) = key(written);
        let known = self.newest.get(&id).map_or(0, |known| key(*known).1);
        if write > known {
            self.newest.insert(id, written);
        }
    }

    /// A removal was asked for; whether it came about may never be known.
    pub(crate) fn removal_asked(&mut self, id: ServiceId) {
        self.removals_asked.insert(id);
    }

    /// `state` is one that holds everything.
    pub(crate) fn check(&self, state: &Snapshot) -> Result<(), String> {
        for written in self.newest.values() {
            let (id, write) = key(*written);
            let found = state.service(id).map(|service| {
                let label = service.spec.annotations.labels.get(LABEL);
                label.and_then(|label| label.parse::<u64>().ok()).unwrap_or(0)
            });
            match (written, found) {
                (Written::Service { .. }, Some(found)) if found >= write => {}
                // Removed by a later write whose answer was lost.
                (Written::Service { .. }, None) if self.removals_asked.contains(&id) => {}
                (Written::Removed { .. }, None) => {}
                _ => {
                    return Err(format!(
                        "write {write} of service {id} was acknowledged; found {found:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

fn key(written: Written) -> (ServiceId, u64) {
    match written {
        Written::Service { id, write } | Written::Removed { id, write } => (id, write),
    }
}

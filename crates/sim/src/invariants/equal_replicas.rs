//! Every replica's state is the same after the same number of change sets (design: "`apply` is dumb and rejects stale
//! ones the same way on every manager"; state machine safety of the Raft paper, figure 3).

use std::collections::BTreeMap;

use store::Snapshot;

/// States remembered; a replica that is further behind is not compared.
const REMEMBERED_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct EqualReplicas(BTreeMap<u64, Snapshot>);

impl EqualReplicas {
    pub(crate) fn note(&mut self, state: &Snapshot) -> Result<(), String> {
        let known = self.0.entry(state.sequence()).or_insert_with(|| state.clone());
        if known != state {
            return Err(format!("two replicas differ after change set {}", state.sequence()));
        }
        while self.0.len() > REMEMBERED_MAX {
            self.0.pop_first();
        }
        Ok(())
    }
}

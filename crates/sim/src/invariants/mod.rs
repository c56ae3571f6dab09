//! What must hold in every run. Each file is one promise and says where it is made.

mod acknowledged_writes;
mod converged;
mod equal_replicas;
mod forward_states;
mod one_leader;
mod one_node_per_task;
mod order_of_state;
mod told_networks;

use std::fmt;

pub(crate) use acknowledged_writes::{AcknowledgedWrites, LABEL, Written};
pub(crate) use converged::check as check_converged;
pub(crate) use equal_replicas::EqualReplicas;
pub(crate) use forward_states::check as check_forward;
pub(crate) use one_leader::OneLeader;
pub(crate) use one_node_per_task::OneNodePerTask;
pub(crate) use order_of_state::check as check_order;
pub(crate) use told_networks::check as check_told;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's file.
    pub invariant: &'static str,
    /// Milliseconds since the run began.
    pub at: u64,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ms: {}", self.invariant, self.at, self.what)
    }
}

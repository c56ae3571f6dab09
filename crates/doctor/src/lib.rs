//! What on a host is in a node's way, and what to do about it.
//!
//! [`probe`] looks and does not judge; [`judge`] judges and does not look.

mod facts;
mod judge;
mod probe;

pub use facts::{Facts, Link, Membership, Wall};
pub use judge::{Complaint, judge, judge_firewall};
pub use probe::{probe, probe_firewall};

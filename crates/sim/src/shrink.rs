//! Makes a failing plan as short as it gets.

use crate::invariants::Violation;
use crate::plan::Action;
use crate::run_plan;

/// Leaves out whatever is not needed for the run to break the same promise.
pub fn shrink(seed: u64, plan: Vec<Action>, violation: &Violation) -> (Vec<Action>, Violation) {
    let (mut plan, mut violation) = (plan, violation.clone());
    let mut piece = plan.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < plan.len() {
            let mut shorter = plan.clone();
            shorter.drain(at..(at + piece).min(plan.len()));
            match run_plan(seed, &shorter).violation {
                Some(found) if found.invariant == violation.invariant => {
                    (plan, violation) = (shorter, found);
                }
                _ => at += piece,
            }
        }
        piece /= 2;
    }
    (plan, violation)
}

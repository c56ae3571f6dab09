//! The state is in order after every change: no slot is taken twice but by start-first, every pending task has a
//! reason, nothing is left behind (design, sections 4 and 5; `planner::check`).

use planner::check::check as lint;
use store::Snapshot;

pub(crate) fn check(state: &Snapshot) -> Result<(), String> {
    match lint(state).first() {
        Some(violation) => Err(format!("{violation:?}")),
        None => Ok(()),
    }
}

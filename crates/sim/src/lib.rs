//! A swarm in virtual time: the real consensus, planner, dispatcher and agent, on hosts whose disks, clocks, networks and
//! power fail as a seed says.
//!
//! ```text
//! seed ─► plan (what operators do and what fails, and when) ─► World ─► violations of invariants/
//! ```
//! A run depends on nothing but its seed and its plan, so a failing one is replayed, and made shorter by leaving parts of
//! its plan out. See `invariants/` for what must hold; each file names where that is promised.

mod clock;
mod disk;
mod host;
pub mod invariants;
mod leading;
mod network;
mod operator;
pub mod plan;
mod random;
mod shrink;
mod told;
mod world;

pub use invariants::Violation;
pub use shrink::shrink;

use plan::Action;
use random::Random;
use world::World;

/// How one run went.
#[derive(Debug)]
pub struct Outcome {
    /// The first thing that should never be seen, if anything was.
    pub violation: Option<Violation>,
    /// Events that were looked at.
    pub events: u64,
    /// Writes that were answered.
    pub acknowledged: usize,
}

/// Runs what the seed says.
pub fn run(seed: u64) -> Outcome {
    run_plan(seed, &plan_of(seed))
}

/// What a seed's run does and suffers.
pub fn plan_of(seed: u64) -> Vec<Action> {
    plan::generate(&mut Random::new(seed ^ 0x706c_616e))
}

/// Runs a part of a seed's plan. A panic of the code under test is a violation like any other.
pub fn run_plan(seed: u64, plan: &[Action]) -> Outcome {
    let run = || World::new(seed, plan).run();
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_else(|| "a panic without words".to_owned());
        let violation = Violation { invariant: "no_panic", at: 0, what };
        Outcome { violation: Some(violation), events: 0, acknowledged: 0 }
    })
}

/// Runs a part of a seed's plan and has every event told, to see how it comes to what it comes to.
pub fn tell_plan(seed: u64, plan: &[Action], tell: fn(&str)) -> Outcome {
    World::new(seed, plan).told(tell).run()
}

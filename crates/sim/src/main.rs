//! Runs seeds until one breaks a promise, then shows the shortest way to it.
#![allow(clippy::print_stdout, reason = "a command line tool speaks there")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::Violation;

/// Simulates swarms in virtual time with faults, and checks what must always hold.
#[derive(Debug, Parser)]
struct Arguments {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Stop beginning new runs after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Runs at a time.
    #[arg(long)]
    jobs: Option<usize>,
    /// Print every event of the shortest way to the fault.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let deadline = arguments.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(arguments.seed);
    let end = arguments.seed + arguments.count;
    let (is_over, failure) = (AtomicBool::new(false), Mutex::new(None));
    let (runs, events, writes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores) {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || deadline.is_some_and(|deadline| Instant::now() > deadline) {
                        return;
                    }
                    let outcome = sim::run(seed);
                    runs.fetch_add(1, Ordering::Relaxed);
                    events.fetch_add(outcome.events, Ordering::Relaxed);
                    writes.fetch_add(outcome.acknowledged as u64, Ordering::Relaxed);
                    if let Some(violation) = outcome.violation
                        && !is_over.swap(true, Ordering::Relaxed)
                    {
                        *failure.lock().expect("set once") = Some((seed, violation));
                    }
                }
            });
        }
    });
    println!(
        "{} runs, {} events, {} acknowledged writes in {:.1} s",
        runs.into_inner(),
        events.into_inner(),
        writes.into_inner(),
        begun.elapsed().as_secs_f64()
    );
    match failure.into_inner().expect("set once") {
        None => ExitCode::SUCCESS,
        Some((seed, violation)) => {
            show(seed, &violation, arguments.trace);
            ExitCode::FAILURE
        }
    }
}

fn show(seed: u64, violation: &Violation, is_traced: bool) {
    println!("seed {seed} breaks {violation}");
    let (plan, violation) = sim::shrink(seed, sim::plan_of(seed), violation);
    println!("shortest way: {violation}");
    for action in &plan {
        println!("  {:>6} ms  {:?}", action.at, action.what);
    }
    if is_traced {
        sim::tell_plan(seed, &plan, |event| println!("{event}"));
    }
    println!("replay: cargo xtask sim --seed {seed}");
}

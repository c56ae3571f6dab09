//! The simulator: swarms in virtual time, with faults.

use clap::Args;

use crate::host;

/// The first seeds are those of every CI run, so that what failed there fails here.
const CI_RUNS: u64 = 6_000;
/// Seconds after which CI begins no more runs: a slow machine does fewer.
const CI_SECONDS: u64 = 150;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds; without it, as many as the time allows, or one when a seed is named
    #[arg(long)]
    count: Option<u64>,
    /// Stop beginning new runs after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Runs at a time; one per processor without it
    #[arg(long)]
    jobs: Option<usize>,
    /// Print every event of the shortest way to a fault
    #[arg(long)]
    trace: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let count = options.count.unwrap_or(match options.seed {
        0 => u64::from(u32::MAX),
        _ => 1,
    });
    let mut simulate = host::cargo();
    simulate.args(["run", "--quiet", "--profile", "sim", "-p", "sim", "--"]);
    simulate.args(["--seed", &options.seed.to_string(), "--count", &count.to_string()]);
    if let Some(seconds) = options.seconds {
        simulate.args(["--seconds", &seconds.to_string()]);
    }
    if let Some(jobs) = options.jobs {
        simulate.args(["--jobs", &jobs.to_string()]);
    }
    if options.trace {
        simulate.arg("--trace");
    }
    host::run(&mut simulate)
}

/// What CI simulates.
pub(crate) fn check() -> anyhow::Result<()> {
    println!("== simulated swarms");
    run(&Options {
        seed: 0,
        count: Some(CI_RUNS),
        seconds: Some(CI_SECONDS),
        jobs: None,
        trace: false,
    })
}

//! One-command tasks: `cargo xtask <task>`.
#![expect(clippy::print_stdout, reason = "tasks talk to whoever started them")]

mod cluster;
mod demo;
mod dist;
mod e2e;
mod host;
mod sim;
mod tidy;
mod verify;

use clap::{Parser, Subcommand};

/// Tasks of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build Skep, start three hosts, make them a swarm and run an example service on it
    Demo {
        #[command(subcommand)]
        step: Option<demo::Step>,
    },
    /// Build Skep and make a swarm of several hosts on this machine; start, stop, kill, freeze and cut off hosts
    Cluster(cluster::Options),
    /// Check everything without writing: format, lints, tidiness, unit and property tests
    Verify,
    /// Mend what can be mended by itself: lints, format
    Fix,
    /// Run the end-to-end tests on this machine's kernel
    E2e(e2e::Options),
    /// Run simulated swarms with faults, seed by seed, until one breaks a promise or somebody stops it
    Sim(sim::Options),
    /// Build the static binary to ship
    Dist,
    /// Install what the tests need, then verify and e2e: the one command that says whether all is well
    Test,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Demo { step } => demo::run(step.unwrap_or_default()),
        Task::Cluster(options) => cluster::run(&options),
        Task::Verify => verify::verify(),
        Task::Fix => verify::fix(),
        Task::E2e(options) => e2e::run(&options),
        Task::Sim(options) => sim::run(&options),
        Task::Dist => dist::build().map(|path| println!("{}", path.display())),
        Task::Test => {
            host::install(host::TEST_PACKAGES)?;
            verify::verify()?;
            sim::check()?;
            e2e::run(&e2e::Options::default())
        }
    }
}

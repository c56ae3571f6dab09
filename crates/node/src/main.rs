//! The `skep` binary: the daemon of a node, and the shims of its containers.

mod address;
mod agent_driver;
mod attachments;
mod backup;
mod board;
mod config;
mod connector;
mod daemon;
mod describe;
mod doctor;
mod flags;
mod forgetting;
mod idle;
mod ingress;
mod join;
mod keeper;
mod local;
mod lock;
mod membership;
mod name_book;
mod own_networks;
mod paths;
mod purge;
mod readiness;
mod recovery;
mod session;
mod state;
mod steward;
mod swarm_events;
mod templating;
mod told;
mod tunnel;
mod whole;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Musl's own allocator has one lock for all threads and gives pages back at once: under many writes the daemon spent a
/// third of its time in it. Settings, and why: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Docker Swarm mode, rebuilt: one binary that turns Linux hosts into a swarm.
#[derive(Debug, Parser)]
#[command(name = "skep", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run this host's node: serves the Docker Engine API and runs containers.
    Daemon(Box<flags::Daemon>),
    /// Write the state of the whole swarm into one sealed file, while it works
    Backup(backup::Backup),
    /// Bring a lost swarm back from a backup, with this host as its manager
    Restore(backup::Restore),
    /// Say what on this host is in a node's way, what is not as the node was told, and what to do
    Doctor(doctor::Flags),
    /// Remove everything a node's daemon has made: containers, links, state. The daemon must not run
    Purge(purge::Flags),
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Shims and tunnels share the binary and nothing else: they must stay small.
    shim::dispatch(&arguments);
    ::tunnel::dispatch(&arguments);
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let program = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    // Tools that start dockerd can start us: called by that name, the binary is the daemon.
    if program == "dockerd" {
        // As dockerd words it: scripts cut the number out.
        let version = concat!("version ", env!("CARGO_PKG_VERSION"), ", build skep");
        let command = flags::Daemon::command().name("dockerd").display_name("Docker");
        let command = command.version(version);
        let command = command.disable_version_flag(true).arg(version_flag());
        let matches = command.get_matches_from(&arguments);
        let flags = flags::Daemon::from_arg_matches(&matches)?;
        daemon::run(config::Config::resolve(flags, &arguments[1..])?)?;
        return Ok(ExitCode::SUCCESS);
    }
    match Cli::parse_from(&arguments).verb {
        Verb::Daemon(flags) => daemon::run(config::Config::resolve(*flags, &arguments[2..])?)?,
        Verb::Backup(flags) => backup::backup(flags)?,
        Verb::Restore(flags) => backup::restore(flags)?,
        Verb::Doctor(flags) => return doctor::run(&flags),
        Verb::Purge(flags) => purge::run(flags)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `-v` is what scripts ask dockerd with.
fn version_flag() -> clap::Arg {
    clap::Arg::new("version").short('v').long("version").action(clap::ArgAction::Version)
}

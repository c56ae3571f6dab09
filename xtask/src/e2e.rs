//! End-to-end tests: whole binaries on a real kernel, driven by the real docker command.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::host;

/// Tests that run at once, for each processor: they wait more than they work.
const TESTS_PER_PROCESSOR: usize = 2;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Which daemon to test: ours, or stock Docker, which proves the tests themselves
    #[arg(long, value_enum, default_value_t)]
    against: Against,
    /// The docker command that drives it; without it, each that is installed, one after another
    #[arg(long)]
    docker: Option<PathBuf>,
    /// Only tests whose name contains one of these
    filters: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    #[default]
    Skep,
    Docker,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    host::must_be_root("the end-to-end suite")?;
    host::install(host::TEST_PACKAGES)?;
    host::prepare_target()?;
    let target = host::root().join("target").join(host::TARGET).join("debug");
    let mut build = host::cargo();
    build.args(["build", "--target", host::TARGET, "-p", "node", "-p", "whoami"]);
    host::run(&mut build)?;
    let daemon = match options.against {
        Against::Skep => target.join("skep"),
        Against::Docker => "/usr/sbin/dockerd".into(),
    };
    ensure!(daemon.exists(), "{} is not there", daemon.display());
    let commands = options.docker.clone().map_or_else(docker_commands, |docker| vec![docker]);
    for docker in commands {
        let version = Command::new(&docker).arg("--version").output();
        let version = version.with_context(|| format!("run {}", docker.display()))?;
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        println!("== end to end, against {}, driven by {version}", daemon.display());
        suite(options, &daemon, &docker, &target.join("whoami"))?;
    }
    Ok(())
}

/// Debian's docker command, and whichever other comes first on the path.
fn docker_commands() -> Vec<PathBuf> {
    let debian = PathBuf::from("/usr/bin/docker");
    let other = Path::new("/usr/local/bin/docker");
    let is_other = other.exists() && other.canonicalize().ok() != debian.canonicalize().ok();
    is_other.then(|| other.to_owned()).into_iter().chain([debian]).collect()
}

fn suite(options: &Options, daemon: &Path, docker: &Path, whoami: &Path) -> anyhow::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let notes = host::root().join("target/e2e-left-out");
    std::fs::write(&notes, "").context("make a file for notes")?;
    let mut test: Command = host::cargo();
    test.args([
        "test",
        "--quiet",
        "--target",
        host::TARGET,
        "-p",
        "e2e",
        "--tests",
        "--no-fail-fast",
        "--",
    ]);
    test.arg(format!("--test-threads={}", processors * TESTS_PER_PROCESSOR));
    test.args(&options.filters);
    test.env("SKEP_E2E_DAEMON", daemon).env("SKEP_E2E_WHOAMI", whoami);
    test.env("SKEP_E2E_DOCKER", docker).env("SKEP_E2E_NOTES", &notes);
    let result = host::run(&mut test);
    let left_out = std::fs::read_to_string(&notes).context("read the notes")?;
    let mut left_out: Vec<_> = left_out.lines().collect();
    left_out.sort_unstable();
    if !left_out.is_empty() {
        println!("{} tests left out, of what stock Docker does not have:", left_out.len());
    }
    for line in left_out {
        println!("  {line}");
    }
    result
}

//! End-to-end tests: whole binaries on a real kernel, driven by the real docker command.

use std::process::Command;

use anyhow::ensure;
use clap::{Args, ValueEnum};

use crate::host;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Which daemon to test: ours, or stock Docker, which proves the tests themselves
    #[arg(long, value_enum, default_value_t)]
    against: Against,
    /// Only tests whose name contains this
    filter: Option<String>,
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
    println!("== end to end, against {}", daemon.display());
    let mut test: Command = host::cargo();
    test.args(["test", "--target", host::TARGET, "-p", "e2e", "--no-fail-fast", "--"]);
    test.args(options.filter.as_slice());
    test.env("SKEP_E2E_DAEMON", &daemon).env("SKEP_E2E_WHOAMI", target.join("whoami"));
    host::run(&mut test)
}

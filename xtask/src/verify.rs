//! Checks that never write, and mending that does.

use anyhow::Context;

use crate::{host, tidy};

/// Everything that can be said without starting a whole node. The kernel's part of it needs root.
pub(crate) fn verify() -> anyhow::Result<()> {
    host::prepare_target()?;
    println!("== format");
    host::run(host::cargo().args(["fmt", "--all", "--check"])).context("run `cargo xtask fix`")?;
    println!("== tidy");
    tidy::check()?;
    println!("== lints");
    let lint = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--target",
        host::TARGET,
        "--",
        "-D",
        "warnings",
    ];
    host::run(host::cargo().args(lint))?;
    println!("== unit, property and kernel tests");
    let test = [
        "test",
        "--workspace",
        "--all-features",
        "--target",
        host::TARGET,
        "--exclude",
        "e2e",
        "--no-fail-fast",
    ];
    host::run(host::cargo().args(test))
}

pub(crate) fn fix() -> anyhow::Result<()> {
    host::prepare_target()?;
    let fix = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--target",
        host::TARGET,
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ];
    host::run(host::cargo().args(fix))?;
    host::run(host::cargo().args(["fmt", "--all"]))
}

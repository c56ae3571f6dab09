//! The binary to ship: static, stripped, for any Linux of this architecture.

use std::path::PathBuf;

use crate::host;

/// Builds it and answers with its path.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    host::prepare_target()?;
    let mut build = host::cargo();
    build.args(["build", "--release", "--target", host::TARGET, "-p", "node", "-p", "whoami"]);
    host::run(&mut build)?;
    Ok(built("skep"))
}

/// Where a program is once it is built.
pub(crate) fn built(program: &str) -> PathBuf {
    host::root().join("target").join(host::TARGET).join("release").join(program)
}

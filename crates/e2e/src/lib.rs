//! Hosts for end-to-end tests: network namespaces, each with a daemon of its own, driven by the real docker command.
//!
//! The same tests run against stock Docker: `cargo xtask e2e --against docker`. A test of what only we have says so in
//! its first line, with [`skep_only`]; against stock Docker it is listed as left out, with its reason.
#![expect(
    clippy::disallowed_methods,
    reason = "the suite is told by its environment which daemon and which command to test"
)]

mod client;
mod cluster;
mod daemon;
mod follow;
mod frame;
mod host;
mod images;
mod middle;
mod reboot;
mod registry;
mod terminal;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use client::{Client, within};
pub use cluster::{Cluster, Row, nodes};
pub use follow::Follow;
pub use frame::{Mac, Packet, send_frame};
pub use host::{Host, Printed};
pub use registry::Registry;
pub use terminal::Terminal;
pub use wire::Wire;

/// Ends the test here where the daemon is not ours, and writes down why.
///
/// The first line of a test, so that what stock Docker is spared is seen at a glance.
#[macro_export]
macro_rules! skep_only {
    ($reason:literal) => {
        if !$crate::is_skep() {
            $crate::note_left_out($reason);
            return;
        }
    };
}

/// Leaves the running test out where nobody balances.
#[macro_export]
macro_rules! needs_balancing {
    () => {
        if !$crate::balances() {
            $crate::note_left_out("this kernel has no IPVS, which stock Docker balances by");
            return;
        }
    };
}

/// Whether virtual addresses and published ports of services lead anywhere: stock Docker needs IPVS in the kernel for that.
pub fn balances() -> bool {
    let has_ipvs =
        || Command::new("modprobe").arg("ip_vs").output().is_ok_and(|it| it.status.success());
    is_skep() || Path::new("/proc/net/ip_vs").exists() || has_ipvs()
}

/// Whether the suite tests our daemon, and not stock Docker.
pub fn is_skep() -> bool {
    program().file_name().is_some_and(|name| name == "skep")
}

/// Notes for `cargo xtask e2e` that the running test is left out.
pub fn note_left_out(reason: &str) {
    let thread = std::thread::current();
    let notes = std::fs::OpenOptions::new().create(true).append(true).open(told("SKEP_E2E_NOTES"));
    // One write: lines of tests that run at once stay whole.
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("a test"));
    notes.expect("the notes open").write_all(line.as_bytes()).expect("the notes are written");
}

/// The daemon that is tested.
fn program() -> PathBuf {
    told("SKEP_E2E_DAEMON")
}

fn told(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value
        .unwrap_or_else(|| panic!("{name} is not set: run the suite with `cargo xtask e2e`"))
        .into()
}

fn printed(output: Output) -> Printed {
    Printed {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    }
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs iproute2's `ip`.
pub fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// A text as it stands in a query.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

//! Hosts on one machine, for development: network namespaces with names and addresses of their own, joined by a switch
//! or a router that is a namespace too, so that the machine's own network is left as it is.

mod host;
mod registry;
mod router;
mod switch;

use std::process::Command;

pub use host::{Daemon, Host};
pub use registry::DockerRegistry;
pub use router::Router;
pub use switch::Switch;

/// What went wrong, of what was tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be run at all.
    #[error("run {command}")]
    Run { command: String, source: std::io::Error },
    /// The program said no.
    #[error("{command}: {said}")]
    Failed { command: String, said: String },
}

/// Runs iproute2's `ip`.
///
/// # Errors
/// With what it complained of.
pub fn ip(arguments: &[&str]) -> Result<(), Error> {
    run(Command::new("ip").args(arguments))
}

/// Removes a link that may have gone with its other end.
fn unplug(namespace: &str, link: &str) -> Result<(), Error> {
    match ip(&["-n", namespace, "link", "del", link]) {
        Err(Error::Failed { said, .. }) if said.contains("Cannot find device") => Ok(()),
        removed => removed,
    }
}

fn run(command: &mut Command) -> Result<(), Error> {
    let output = command.output();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let command = words.join(" ");
    let output = output.map_err(|source| Error::Run { command: command.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command, said })
}

//! The process that owns one container: runtime call, streams, log file, exit status.
//!
//! One shim per container, so that a container outlives the daemon: `kill -9` of the daemon
//! disturbs nothing here, and a newer daemon finds the shim by its socket. Single-threaded, no
//! async runtime, little memory: `poll` over signals, pipes and sockets.
//!
//! Life of a shim: launched with a connected socket as standard input, it forks away, waits for
//! `Start`, runs the container, and ends by itself once the exit record is written and the last
//! output is handed over. The daemon's side is the `client` module, behind a feature of that name.

mod connection;
mod container;
mod init_process;
mod log;
mod packet;
pub mod pages;
mod seal;
mod server;
mod streams;
mod sys;
mod time;

#[cfg(feature = "client")]
pub mod client;
pub mod config;
pub mod protocol;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use runtime::process;

/// Becomes a shim or a container's process 1 when the arguments of this process say so, and never
/// returns then. To be called before anything else: the shim inherits what came before.
pub fn dispatch(args: &[OsString]) {
    let name = args.first().map(|it| Path::new(it).file_name().unwrap_or_default());
    if name.is_some_and(|name| name == "docker-init") {
        init_process::run(args);
    }
    if args.get(1).is_some_and(|verb| verb == "shim") {
        main(args);
    }
}

fn main(args: &[OsString]) -> ! {
    let result = match args.get(2) {
        Some(bundle) => seal::ensure(args).and_then(|()| server::run(Path::new(bundle))),
        None => Err(runtime::Error::InvalidSpec { reason: "no bundle directory given".into() }),
    };
    match result {
        Ok(()) => process::exit_now(0),
        Err(error) => {
            let text = format!("shim: {}\n", error.text());
            let _ = rustix::io::write(rustix::stdio::stderr(), OsString::from(text).as_bytes());
            process::exit_now(1)
        }
    }
}

/// The exit code of a process as shells and Docker count it.
fn exit_code(status: rustix::process::WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

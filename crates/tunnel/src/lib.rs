//! The process that seals what encrypted networks send between nodes: WireGuard's protocol between a tun device and a
//! UDP socket, where the kernel has no WireGuard of its own.
//!
//! A process of its own outlives the daemon, as shims do: a newer daemon finds it by its socket. Its private key is made
//! in it, is never told to anybody, and ends with it. It holds the device open, so with its end the device is gone, and
//! whatever was routed there is dropped.
//!
//! Life of one: launched with a directory that holds `config.json`, it binds its UDP port where it was started, opens the
//! device in the tunnel's namespace, forks away, gives up every privilege, and then knows three descriptors and a dozen
//! system calls.

mod batch;
mod client;
mod confine;
mod error;
mod inward;
mod join;
mod outward;
mod packet;
mod peers;
pub mod protocol;
mod server;
mod sys;

use std::ffi::OsString;
use std::path::Path;

use runtime::process;

pub use client::Client;
pub use error::Error;
pub use protocol::{Config, Key, Peer, State};

/// Becomes a tunnel when the arguments of this process say so, and never returns then. To be called before anything
/// else.
pub fn dispatch(args: &[OsString]) {
    if args.get(1).is_some_and(|verb| verb == "tunnel") {
        main(args);
    }
}

fn main(args: &[OsString]) -> ! {
    let result = match args.get(2) {
        Some(directory) => server::run(Path::new(directory)),
        None => Err(Error::NoDirectory),
    };
    match result {
        Ok(()) => process::exit_now(0),
        Err(error) => {
            let text = format!("{}\n", error.text());
            let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
            process::exit_now(1)
        }
    }
}

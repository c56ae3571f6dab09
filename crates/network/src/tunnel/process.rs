//! Devices of tunnel processes.

use std::path::{Path, PathBuf};

use ::tunnel::{Client, Config};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::TunnelKey;
use crate::Error;

/// This program, also when its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

pub(super) fn launch(
    directory: &Path,
    netns: PathBuf,
    device: String,
    port: u16,
) -> Result<Client, Error> {
    Ok(Client::launch(Path::new(PROGRAM), directory, &Config { netns, device, port })?)
}

pub(super) fn key_of(client: &Client) -> TunnelKey {
    let state = client.state();
    TunnelKey { key: state.key, port: state.port, made_at: state.made_at }
}

/// Whether the process lives: between requests it has nothing to say but its end.
pub(super) fn is_there(client: &Client) -> bool {
    let mut set = [PollFd::from_borrowed_fd(client.life(), PollFlags::IN)];
    matches!(poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

//! The one call of this crate the compiler cannot check.
#![allow(
    unsafe_code,
    reason = "tokio leaves the promise that a descriptor stays the same to its caller"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

/// Has a descriptor's readiness watched. It must not block.
pub(crate) fn async_fd(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: An `OwnedFd` stays open and the same until it is dropped, and the `Arc` only lends it out.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(|error| error.into_parts().1)
}

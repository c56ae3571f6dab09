//! The calling process itself: what the small processes that outlive the daemon (shims, tunnels) and a container's first
//! one have in common.

#![allow(unsafe_code, reason = "fork, _exit and signal have no safe wrapper")]

use std::io;

use rustix::io::Errno;

/// The error of the system call that has just failed.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Forks; zero in the child. The process must have one thread.
///
/// # Errors
///
/// fork(2)'s, in the parent alone.
pub fn fork() -> rustix::io::Result<i32> {
    // SAFETY: The process has one thread, so no lock of another is held in the child.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        pid => Ok(pid),
    }
}

/// Ends the process at once, without running any exit handler of a parent's copy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

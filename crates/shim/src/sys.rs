//! The few system calls that have no safe wrapper.

#![allow(unsafe_code, reason = "signals and signalfd have no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use runtime::process::last_errno;

/// Gives a signal its default effect.
pub(crate) fn restore(signal: i32) {
    // SAFETY: SIG_DFL is no handler of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Blocks the signals, which then arrive at the descriptor.
pub(crate) fn signal_fd(signals: &[i32]) -> rustix::io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: The set is initialised, and no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: -1 asks for a new descriptor.
    match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
        -1 => Err(last_errno()),
        // SAFETY: The kernel has just given us this descriptor.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before anything else reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks all signals; they are then taken by [`wait_signal`].
pub(crate) fn block_all_signals() {
    // SAFETY: The set is initialised by sigfillset.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Blocks no signal.
pub(crate) fn unblock_all_signals() {
    let set = signal_set(&[]);
    // SAFETY: The set is initialised.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// Waits for any blocked signal.
pub(crate) fn wait_signal() -> i32 {
    loop {
        let mut signal = 0;
        // SAFETY: The set is initialised by sigfillset, and `signal` outlives the call.
        let failed = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigwait(&raw const set, &raw mut signal)
        };
        if failed == 0 {
            return signal;
        }
    }
}

/// Sends a signal by its number.
pub(crate) fn kill(pid: i32, signal: i32) -> rustix::io::Result<()> {
    // SAFETY: kill takes two integers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Sends a signal by its number to exactly one process.
pub(crate) fn kill_pidfd(pidfd: &OwnedFd, signal: i32) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: No siginfo is given; the rest are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Registers a descriptor with the async runtime of the caller.
#[cfg(feature = "client")]
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: An `OwnedFd` stays open and the same until it is dropped, and it is only lent out.
    let registered = unsafe { tokio::io::unix::AsyncFd::register(fd) };
    registered.map_err(|error| error.into_parts().1)
}

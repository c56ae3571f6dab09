//! Gives up what a tunnel does not need: every capability, and nearly every system call.
//!
//! It reads what strangers send it. Whoever took it over would find three descriptors, in a network namespace that leads
//! nowhere, and no way to open, connect or run anything. The user stays root, without root's powers: processes of other
//! users must not be able to end a tunnel.

use runtime::spec::{Action, Seccomp, SyscallRule};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::Error;

/// What is left. Memory, time, waiting, and descriptors that are open; `accept4` for the daemon's connections.
const CALLS: &[&str] = &[
    "accept4",
    "brk",
    "clock_gettime",
    "close",
    "exit",
    "exit_group",
    "fcntl",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "poll",
    "ppoll",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "sendmsg",
    "sendto",
    "sigaltstack",
    "tkill",
    "write",
    "writev",
];

/// Confines the calling thread, for good. Each thread does it for itself.
pub(crate) fn confine() -> Result<(), Error> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_no_new_privs(true).map_err(|errno| Error::step("give up new privileges")(errno.into()))?;
    set_capabilities(None, none)
        .map_err(|errno| Error::step("give up capabilities")(errno.into()))?;
    let filter = runtime::seccomp::compile(&profile()).map_err(Error::Confine)?;
    runtime::seccomp::load(&filter)
        .map_err(|errno| Error::step("load a filter of system calls")(errno.into()))
}

fn profile() -> Seccomp {
    let names = CALLS.iter().map(|name| (*name).to_owned()).collect();
    let allowed = SyscallRule { names, action: Action::Allow, errno_ret: None, args: Vec::new() };
    Seccomp {
        default_action: Action::Errno,
        default_errno_ret: None,
        architectures: Vec::new(),
        flags: Vec::new(),
        syscalls: vec![allowed],
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_confined_thread_opens_nothing_and_still_allocates() {
        let confined = std::thread::spawn(|| {
            super::confine().unwrap();
            let memory = vec![1u8; 8 << 20];
            let opened = rustix::fs::open("/etc/hostname", rustix::fs::OFlags::RDONLY, 0.into());
            (memory.len(), opened.map(drop))
        });
        let (length, opened) = confined.join().unwrap();
        assert_eq!(length, 8 << 20);
        assert_eq!(opened, Err(rustix::io::Errno::PERM));
    }
}

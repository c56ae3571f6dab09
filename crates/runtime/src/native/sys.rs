//! The system calls that have no safe wrapper, each behind a safe function.

#![allow(unsafe_code, reason = "system calls that neither std nor rustix wraps")]

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::last_errno;
use crate::seccomp::Filter;

/// Arguments of clone3(2), from linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Arguments of mount_setattr(2), from linux/mount.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MountAttributes {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) propagation: u64,
    pub(super) userns_fd: u64,
}

/// `MOUNT_ATTR_*`, from linux/mount.h.
pub(super) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(super) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(super) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(super) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub(super) const MOUNT_ATTR_ATIME: u64 = 0x70;
pub(super) const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub(super) const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub(super) const MOUNT_ATTR_NODIRATIME: u64 = 0x80;

/// Which side of [`fork`] goes on.
#[derive(Debug)]
pub(super) enum Side {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

fn check(result: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// Forks into new namespaces (`CLONE_NEW*` bits), and on cgroup version 2 right into a group. The
/// calling process must have one thread, since the child goes on with all of its memory.
pub(super) fn fork(namespaces: u64, group: Option<&OwnedFd>) -> rustix::io::Result<Side> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: i32 = -1;
    let mut arguments = CloneArguments {
        flags: namespaces | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::try_from(libc::SIGCHLD).expect("signals are positive"),
        ..CloneArguments::default()
    };
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(group.as_raw_fd()).expect("descriptors are positive");
    }
    // SAFETY: The structure matches the given size and `pidfd` outlives the call. No stack is
    // given, so this is a fork; the caller has promised a single thread, so no lock is held.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>())
    })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: CLONE_PIDFD has just stored a descriptor of ours there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { pid: i32::try_from(pid).expect("process ids fit"), pidfd })
}

/// Joins the namespaces (`CLONE_NEW*` bits) of a namespace file or of a process.
pub(super) fn set_namespaces(fd: impl AsFd, namespaces: u64) -> rustix::io::Result<()> {
    let bits = libc::c_int::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: setns takes two integers.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_fd().as_raw_fd(), bits) }).map(drop)
}

/// Makes a namespace of the calling thread's own.
pub(super) fn unshare(namespaces: u64) -> rustix::io::Result<()> {
    let bits = libc::c_int::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: unshare takes an integer; none of the bits used here touches descriptors.
    check(unsafe { libc::syscall(libc::SYS_unshare, bits) }).map(drop)
}

/// Changes the attributes of the mount that `tree` names.
pub(super) fn mount_setattr(
    tree: impl AsFd,
    recursive: bool,
    attributes: MountAttributes,
) -> rustix::io::Result<()> {
    let at_recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | at_recursive;
    // SAFETY: The path is a C string and the structure matches the given size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Loads a system call filter for the calling thread.
pub(crate) fn load_filter(filter: &Filter) -> rustix::io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const crate::seccomp::Instruction,
    }
    let program = Program {
        length: u16::try_from(filter.instructions.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: filter.instructions.as_ptr(),
    };
    // SAFETY: `Instruction` is laid out as sock_filter, and the program outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            &raw const program,
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` on to be closed by execve.
pub(super) fn close_on_exec_from(first: u32) -> rustix::io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: close_range takes integers; marking descriptors disturbs no owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Puts all signals back to what a fresh program expects: none blocked, none ignored.
pub(super) fn reset_signals() {
    const SIGNAL_MAX: libc::c_int = 64;
    /// A kernel `struct sigaction` of zeros: default effect, no flags, empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_BYTES: usize = 8;
    for signal in 1..=SIGNAL_MAX {
        // The C library keeps signals 32 and 33 to itself, so it is not asked.
        // SAFETY: The structure is no longer than four words on any architecture, no old one is
        // asked for, and a refusal (KILL, STOP) changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                MASK_BYTES,
            )
        };
    }
    // SAFETY: The set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Gives the process a session keyring of its own, so that it shares no keys with the host.
pub(super) fn new_session_keyring() -> rustix::io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: A null name asks for an anonymous keyring.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>())
    })
    .map(drop)
}

/// Replaces the process; returns only with an error.
pub(super) fn execve(program: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: Both lists end with a null pointer and point to C strings that are still alive.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    last_errno()
}

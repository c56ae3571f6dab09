//! Keeps containers from writing to the binary on the host.
//!
//! A container can run `/proc/self/exe` in the moment before its program starts, and later open
//! what `/proc/<pid>/exe` names for writing: that is this binary. On a read-only mount of its own
//! such an open fails, so a shim that does not run from one starts itself anew from one.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

const SELF: &str = "/proc/self/exe";

/// Goes on only in a process whose binary cannot be written through its own mount.
///
/// # Errors
/// The step that did not work: nothing may then be run.
pub(crate) fn ensure(args: &[OsString]) -> Result<(), runtime::Error> {
    let step = |step: &str, errno| runtime::Error::Step { step: step.to_owned(), errno };
    let at = statvfs(SELF).map_err(|errno| step("look at own binary", errno))?;
    if at.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let path = std::fs::read_link(SELF).map_err(|error| {
        step(
            "find own binary",
            rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        )
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &path, flags).map_err(|errno| step("show own binary", errno))?;
    runtime::native::make_read_only(&tree).map_err(|errno| step("seal own binary", errno))?;
    let sealed = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let error = Command::new(sealed).arg0(&args[0]).args(&args[1..]).exec();
    let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
    Err(step("start from sealed binary", errno))
}

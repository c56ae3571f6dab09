//! The built-in runtime: namespaces, cgroups, mounts and confinement by plain system calls.
//!
//! [`start`] forks into new namespaces. The child joins its cgroups, builds the root and confines
//! itself while the caller writes the limits; both meet right before the program starts. [`exec`]
//! brings a process into a running container by the same last steps.
//!
//! Order in the child: session, host name, sysctls, root and mounts, devices, terminal, masks,
//! `pivot_root`, limits, (filter), capabilities, ids, (filter), program. The filter comes early
//! without `no_new_privs`, since loading it then takes a capability that is about to go.

mod channel;
mod devices;
mod exec;
mod init;
mod mounts;
mod namespaces;
mod options;
mod process;
mod root;
mod sys;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

pub use exec::{Exec, confine, exec};

use crate::Error;
use crate::cgroup::Cgroup;
use crate::error::Step;
use crate::process::exit_now;
use crate::spec::{IdMapping, NamespaceKind, Spec};
use channel::{Channel, Message};
use init::Init;
use sys::Side;
pub(crate) use sys::load_filter;

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// Descriptors for 0, 1 and 2.
    Streams {
        /// Read end of its input.
        stdin: OwnedFd,
        /// Write end of its output.
        stdout: OwnedFd,
        /// Write end of its errors.
        stderr: OwnedFd,
    },
    /// A new pseudo-terminal, whose controlling end comes back in [`Started::console`].
    Terminal,
}

/// A process that runs.
#[derive(Debug)]
pub struct Started {
    /// Its id on the host. It is a child of the caller.
    pub pid: i32,
    /// Refers to exactly this process.
    pub pidfd: OwnedFd,
    /// Controlling end of its terminal.
    pub console: Option<OwnedFd>,
    /// What the host did not grant and the container does without.
    pub notes: Vec<String>,
}

/// Starts the container of `spec`. `bundle` is where a relative root path begins.
///
/// The caller must have a single thread.
///
/// # Errors
/// The step that did not work; [`Error::exit_code`] is what Docker reports for it. Nothing is left
/// behind: no process, no cgroup.
pub fn start(spec: &Spec, bundle: &Path, stdio: Stdio) -> Result<Started, Error> {
    check(spec)?;
    let rootfs = root_path(spec, bundle)?;
    let group = Cgroup::new(&spec.linux.cgroups_path)?;
    group.create()?;
    start_in(spec, &rootfs, &group, stdio).inspect_err(|_| {
        // The reason why the start failed is worth more than one why the group stays.
        let _ = group.remove();
    })
}

fn check(spec: &Spec) -> Result<(), Error> {
    let reason = if spec.process.args.is_empty() {
        "no command to run"
    } else if spec.linux.namespace(NamespaceKind::Mount).is_none_or(|it| it.path.is_some()) {
        "a container needs a mount namespace of its own"
    } else if !spec.process.cwd.starts_with('/') {
        "working directory is not an absolute path"
    } else if spec.linux.namespace(NamespaceKind::Time).is_some() {
        "time namespaces are not supported"
    } else {
        return Ok(());
    };
    Err(Error::InvalidSpec { reason: reason.to_owned() })
}

fn root_path(spec: &Spec, bundle: &Path) -> Result<PathBuf, Error> {
    let path = bundle.join(&spec.root.path);
    fs::canonicalize(&path).map_err(|error| Error::Step {
        step: format!("open root {}", path.display()),
        errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    })
}

fn start_in(spec: &Spec, rootfs: &Path, group: &Cgroup, stdio: Stdio) -> Result<Started, Error> {
    let mut notes = Vec::new();
    let v2 = group.layout().is_v2();
    group.rule_devices(&spec.linux.resources)?;
    let directory = if v2 {
        notes.extend(group.limit(&spec.linux.resources)?);
        Some(open_group(group)?)
    } else {
        None
    };
    let (own, other) = channel::pair()?;
    let joined = namespaces::Joined::enter(&spec.linux.namespaces)?;
    let bits = namespaces::new_bits(&spec.linux.namespaces);
    let side = sys::fork(bits, directory.as_ref()).step(|| "make process".to_owned())?;
    let Side::Parent { pid, pidfd } = side else {
        drop(own);
        run_child(&Init { spec, rootfs, group, stdio: &stdio, channel: &other })
    };
    let back = joined.leave();
    drop((other, stdio));
    let configure = || -> Result<Vec<String>, Error> {
        back?;
        map_ids(spec, pid)?;
        if v2 {
            return Ok(Vec::new());
        }
        if spec.linux.namespace(NamespaceKind::User).is_some() {
            group.attach(pid)?;
        }
        group.limit(&spec.linux.resources)
    };
    match configure().and_then(|more| hear(&own, more)) {
        Ok((console, more)) => {
            notes.extend(more);
            Ok(Started { pid, pidfd, console, notes })
        }
        Err(error) => {
            end(pid, &pidfd);
            Err(error)
        }
    }
}

fn open_group(group: &Cgroup) -> Result<OwnedFd, Error> {
    let path = group.directories().swap_remove(0);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, 0.into()).map_err(|errno| Error::Cgroup {
        action: "open",
        path,
        errno,
    })
}

fn run_child(init: &Init<'_>) -> ! {
    let Err(error) = init.run();
    init.channel.fail(&error);
    exit_now(1)
}

/// Lets the child go on and listens until its program runs.
fn hear(
    channel: &Channel,
    mut notes: Vec<String>,
) -> Result<(Option<OwnedFd>, Vec<String>), Error> {
    // A child that is gone has said why, which is read below.
    let _ = channel.go();
    let mut console = None;
    loop {
        match channel.receive()? {
            None => return Ok((console, notes)),
            Some(Message::Note(text)) => notes.push(text),
            Some(Message::Console(master)) => console = Some(master),
            Some(Message::Failed { text, exit_code }) => {
                return Err(Error::Init { text, exit_code });
            }
        }
    }
}

fn end(pid: i32, pidfd: &OwnedFd) {
    // It may have ended by itself.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    while let Err(rustix::io::Errno::INTR) = waitpid(Pid::from_raw(pid), WaitOptions::empty()) {}
}

/// Gives the ids of a new user namespace their meaning on the host.
fn map_ids(spec: &Spec, pid: i32) -> Result<(), Error> {
    let new_user = spec.linux.namespace(NamespaceKind::User).is_some_and(|it| it.path.is_none());
    if !new_user {
        return Ok(());
    }
    let files = [("uid_map", &spec.linux.uid_mappings), ("gid_map", &spec.linux.gid_mappings)];
    for (file, mappings) in files {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, mapping_text(mappings)).map_err(|error| Error::Step {
            step: format!("write {path}"),
            errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        })?;
    }
    Ok(())
}

fn mapping_text(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |text, it| {
        text + &format!("{} {} {}\n", it.container_id, it.host_id, it.size)
    })
}

/// Sets the size of a terminal in character cells.
///
/// # Errors
/// [`Error::Step`] when `master` is no terminal.
pub fn resize(master: &OwnedFd, rows: u16, columns: u16) -> Result<(), Error> {
    devices::set_size(master, rows, columns).step(|| "resize terminal".to_owned())
}

/// Makes an unattached mount read-only, so that nothing can be written through it.
///
/// # Errors
/// That of the kernel; `ENOSYS` before Linux 5.12.
pub fn make_read_only(tree: impl std::os::fd::AsFd) -> rustix::io::Result<()> {
    mounts::set_read_only(tree, false)
}

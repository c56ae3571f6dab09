//! Brings a process into a running container, confined as the container is.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid};
use rustix::thread::set_thread_res_uid;

use super::channel::{self, Channel};
use super::init::{adjust_oom_score, confinement, open_profile, take_terminal};
use super::namespaces::{Joined, bit};
use super::process::{become_program, limit_resources, own_streams, take_streams};
use super::root::Root;
use super::sys::{self, Side};
use super::{Started, Stdio, devices};
use crate::Error;
use crate::cgroup::Cgroup;
use crate::error::Step;
use crate::process::exit_now;
use crate::spec::{NamespaceKind, Process, Spec};

/// A process to bring into a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's specification, from which all confinement comes.
    pub spec: &'a Spec,
    /// Process id of the container's first process on the host.
    pub init_pid: i32,
    /// What to run. Without capabilities of its own it has the container's.
    pub process: &'a Process,
}

/// Runs `exec`. The process is a child of the caller, who must have a single thread.
///
/// # Errors
/// The step that did not work; [`Error::exit_code`] is what Docker reports for it.
pub fn exec(exec: &Exec<'_>, stdio: Stdio) -> Result<Started, Error> {
    if exec.process.args.is_empty() {
        return Err(Error::InvalidSpec { reason: "no command to run".to_owned() });
    }
    let process = confine(exec.spec, exec.process);
    let group = Cgroup::new(&exec.spec.linux.cgroups_path)?;
    let directory = if group.layout().is_v2() { Some(super::open_group(&group)?) } else { None };
    let pid = Pid::from_raw(exec.init_pid)
        .ok_or_else(|| Error::InvalidSpec { reason: "process id 0".to_owned() })?;
    let init =
        pidfd_open(pid, PidfdFlags::empty()).step(|| format!("open process {}", exec.init_pid))?;
    let (own, other) = channel::pair()?;
    let has_pids = exec.spec.linux.namespace(NamespaceKind::Pid).is_some();
    let joined = if has_pids { Joined::enter_pids_of(&init)? } else { Joined::nothing() };
    let mut side = sys::fork(0, directory.as_ref());
    if side.as_ref().is_err_and(|errno| *errno == Errno::BUSY) && directory.is_some() {
        // The container has groups of its own; on version 2 the one above them takes no processes any more.
        let directory = super::open_group(&group.of_member(exec.init_pid)?)?;
        side = sys::fork(0, Some(&directory));
    }
    let side = side.step(|| "make process".to_owned());
    if matches!(side, Ok(Side::Child)) {
        drop(own);
        let child = Child { exec, process: &process, group: &group, init: &init, stdio: &stdio };
        let Err(error) = child.run(&other);
        other.fail(&error);
        exit_now(1)
    }
    joined.leave()?;
    let Side::Parent { pid, pidfd } = side? else { unreachable!("the child never gets here") };
    drop((other, stdio));
    match super::hear(&own, Vec::new()) {
        Ok((console, notes)) => Ok(Started { pid, pidfd, console, notes }),
        Err(error) => {
            super::end(pid, &pidfd);
            Err(error)
        }
    }
}

/// `process` with what it does not say for itself taken from the container: capabilities, limits,
/// profile, score. What the container may not, it may not either.
pub fn confine(spec: &Spec, process: &Process) -> Process {
    let container = &spec.process;
    let mut process = process.clone();
    if process.capabilities.is_none() {
        process.capabilities.clone_from(&container.capabilities);
    }
    if process.rlimits.is_empty() {
        process.rlimits.clone_from(&container.rlimits);
    }
    if process.apparmor_profile.is_empty() {
        process.apparmor_profile.clone_from(&container.apparmor_profile);
    }
    process.oom_score_adj = process.oom_score_adj.or(container.oom_score_adj);
    process.no_new_privileges |= container.no_new_privileges;
    process
}

struct Child<'a> {
    exec: &'a Exec<'a>,
    process: &'a Process,
    group: &'a Cgroup,
    init: &'a OwnedFd,
    stdio: &'a Stdio,
}

impl Child<'_> {
    fn run(&self, channel: &Channel) -> Result<Infallible, Error> {
        sys::reset_signals();
        if !self.group.layout().is_v2() {
            self.group.enter()?;
        }
        setsid().step(|| "start session".to_owned())?;
        let _ = sys::new_session_keyring();
        let profile = open_profile(self.process)?;
        adjust_oom_score(self.process, channel)?;
        let confinement = confinement(self.exec.spec, self.process, profile)?;
        limit_resources(self.process, channel)?;
        self.join()?;
        match self.stdio {
            Stdio::Streams { stdin, stdout, stderr } => take_streams(stdin, stdout, stderr)?,
            Stdio::Terminal => take_terminal(&self.open_terminal()?, channel)?,
        }
        own_streams(self.process);
        become_program(self.process, &confinement)
    }

    /// Enters all namespaces of the container at once; the root comes with the mounts.
    fn join(&self) -> Result<(), Error> {
        let linux = &self.exec.spec.linux;
        let bits = linux
            .namespaces
            .iter()
            .filter(|it| it.kind != NamespaceKind::Pid)
            .fold(0, |bits, it| bits | bit(it.kind));
        sys::set_namespaces(self.init, bits).step(|| "join container".to_owned())?;
        if linux.namespace(NamespaceKind::User).is_some() {
            use rustix::fs::{Gid, Uid};
            let step = || "become root of user namespace".to_owned();
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)?;
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)?;
        }
        Ok(())
    }

    fn open_terminal(&self) -> Result<devices::Terminal, Error> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let root = rustix::fs::open("/", flags | rustix::fs::OFlags::CLOEXEC, 0.into())
            .step(|| "open /".to_owned())?;
        let mut spec = Spec { mounts: self.exec.spec.mounts.clone(), ..Spec::default() };
        spec.process.console_size = self.process.console_size;
        devices::open_terminal(&Root::new(root), &spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Capabilities;

    #[test]
    fn an_exec_is_never_less_confined_than_the_container() {
        let mut spec = Spec::default();
        spec.process.no_new_privileges = true;
        spec.process.capabilities = Some(Capabilities {
            bounding: vec!["CAP_CHOWN".to_owned()],
            ..Capabilities::default()
        });
        let confined = confine(&spec, &Process::default());
        assert!(confined.no_new_privileges);
        assert_eq!(confined.capabilities, spec.process.capabilities);
    }
}

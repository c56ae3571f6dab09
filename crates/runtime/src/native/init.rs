//! What the first process of a container does before it becomes the program.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, fchdir, ioctl_tiocsctty, pivot_root, setsid, umask};
use rustix::system::{setdomainname, sethostname};

use super::channel::Channel;
use super::mounts::{Mounts, set_read_only};
use super::process::{
    Confinement, Sets, become_program, limit_resources, own_streams, take_streams,
};
use super::root::Root;
use super::{Stdio, devices, namespaces, options, sys};
use crate::cgroup::Cgroup;
use crate::error::Step;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::{Error, seccomp};

/// What the new process takes over from its maker.
#[derive(Debug)]
pub(super) struct Init<'a> {
    pub(super) spec: &'a Spec,
    pub(super) rootfs: &'a Path,
    pub(super) group: &'a Cgroup,
    pub(super) stdio: &'a Stdio,
    pub(super) channel: &'a Channel,
}

impl Init<'_> {
    /// Runs every step; returns only with the one that did not work.
    pub(super) fn run(&self) -> Result<Infallible, Error> {
        let linux = &self.spec.linux;
        let user_namespace = linux.namespace(NamespaceKind::User).is_some();
        sys::reset_signals();
        if user_namespace {
            self.channel.wait_go()?;
            become_namespace_root()?;
            sys::unshare(namespaces::late_bits(&linux.namespaces))
                .step(|| "make namespaces".to_owned())?;
        } else if !self.group.layout().is_v2() {
            self.group.enter()?;
        }
        setsid().step(|| "start session".to_owned())?;
        // A keyring cannot be had where the kernel has none, and then none is shared.
        let _ = sys::new_session_keyring();
        self.name_host()?;
        let profile = open_profile(&self.spec.process)?;
        adjust_oom_score(&self.spec.process, self.channel)?;
        let cgroup_namespace = linux.namespace(NamespaceKind::Cgroup).is_some();
        if linux.namespace(NamespaceKind::Cgroup).is_some_and(is_new) {
            sys::unshare(namespaces::bit(NamespaceKind::Cgroup))
                .step(|| "make cgroup namespace".to_owned())?;
        }
        umask(Mode::empty());
        let tree = self.build_root(cgroup_namespace, user_namespace)?;
        self.enter_root(&tree)?;
        let confinement = confinement(self.spec, &self.spec.process, profile)?;
        limit_resources(&self.spec.process, self.channel)?;
        own_streams(&self.spec.process);
        if !user_namespace {
            self.channel.wait_go()?;
        }
        become_program(&self.spec.process, &confinement)
    }

    fn name_host(&self) -> Result<(), Error> {
        if !self.spec.hostname.is_empty() {
            sethostname(self.spec.hostname.as_bytes())
                .step(|| format!("set hostname {:?}", self.spec.hostname))?;
        }
        if !self.spec.domainname.is_empty() {
            setdomainname(self.spec.domainname.as_bytes())
                .step(|| format!("set domainname {:?}", self.spec.domainname))?;
        }
        Ok(())
    }

    /// Puts the root filesystem together, with everything mounted, hidden and linked.
    fn build_root(&self, cgroup_namespace: bool, user_namespace: bool) -> Result<OwnedFd, Error> {
        let linux = &self.spec.linux;
        write_sysctls(self.spec)?;
        let tree = self.bind_root()?;
        let root = Root::new(tree.try_clone().map_err(|error| Error::Step {
            step: "open root".into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })?);
        let mounts = Mounts { root: &root, group: self.group, cgroup_namespace };
        for mount in &self.spec.mounts {
            mounts.make(mount)?;
        }
        devices::populate(&root, self.spec, user_namespace)?;
        self.connect_streams(&root)?;
        mounts.seal_dev(&self.spec.mounts)?;
        mounts.make_read_only(&linux.readonly_paths)?;
        mounts.mask(&linux.masked_paths)?;
        Ok(tree)
    }

    /// Shows the root filesystem as a mount of its own, cut off from the host's mounts.
    fn bind_root(&self) -> Result<OwnedFd, Error> {
        let wanted = options::propagation(&self.spec.linux.rootfs_propagation);
        let host = match wanted {
            Some((MountPropagationFlags::PRIVATE, _)) => MountPropagationFlags::PRIVATE,
            _ => MountPropagationFlags::DOWNSTREAM,
        };
        mount_change("/", host | MountPropagationFlags::REC)
            .step(|| "cut mounts off from the host".to_owned())?;
        let step = || format!("mount root {}", self.rootfs.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, self.rootfs, flags).step(step)?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, self.rootfs, empty).step(step)?;
        Ok(tree)
    }

    fn connect_streams(&self, root: &Root) -> Result<(), Error> {
        match self.stdio {
            Stdio::Streams { stdin, stdout, stderr } => take_streams(stdin, stdout, stderr),
            Stdio::Terminal => {
                let terminal = devices::open_terminal(root, self.spec)?;
                devices::show_console(root, &terminal)?;
                take_terminal(&terminal, self.channel)
            }
        }
    }

    fn enter_root(&self, tree: &OwnedFd) -> Result<(), Error> {
        let step = || "make root the root".to_owned();
        fchdir(tree).step(step)?;
        // The old root comes to lie over the new one and is taken off; nothing of it remains.
        pivot_root(".", ".").step(step)?;
        unmount(".", UnmountFlags::DETACH).step(step)?;
        chdir("/").step(step)?;
        if let Some((kind, deep)) = options::propagation(&self.spec.linux.rootfs_propagation)
            && kind != MountPropagationFlags::PRIVATE
        {
            let deep =
                if deep { MountPropagationFlags::REC } else { MountPropagationFlags::empty() };
            mount_change("/", kind | deep).step(|| "set propagation of /".to_owned())?;
        }
        if self.spec.root.readonly {
            set_read_only(tree, false).step(|| "make / read-only".to_owned())?;
        }
        Ok(())
    }
}

fn is_new(namespace: &crate::spec::Namespace) -> bool {
    namespace.path.is_none()
}

/// In a new user namespace the process has no valid ids until it takes those of its root.
fn become_namespace_root() -> Result<(), Error> {
    use rustix::fs::{Gid, Uid};
    let step = || "become root of user namespace".to_owned();
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)
}

/// Makes the terminal's far end the standard streams and the controlling terminal.
pub(super) fn take_terminal(terminal: &devices::Terminal, channel: &Channel) -> Result<(), Error> {
    channel.console(&terminal.master)?;
    take_streams(&terminal.slave, &terminal.slave, &terminal.slave)?;
    ioctl_tiocsctty(&terminal.slave).step(|| "take terminal".to_owned())
}

/// What `process` is confined by in the container of `spec`.
pub(super) fn confinement(
    spec: &Spec,
    process: &Process,
    profile: Option<(OwnedFd, String)>,
) -> Result<Confinement, Error> {
    let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    Ok(Confinement {
        filter,
        no_new_privileges: process.no_new_privileges,
        capabilities: Sets::new(process.capabilities.as_ref())?,
        profile,
    })
}

/// Opens the file of the host's procfs that sets the AppArmor profile of the next program.
pub(super) fn open_profile(process: &Process) -> Result<Option<(OwnedFd, String)>, Error> {
    let profile = &process.apparmor_profile;
    if profile.is_empty() || profile == "unconfined" {
        return Ok(None);
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    let file = open("/proc/self/attr/apparmor/exec")
        .or_else(|_| open("/proc/self/attr/exec"))
        .step(|| format!("set apparmor profile {profile:?}"))?;
    Ok(Some((file, profile.clone())))
}

/// Sets the score; a lower one than the daemon's needs a right that some hosts withhold.
pub(super) fn adjust_oom_score(process: &Process, channel: &Channel) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    let step = || format!("set oom_score_adj {score}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/proc/self/oom_score_adj", flags, Mode::empty()).step(step)?;
    match rustix::io::write(&file, score.to_string().as_bytes()) {
        Ok(_) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => {
            channel.note(&format!("this host does not grant oom_score_adj {score}, left as it is"));
            Ok(())
        }
        Err(errno) => Err(Error::Step { step: step(), errno }),
    }
}

/// Kernel parameters that belong to the IPC namespace.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Writes kernel parameters through the host's procfs, which shows those of our own namespaces.
fn write_sysctls(spec: &Spec) -> Result<(), Error> {
    for (key, value) in &spec.linux.sysctl {
        let path = sysctl_path(spec, key)?;
        let step = || format!("set sysctl {key}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path.as_str(), flags, Mode::empty()).step(step)?;
        rustix::io::write(&file, value.as_bytes()).step(step)?;
    }
    Ok(())
}

/// The file of a parameter, if it is one of a namespace the container has for itself.
fn sysctl_path(spec: &Spec, key: &str) -> Result<String, Error> {
    let own = |kind| spec.linux.namespace(kind).is_some();
    let dotted = key.replace('/', ".");
    let separate = if dotted.starts_with("net.") {
        own(NamespaceKind::Network)
    } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        own(NamespaceKind::Ipc)
    } else {
        dotted == "kernel.domainname" && own(NamespaceKind::Uts)
    };
    // A key may be written with slashes, so that names with dots in them can be said.
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !separate || !plain {
        let reason = format!("sysctl {key:?} is not in a separate kernel namespace");
        return Err(Error::InvalidSpec { reason });
    }
    Ok(format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Namespace;

    #[test]
    fn only_parameters_of_own_namespaces_may_be_set() {
        let mut spec = Spec::default();
        spec.linux.namespaces = vec![Namespace { kind: NamespaceKind::Network, path: None }];
        let cases = [
            ("net.core.somaxconn", Some("/proc/sys/net/core/somaxconn")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")),
            ("kernel.shmmax", None),
            ("kernel.core_pattern", None),
            ("net/../kernel/core_pattern", None),
            ("net...kernel", None),
            ("vm.overcommit_memory", None),
        ];
        for (key, path) in cases {
            assert_eq!(sysctl_path(&spec, key).ok().as_deref(), path, "{key}");
        }
    }
}

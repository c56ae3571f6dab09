//! Namespaces to make and namespaces to join.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::sys;
use crate::Error;
use crate::error::Step;
use crate::spec::{Namespace, NamespaceKind};

/// The `CLONE_NEW*` bit of a kind, from linux/sched.h.
pub(super) fn bit(kind: NamespaceKind) -> u64 {
    match kind {
        NamespaceKind::Time => 0x80,
        NamespaceKind::Mount => 0x0002_0000,
        NamespaceKind::Cgroup => 0x0200_0000,
        NamespaceKind::Uts => 0x0400_0000,
        NamespaceKind::Ipc => 0x0800_0000,
        NamespaceKind::User => 0x1000_0000,
        NamespaceKind::Pid => 0x2000_0000,
        NamespaceKind::Network => 0x4000_0000,
    }
}

/// The namespaces to be made at fork. A cgroup namespace comes later, when the process is in its
/// group, which becomes the root it sees; see also [`late_bits`].
pub(super) fn new_bits(namespaces: &[Namespace]) -> u64 {
    let late = late_bits(namespaces);
    namespaces
        .iter()
        .filter(|it| it.path.is_none() && it.kind != NamespaceKind::Cgroup)
        .fold(0, |bits, it| bits | bit(it.kind))
        & !late
}

/// The namespaces to be made by the root of a new user namespace: message queues belong to whoever
/// makes the IPC namespace, and nobody inside has the ids of the caller.
pub(super) fn late_bits(namespaces: &[Namespace]) -> u64 {
    let is_new = |kind| namespaces.iter().any(|it| it.kind == kind && it.path.is_none());
    if is_new(NamespaceKind::User) && is_new(NamespaceKind::Ipc) {
        bit(NamespaceKind::Ipc)
    } else {
        0
    }
}

/// Existing namespaces the calling thread has entered, for a child to be born into.
#[derive(Debug)]
pub(super) struct Joined {
    own: Vec<(NamespaceKind, OwnedFd)>,
}

impl Joined {
    /// Enters every namespace that has a path. On an error the thread is back where it was.
    pub(super) fn enter(namespaces: &[Namespace]) -> Result<Self, Error> {
        let mut joined = Self { own: Vec::new() };
        for namespace in namespaces {
            let Some(path) = &namespace.path else { continue };
            if let Err(error) = joined.enter_one(namespace.kind, path) {
                joined.leave()?;
                return Err(error);
            }
        }
        Ok(joined)
    }

    fn enter_one(&mut self, kind: NamespaceKind, path: &std::path::Path) -> Result<(), Error> {
        let step = || format!("join {kind:?} namespace {}", path.display());
        if matches!(kind, NamespaceKind::Mount | NamespaceKind::User) {
            let reason = format!("cannot {}", step());
            return Err(Error::InvalidSpec { reason });
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let target = rustix::fs::open(path, flags, Mode::empty()).step(step)?;
        let own = rustix::fs::open(own_path(kind), flags, Mode::empty()).step(step)?;
        sys::set_namespaces(&target, bit(kind)).step(step)?;
        self.own.push((kind, own));
        Ok(())
    }

    /// Goes back to the namespaces the thread came from.
    pub(super) fn leave(self) -> Result<(), Error> {
        for (kind, own) in self.own {
            sys::set_namespaces(&own, bit(kind))
                .step(|| format!("return to own {kind:?} namespace"))?;
        }
        Ok(())
    }

    /// Enters the process ids of a running process, so that the next child is born among them.
    pub(super) fn enter_pids_of(pidfd: &OwnedFd) -> Result<Self, Error> {
        let step = || "join process ids of container".to_owned();
        let kind = NamespaceKind::Pid;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::open(own_path(kind), flags, Mode::empty()).step(step)?;
        sys::set_namespaces(pidfd, bit(kind)).step(step)?;
        Ok(Self { own: vec![(kind, own)] })
    }

    /// Nothing entered.
    pub(super) fn nothing() -> Self {
        Self { own: Vec::new() }
    }
}

fn own_path(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "/proc/self/ns/pid",
        NamespaceKind::Network => "/proc/self/ns/net",
        NamespaceKind::Mount => "/proc/self/ns/mnt",
        NamespaceKind::Ipc => "/proc/self/ns/ipc",
        NamespaceKind::Uts => "/proc/self/ns/uts",
        NamespaceKind::User => "/proc/self/ns/user",
        NamespaceKind::Cgroup => "/proc/self/ns/cgroup",
        NamespaceKind::Time => "/proc/self/ns/time",
    }
}

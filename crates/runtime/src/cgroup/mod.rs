//! The control group of one container: limits, membership, freezing, statistics.
//!
//! Both versions are served. On version 1 every hierarchy holds a directory of the same path, and
//! on a hybrid host the version 2 tree is left alone.

mod device_filter;
mod files;
mod stats;
mod v1;
mod v2;

use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

pub use stats::{BlockIo, Cpu, MemoryUse, Stats};

use crate::Error;
use crate::spec::Resources;

const ROOT: &str = "/sys/fs/cgroup";
/// f_type of a cgroup v2 mount, from linux/magic.h.
const CGROUP2_MAGIC: u32 = 0x6367_7270;
/// Controllers of version 1 whose groups tell who is inside.
const MEMBERS: [&str; 4] = ["freezer", "pids", "memory", "cpu"];
/// Times a group is read anew while its members still fork; each round finds fewer.
const KILL_ROUNDS_MAX: u32 = 64;
/// Times a group is tried to be removed, and the longest wait between two, in nanoseconds:
/// together ten seconds, in which even a process with gigabytes to free is gone.
const REMOVE_ROUNDS_MAX: u32 = 1000;
const REMOVE_WAIT_NS: i64 = 10_000_000;

/// How the host's hierarchies are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One directory per version 1 controller.
    V1(Vec<v1::Hierarchy>),
    /// One tree.
    V2(PathBuf),
}

/// The group of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    layout: Layout,
    path: PathBuf,
}

impl Layout {
    /// Looks at the host.
    pub fn detect() -> Self {
        if is_cgroup2(Path::new(ROOT)) {
            Self::V2(PathBuf::from(ROOT))
        } else {
            Self::V1(v1::hierarchies(ROOT))
        }
    }

    /// Whether containers can be held in what is there: where nothing is mounted they would run without
    /// limits, and nobody would know which processes are theirs.
    ///
    /// # Errors
    /// [`Error::NoCgroups`] or [`Error::NoDevices`].
    pub fn check(&self) -> Result<(), Error> {
        let Self::V1(hierarchies) = self else { return Ok(()) };
        let has = |names: &[&str]| {
            hierarchies.iter().any(|it| it.controllers.iter().any(|name| names.contains(name)))
        };
        if !has(&MEMBERS) {
            return Err(Error::NoCgroups { root: PathBuf::from(ROOT) });
        }
        if !has(&["devices"]) {
            return Err(Error::NoDevices);
        }
        Ok(())
    }

    /// Whether this is the single tree of version 2.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }
}

impl Cgroup {
    /// The group at `path` beneath every hierarchy of the host; makes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] when the path is relative or steps upwards.
    pub fn new(path: &str) -> Result<Self, Error> {
        Self::within(Layout::detect(), path)
    }

    /// As [`Cgroup::new`] with a layout looked up before.
    ///
    /// # Errors
    /// As [`Cgroup::new`].
    pub fn within(layout: Layout, path: &str) -> Result<Self, Error> {
        let relative = path.strip_prefix('/').filter(|rest| !rest.is_empty());
        let safe = |rest: &&str| !rest.split('/').any(|part| part == "..");
        match relative.filter(safe) {
            Some(relative) => Ok(Self { layout, path: PathBuf::from(relative) }),
            None => Err(Error::InvalidSpec { reason: format!("cgroups path {path:?}") }),
        }
    }

    /// The group that process `pid` is in, which is this one or one beneath it. Version 2 only.
    ///
    /// # Errors
    /// [`Error::NotMember`] when the process is elsewhere or gone.
    pub fn of_member(&self, pid: i32) -> Result<Self, Error> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let listed = files::read(&file)?;
        let path = listed.lines().find_map(|line| line.strip_prefix("0::/")).map(PathBuf::from);
        match path.filter(|path| path.starts_with(&self.path)) {
            Some(path) => Ok(Self { layout: self.layout.clone(), path }),
            None => Err(Error::NotMember { pid, group: self.path.clone() }),
        }
    }

    /// The layout this group lives in.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its directories: one on version 2, one per hierarchy on version 1.
    pub fn directories(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V1(hierarchies) => {
                hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path)).collect()
            }
            Layout::V2(root) => vec![root.join(&self.path)],
        }
    }

    /// Makes the directories and what must be there before a process can enter.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the directory.
    pub fn create(&self) -> Result<(), Error> {
        match &self.layout {
            Layout::V1(hierarchies) => v1::create(hierarchies, &self.path),
            Layout::V2(root) => v2::create(root, &self.path),
        }
    }

    /// Sets the device rules of a new group. To be done before a process enters: there is a moment
    /// in between when no device may be used or made.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the file.
    pub fn rule_devices(&self, resources: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V1(hierarchies) => v1::devices(hierarchies, &self.path, resources),
            Layout::V2(root) => device_filter::attach(&root.join(&self.path), &resources.devices),
        }
    }

    /// Writes the limits that are set. Returns what could not be had on this kernel and is no
    /// danger.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the file.
    pub fn limit(&self, resources: &Resources) -> Result<Vec<String>, Error> {
        match &self.layout {
            Layout::V1(hierarchies) => v1::limits(hierarchies, &self.path, resources),
            Layout::V2(root) => v2::limits(&root.join(&self.path), resources),
        }
    }

    /// Moves the calling thread in. A thread that moves itself spares the kernel the wait for a
    /// grace period that moving another process costs.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the file.
    pub fn enter(&self) -> Result<(), Error> {
        let file = if self.layout.is_v2() { "cgroup.procs" } else { "tasks" };
        self.directories().iter().try_for_each(|it| files::write(&it.join(file), "0"))
    }

    /// Moves another process in.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the file.
    pub fn attach(&self, pid: i32) -> Result<(), Error> {
        let pid = pid.to_string();
        self.directories().iter().try_for_each(|it| files::write(&it.join("cgroup.procs"), &pid))
    }

    /// Stops all processes, or lets them go on.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming the file, also when the kernel does not get there in time.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        match &self.layout {
            Layout::V1(hierarchies) => v1::freeze(hierarchies, &self.path, frozen),
            Layout::V2(root) => v2::freeze(&root.join(&self.path), frozen),
        }
    }

    /// Ids of all processes inside, groups beneath included.
    pub fn pids(&self) -> Vec<i32> {
        self.member_directory().map(|it| files::pids(&it)).unwrap_or_default()
    }

    /// Sends `signal` to every process inside; SIGKILL until none is left to be found.
    ///
    /// # Errors
    /// [`Error::Step`] when a process may not be signalled.
    pub fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        if signal == Signal::KILL && self.kill_v2() {
            return Ok(());
        }
        let rounds = if signal == Signal::KILL { KILL_ROUNDS_MAX } else { 1 };
        for _ in 0..rounds {
            let pids = self.pids();
            if pids.is_empty() {
                break;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                match kill_process(pid, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        let step = format!("signal process {}", pid.as_raw_nonzero());
                        return Err(Error::Step { step, errno });
                    }
                }
            }
        }
        Ok(())
    }

    fn kill_v2(&self) -> bool {
        match &self.layout {
            Layout::V1(_) => false,
            Layout::V2(root) => {
                files::write(&root.join(&self.path).join("cgroup.kill"), "1").is_ok()
            }
        }
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        match &self.layout {
            Layout::V1(hierarchies) => v1::directory_of(hierarchies, &self.path, "memory")
                .map_or(0, |it| files::keyed(&it.join("memory.oom_control"), "oom_kill")),
            Layout::V2(root) => {
                files::keyed(&root.join(&self.path).join("memory.events"), "oom_kill")
            }
        }
    }

    /// Reads the counters.
    pub fn stats(&self) -> Stats {
        match &self.layout {
            Layout::V1(hierarchies) => stats::v1(hierarchies, &self.path),
            Layout::V2(root) => stats::v2(&root.join(&self.path)),
        }
    }

    /// Removes the directories, those beneath included. What is gone already is no error.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming a directory that has processes in it.
    pub fn remove(&self) -> Result<(), Error> {
        self.directories().iter().try_for_each(|it| files::remove_tree(it))?;
        // Other runtimes make a group in the version 2 tree of a hybrid host as well. A plain
        // directory of that name is none of ours.
        let hybrid = Path::new(ROOT).join("unified");
        if self.layout.is_v2() || !is_cgroup2(&hybrid) {
            return Ok(());
        }
        files::remove_tree(&hybrid.join(&self.path))
    }

    /// Ends every process inside, frozen ones too, and removes the directories.
    ///
    /// # Errors
    /// [`Error::Cgroup`] naming a directory that stays.
    pub fn kill_and_remove(&self) -> Result<(), Error> {
        if !self.pids().is_empty() {
            // A frozen process does not die. Without a freezer none is frozen.
            let _ = self.freeze(false);
            self.signal_all(Signal::KILL)?;
        }
        let mut last = self.remove();
        for _ in 0..REMOVE_ROUNDS_MAX {
            if last.is_ok() {
                break;
            }
            self.wait_for_one();
            last = self.remove();
        }
        last
    }

    /// Waits until a member has ended, or a short while for the kernel to let go of the last.
    fn wait_for_one(&self) {
        let member = self.pids().into_iter().find_map(Pid::from_raw);
        let pidfd = member.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let timeout = Timespec { tv_sec: 0, tv_nsec: REMOVE_WAIT_NS };
        let mut waited: Vec<PollFd<'_>> =
            pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // An interrupted wait only makes the round shorter.
        let _ = poll(&mut waited, Some(&timeout));
    }

    /// A directory that lists the members.
    fn member_directory(&self) -> Option<PathBuf> {
        match &self.layout {
            Layout::V1(hierarchies) => {
                MEMBERS.iter().find_map(|name| v1::directory_of(hierarchies, &self.path, name))
            }
            Layout::V2(root) => Some(root.join(&self.path)),
        }
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| u32::try_from(stat.f_type).is_ok_and(|it| it == CGROUP2_MAGIC))
}

/// The directory of `path` in the hierarchy that systemd tracks, where the host has one.
pub fn tracking_directory(path: &str) -> Option<PathBuf> {
    let relative = path.strip_prefix('/')?;
    match Layout::detect() {
        Layout::V2(root) => Some(root.join(relative)),
        Layout::V1(_) => {
            let systemd = Path::new(ROOT).join("systemd");
            systemd.is_dir().then(|| systemd.join(relative))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_control_groups_is_told_what_to_do() {
        let hierarchy = |name| v1::Hierarchy { mount: PathBuf::new(), controllers: vec![name] };
        let nothing = Layout::V1(Vec::new()).check().unwrap_err().to_string();
        assert!(nothing.starts_with("control groups are not mounted at /sys/fs/cgroup: mount"));
        assert!(nothing.contains("nsenter --net="));
        let error = Layout::V1(vec![hierarchy("pids")]).check().unwrap_err();
        assert_eq!(error.to_string(), "Devices cgroup isn't mounted");
        Layout::V1(vec![hierarchy("pids"), hierarchy("devices")]).check().unwrap();
        Layout::V2(PathBuf::from("/sys/fs/cgroup")).check().unwrap();
    }

    #[test]
    fn a_path_that_steps_upwards_is_refused() {
        for path in ["", "/", "relative", "/a/../../b", "/.."] {
            assert!(Cgroup::within(Layout::V1(Vec::new()), path).is_err(), "{path}");
        }
        assert!(Cgroup::within(Layout::V1(Vec::new()), "/docker/a..b").is_ok());
    }
}

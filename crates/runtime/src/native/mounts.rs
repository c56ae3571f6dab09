//! Makes the mounts of a container beneath its root, before the root becomes `/`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, fstat, major, minor, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    mount_remount, move_mount, open_tree,
};

use super::options::{Options, parse};
use super::root::{Root, is_directory, is_procfs, proc_path};
use super::sys::{MOUNT_ATTR_RDONLY, MountAttributes, mount_setattr};
use crate::Error;
use crate::cgroup::{Cgroup, Layout};
use crate::error::Step;
use crate::spec::Mount;

/// Files of procfs that a bind mount may cover: statistics that LXCFS and the like replace.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
];

/// What the mounts of one container need to know.
#[derive(Debug)]
pub(super) struct Mounts<'a> {
    pub(super) root: &'a Root,
    pub(super) group: &'a Cgroup,
    /// Whether the container sees its own group as the root of the cgroup tree.
    pub(super) cgroup_namespace: bool,
}

impl Mounts<'_> {
    /// Makes one mount.
    pub(super) fn make(&self, it: &Mount) -> Result<(), Error> {
        let options = parse(&it.options);
        check_destination(it, &options)?;
        match it.kind.as_str() {
            "cgroup" | "cgroup2" => self.cgroup(it, &options),
            "proc" | "sysfs" => self.kernel_view(it, &options),
            "bind" => self.bind(it, &options),
            _ if options.bind => self.bind(it, &options),
            _ => self.filesystem(it, options),
        }
    }

    fn bind(&self, it: &Mount, options: &Options) -> Result<(), Error> {
        let recursive =
            if options.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
        let tree = open_tree(CWD, it.source.as_str(), flags)
            .step(|| format!("open source {:?} of mount at {:?}", it.source, it.destination))?;
        let step = || format!("mount {:?} at {:?}", it.source, it.destination);
        let attributes = options.attributes();
        if attributes.set | attributes.clear != 0 {
            mount_setattr(&tree, options.recursive_read_only, attributes).step(step)?;
        }
        // Without a word about it, nothing mounted inside ever shows outside or the reverse.
        let (kind, deep) = options.propagation.unwrap_or((MountPropagationFlags::PRIVATE, true));
        let propagation =
            MountAttributes { propagation: u64::from(kind.bits()), ..MountAttributes::default() };
        mount_setattr(&tree, deep, propagation).step(step)?;
        let target = if is_directory(&tree).step(step)? {
            self.root.make_directory(&it.destination)
        } else {
            self.root.make_file(&it.destination)
        };
        let target = target.step(|| format!("make mount point {:?}", it.destination))?;
        attach(&tree, &target).step(step)
    }

    /// procfs and sysfs: masks and read-only paths rely on where they are, so no link may lead
    /// there.
    fn kernel_view(&self, it: &Mount, options: &Options) -> Result<(), Error> {
        let ordinary = || Error::InvalidSpec {
            reason: format!("filesystem {:?} must be mounted on ordinary directory", it.kind),
        };
        let target = match self.root.resolve_without_links(&it.destination) {
            Err(Errno::NOENT) => {
                self.root
                    .make_directory(&it.destination)
                    .step(|| format!("make mount point {:?}", it.destination))?;
                self.root.resolve_without_links(&it.destination)
            }
            other => other,
        }
        .map_err(|_| ordinary())?;
        if !is_directory(&target).step(|| format!("look at {:?}", it.destination))? {
            return Err(ordinary());
        }
        self.new_filesystem(it, options, &target)
    }

    fn filesystem(&self, it: &Mount, mut options: Options) -> Result<(), Error> {
        let existing = self.root.resolve(&it.destination);
        let target = self
            .root
            .make_directory(&it.destination)
            .step(|| format!("make mount point {:?}", it.destination))?;
        if it.kind == "tmpfs" {
            keep_mode(&mut options, existing.ok().as_ref());
        }
        if it.destination == "/dev" {
            // Device nodes come first; `seal_dev` makes it read-only afterwards.
            options.set -= MountFlags::RDONLY;
        }
        self.new_filesystem(it, &options, &target)
    }

    fn new_filesystem(&self, it: &Mount, options: &Options, target: &OwnedFd) -> Result<(), Error> {
        let step = || format!("mount {} at {:?}", it.kind, it.destination);
        let data = std::ffi::CString::new(options.data.as_str()).map_err(|_| {
            Error::InvalidSpec { reason: format!("options of mount at {:?}", it.destination) }
        })?;
        let (source, kind) = (it.source.as_str(), it.kind.as_str());
        mount(source, proc_path(target), kind, options.set, data.as_c_str()).step(step)?;
        if let Some((kind, deep)) = options.propagation {
            let deep =
                if deep { MountPropagationFlags::REC } else { MountPropagationFlags::empty() };
            let new = self.root.resolve(&it.destination).step(step)?;
            mount_change(proc_path(&new), kind | deep).step(step)?;
        }
        Ok(())
    }

    /// The cgroup tree, read-only unless the specification says `rw` in so many words: through a
    /// writable one, root in the container raises its own limits.
    fn cgroup(&self, it: &Mount, options: &Options) -> Result<(), Error> {
        let writable = it.options.iter().any(|word| word == "rw") && options.is_writable();
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if !writable {
            flags |= MountFlags::RDONLY;
        }
        let target = self
            .root
            .make_directory(&it.destination)
            .step(|| format!("make mount point {:?}", it.destination))?;
        match self.group.layout() {
            Layout::V2(_) => mount("cgroup", proc_path(&target), "cgroup2", flags, c"nsdelegate")
                .or_else(|_| mount("cgroup", proc_path(&target), "cgroup2", flags, None))
                .step(|| format!("mount cgroup2 at {:?}", it.destination)),
            Layout::V1(_) => self.cgroup_v1(it, &target, flags),
        }
    }

    fn cgroup_v1(&self, it: &Mount, target: &OwnedFd, flags: MountFlags) -> Result<(), Error> {
        let step = || format!("mount cgroup at {:?}", it.destination);
        let base = flags - MountFlags::RDONLY;
        mount("tmpfs", proc_path(target), "tmpfs", base, c"mode=555").step(step)?;
        let tmpfs = self.root.resolve(&it.destination).step(step)?;
        let Layout::V1(hierarchies) = self.group.layout() else { return Ok(()) };
        for (hierarchy, own) in hierarchies.iter().zip(self.group.directories()) {
            let name = hierarchy.controllers.join(",");
            rustix::fs::mkdirat(&tmpfs, &name, 0o755.into()).step(step)?;
            let point = format!("{}/{name}", proc_path(&tmpfs));
            if self.cgroup_namespace {
                let data = hierarchy_option(&name);
                let source = if name == "systemd" { "systemd" } else { "cgroup" };
                mount(source, &point, "cgroup", flags, data.as_c_str()).step(step)?;
            } else {
                let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let tree = open_tree(CWD, &own, clone).step(step)?;
                let attributes = parse(&["nosuid".into(), "nodev".into(), "noexec".into()]);
                let mut attributes = attributes.attributes();
                if flags.contains(MountFlags::RDONLY) {
                    attributes.set |= MOUNT_ATTR_RDONLY;
                }
                attributes.propagation = u64::from(MountPropagationFlags::PRIVATE.bits());
                mount_setattr(&tree, false, attributes).step(step)?;
                let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(&tree, "", CWD, &point, empty).step(step)?;
            }
            for alias in hierarchy.controllers.iter().filter(|alias| **alias != name) {
                symlinkat(&name, &tmpfs, *alias).step(step)?;
            }
        }
        if flags.contains(MountFlags::RDONLY) {
            mount_remount(proc_path(&tmpfs), flags, c"mode=555").step(step)?;
        }
        Ok(())
    }

    /// Makes `/dev` read-only where the specification wants that.
    pub(super) fn seal_dev(&self, mounts: &[Mount]) -> Result<(), Error> {
        let wanted = mounts.iter().filter(|it| it.destination == "/dev" && it.kind != "bind");
        for it in wanted {
            if !parse(&it.options).is_writable() {
                let dev = self.root.resolve("/dev").step(|| "open /dev".to_owned())?;
                set_read_only(&dev, false).step(|| "make /dev read-only".to_owned())?;
            }
        }
        Ok(())
    }

    /// Hides `paths`: files behind a null device, directories behind nothing.
    pub(super) fn mask(&self, paths: &[String]) -> Result<(), Error> {
        let mut null = None;
        for path in paths {
            let step = || format!("mask {path:?}");
            let target = match self.root.resolve(path) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(Error::Step { step: step(), errno }),
            };
            if is_directory(&target).step(step)? {
                let flags = MountFlags::RDONLY;
                mount("tmpfs", proc_path(&target), "tmpfs", flags, None).step(step)?;
                continue;
            }
            let null = match &null {
                Some(null) => null,
                None => null.insert(self.null()?),
            };
            attach(&clone_of(null, false).step(step)?, &target).step(step)?;
        }
        Ok(())
    }

    /// A null device to hide files behind: the container's own, since root in the container may
    /// change its mode and owner. Where the image has put something else, a mount of the host's
    /// that cannot be changed.
    fn null(&self) -> Result<OwnedFd, Error> {
        let step = || "open /dev/null".to_owned();
        if let Ok(own) = self.root.resolve_without_links("/dev/null")
            && is_null(&own).step(step)?
        {
            return Ok(own);
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let host = rustix::fs::open("/dev/null", flags, 0.into()).step(step)?;
        if !is_null(&host).step(step)? {
            return Err(Error::Step { step: step(), errno: Errno::NODEV });
        }
        let sealed = clone_of(&host, false).step(step)?;
        set_read_only(&sealed, false).step(step)?;
        Ok(sealed)
    }

    /// Makes `paths` read-only, with everything mounted beneath them.
    pub(super) fn make_read_only(&self, paths: &[String]) -> Result<(), Error> {
        for path in paths {
            let step = || format!("make {path:?} read-only");
            let target = match self.root.resolve(path) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(Error::Step { step: step(), errno }),
            };
            let tree = clone_of(&target, true).step(step)?;
            set_read_only(&tree, true).step(step)?;
            attach(&tree, &target).step(step)?;
        }
        Ok(())
    }
}

/// The option that selects a version 1 hierarchy; systemd's has a name instead of a controller.
fn hierarchy_option(name: &str) -> std::ffi::CString {
    let text = if name == "systemd" { "name=systemd" } else { name };
    std::ffi::CString::new(text).expect("controller names have no zero byte")
}

/// A tmpfs over a directory of the image looks as that directory did.
fn keep_mode(options: &mut Options, existing: Option<&OwnedFd>) {
    let has_mode = options.data.split(',').any(|word| word.starts_with("mode="));
    let Some(stat) = existing.filter(|_| !has_mode).and_then(|fd| fstat(fd).ok()) else { return };
    let separator = if options.data.is_empty() { "" } else { "," };
    let mode = stat.st_mode & 0o7777;
    options.data = format!("{}{separator}mode={mode:o}", options.data);
}

/// Mounts at or beneath `/proc` could feed forged kernel files to whatever trusts them.
fn check_destination(it: &Mount, options: &Options) -> Result<(), Error> {
    let path: Vec<&str> =
        it.destination.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if !it.destination.starts_with('/') || path.contains(&"..") {
        let reason = format!("mount destination {:?} is not an absolute path", it.destination);
        return Err(Error::InvalidSpec { reason });
    }
    if path.first() != Some(&"proc") {
        return Ok(());
    }
    let refused = || Error::InvalidSpec {
        reason: format!("{:?} cannot be mounted because it is inside /proc", it.destination),
    };
    if path.len() == 1 {
        let is_proc = match it.kind.as_str() {
            "proc" => true,
            _ if options.bind || it.kind == "bind" => {
                rustix::fs::open(it.source.as_str(), rustix::fs::OFlags::PATH, 0.into())
                    .and_then(is_procfs)
                    .unwrap_or(false)
            }
            _ => false,
        };
        return if is_proc { Ok(()) } else { Err(refused()) };
    }
    let normal = format!("/{}", path.join("/"));
    let is_bind = options.bind || it.kind == "bind";
    if is_bind && PROC_FILES.contains(&normal.as_str()) { Ok(()) } else { Err(refused()) }
}

fn is_null(fd: impl AsFd) -> rustix::io::Result<bool> {
    let stat = fstat(fd)?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_device && device == (1, 3))
}

/// A mount of what `fd` names, not yet attached anywhere.
pub(super) fn clone_of(fd: impl AsFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let recursive = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | recursive;
    open_tree(fd, "", flags)
}

/// Attaches an unattached mount over what `target` names.
pub(super) fn attach(tree: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

pub(super) fn set_read_only(tree: impl AsFd, recursive: bool) -> rustix::io::Result<()> {
    let attributes = MountAttributes { set: MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    mount_setattr(tree, recursive, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_over_procfs_are_refused_save_for_a_few_files() {
        let cases = [
            ("/proc", "proc", "proc", true),
            ("/proc", "tmpfs", "tmpfs", false),
            ("/proc", "bind", "/tmp", false),
            ("/proc", "bind", "/proc", true),
            ("/proc/sys", "tmpfs", "tmpfs", false),
            ("//proc/./self", "bind", "/tmp", false),
            ("/proc/meminfo", "bind", "/tmp/meminfo", true),
            ("/process", "bind", "/tmp", true),
            ("/a/../proc/sys", "bind", "/tmp", false),
            ("relative", "bind", "/tmp", false),
        ];
        for (destination, kind, source, allowed) in cases {
            let it = Mount {
                destination: destination.to_owned(),
                kind: kind.to_owned(),
                source: source.to_owned(),
                options: Vec::new(),
            };
            assert_eq!(check_destination(&it, &parse(&[])).is_ok(), allowed, "{destination}");
        }
    }
}

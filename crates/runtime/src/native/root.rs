//! Paths inside a container's root, followed so that no link leads out of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat2, readlinkat,
};
use rustix::io::Errno;

/// Links followed before a path counts as a loop, as in the kernel.
const LINKS_MAX: u32 = 40;

/// f_type of procfs, from linux/magic.h.
const PROC_MAGIC: u32 = 0x9fa0;

/// The root directory of a container that is being built.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
}

impl Root {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// What `path` names, every link taken as one inside the root.
    pub(super) fn resolve(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// As [`Root::resolve`], and refuses any link on the way (ELOOP).
    pub(super) fn resolve_without_links(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens a file for reading.
    pub(super) fn open_read(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.open(path, flags, ResolveFlags::empty())
    }

    /// Opens a terminal multiplexer or the like for reading and writing.
    pub(super) fn open_device(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::RDWR | OFlags::NOCTTY, ResolveFlags::empty())
    }

    fn open(&self, path: &str, flags: OFlags, more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere on the host raced with the walk.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// The directory at `path`, made with its parents where missing.
    pub(super) fn make_directory(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let mut hops = 0;
        self.make_directory_within(path, &mut hops)
    }

    fn make_directory_within(&self, path: &str, hops: &mut u32) -> rustix::io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut prefix = String::from("/");
        let mut parent = self.resolve("/")?;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let next = format!("{prefix}/{name}");
            parent = match self.resolve(&next) {
                Ok(found) => found,
                Err(Errno::NOENT) => self.make_one(&parent, name, &prefix, hops)?,
                Err(errno) => return Err(errno),
            };
            prefix = next;
        }
        Ok(parent)
    }

    /// Makes `name` in `parent`; where a link to nowhere stands, its target inside the root.
    fn make_one(
        &self,
        parent: &OwnedFd,
        name: &str,
        prefix: &str,
        hops: &mut u32,
    ) -> rustix::io::Result<OwnedFd> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        match self.resolve(&format!("{prefix}/{name}")) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        *hops += 1;
        if *hops > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let target = readlinkat(parent, name, Vec::new())?;
        let target = target.to_str().map_err(|_| Errno::ILSEQ)?;
        let path =
            if target.starts_with('/') { target.to_owned() } else { format!("{prefix}/{target}") };
        self.make_directory_within(&path, hops)
    }

    /// The file at `path`, made empty where missing; its directories too.
    pub(super) fn make_file(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, mode).map(drop)?;
        self.resolve(path)
    }

    /// The directory of `path`, made where missing, and the last name.
    pub(super) fn make_parent<'p>(&self, path: &'p str) -> rustix::io::Result<(OwnedFd, &'p str)> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::INVAL);
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.make_directory(parent)?, name))
    }
}

pub(super) fn is_directory(fd: impl AsFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

pub(super) fn is_procfs(fd: impl AsFd) -> rustix::io::Result<bool> {
    Ok(u32::try_from(fstatfs(fd)?.f_type).is_ok_and(|magic| magic == PROC_MAGIC))
}

/// A path by which mount(2) reaches exactly what `fd` names. Needs the host's `/proc`.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let fd = fs::File::open(directory.path()).unwrap().into();
        (directory, Root::new(fd))
    }

    #[test]
    fn an_absolute_link_stays_inside_the_root() {
        let (directory, root) = root();
        symlink("/outside", directory.path().join("link")).unwrap();
        root.make_directory("/link/deep").unwrap();
        assert!(directory.path().join("outside/deep").is_dir());
    }

    #[test]
    fn a_link_upwards_stays_inside_the_root() {
        let (directory, root) = root();
        symlink("../../../../../../up", directory.path().join("link")).unwrap();
        root.make_file("/link/file").unwrap();
        assert!(directory.path().join("up/file").is_file());
    }

    #[test]
    fn links_in_a_circle_are_refused() {
        let (directory, root) = root();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert_eq!(root.make_directory("/a/x").unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_growing_chain_of_dangling_links_ends() {
        let (directory, root) = root();
        symlink("a/b", directory.path().join("a")).unwrap();
        assert!(root.make_directory("/a/x").is_err());
    }

    #[test]
    fn steps_upwards_in_the_path_itself_stay_inside() {
        let (directory, root) = root();
        root.make_directory("/../../x/./y").unwrap();
        assert!(directory.path().join("x/y").is_dir());
    }

    #[test]
    fn a_link_is_refused_where_none_is_allowed() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("etc")).unwrap();
        symlink("etc", directory.path().join("proc")).unwrap();
        assert_eq!(root.resolve_without_links("/proc").unwrap_err(), Errno::LOOP);
    }
}

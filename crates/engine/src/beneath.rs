//! Files inside somebody else's tree: paths are resolved by the kernel with the tree as root, so no link and
//! no `..` of a container's leads out of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory that is `/` to all paths beneath it.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens what `path` leads to, links followed within the tree.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let relative = relative(path);
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.0, relative, flags, Mode::empty(), IN_ROOT)?)
    }

    /// The text of a file of at most `max` bytes; more is an error. A missing file is `None`.
    pub(crate) fn read_text(&self, path: &Path, max: u64) -> io::Result<Option<String>> {
        // Without O_NONBLOCK a pipe in the file's place would hold us for ever.
        let file = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => File::from(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Makes a directory and those above it; those that exist stay as they are.
    pub(crate) fn make_directories(&self, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut done = std::path::PathBuf::from("/");
        let mut directory = self.open_at(&done, flags)?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                // As a path is cleaned before it is followed, so that `..` undoes a name and not a link's target.
                Component::ParentDir => {
                    done.pop();
                    directory = self.open_at(&done, flags)?;
                    continue;
                }
                _ => continue,
            };
            done.push(name);
            directory = match self.open_at(&done, flags) {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&directory, name, mode) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.open_at(&done, flags)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok(directory)
    }
}

impl From<OwnedFd> for Root {
    /// `directory` must be one.
    fn from(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn relative(path: &Path) -> &Path {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::Mode;

    use super::Root;

    #[test]
    fn links_out_of_the_tree_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        symlink("/etc", dir.path().join("absolute")).unwrap();
        symlink("../../../etc", dir.path().join("relative")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for path in
            ["/etc/hostname", "absolute/hostname", "relative/hostname", "../../etc/hostname"]
        {
            let text = root.read_text(Path::new(path), 100).unwrap();
            assert_eq!(text.as_deref(), Some("inside"), "{path}");
        }
        assert_eq!(root.read_text(Path::new("/etc/passwd"), 100).unwrap(), None);
        assert!(root.read_text(Path::new("/etc/hostname"), 3).is_err());
        root.make_directories(Path::new("/absolute/../../a/b"), Mode::from(0o755)).unwrap();
        assert!(dir.path().join("a/b").is_dir());
    }
}

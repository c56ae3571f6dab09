//! Network namespaces, kept alive by files that are bind mounts of them.
#![allow(unsafe_code, reason = "a thread of our own moves into another network namespace")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::Error;

/// `NSFS_MAGIC` of linux/magic.h: what `statfs` says of a namespace file.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Makes a namespace that `path` names, and runs `set_up` in it. One that is already there is replaced.
pub(crate) fn create(
    path: &Path,
    set_up: impl FnOnce() -> Result<(), Error> + Send,
) -> Result<(), Error> {
    remove(path)?;
    File::create(path).map_err(Error::file("create", path))?;
    let made = on_a_thread(|| {
        // SAFETY: the thread is our own and ends here; it shares no namespace-bound state with others.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| Error::kernel("make a network namespace")(error.into()))?;
        mount_bind("/proc/thread-self/ns/net", path).map_err(|error| {
            Error::kernel(format!("keep namespace {}", path.display()))(error.into())
        })?;
        set_up()
    });
    if made.is_err() {
        let _ = remove(path);
    }
    made
}

/// The namespace of the calling thread.
pub(crate) fn present() -> Result<File, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    File::open(path).map_err(Error::file("open", path))
}

/// Runs `work` in the namespace that `path` names.
pub(crate) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    on_a_thread(|| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |error| Error::kernel(format!("enter namespace {}", path.display()))(error.into()),
        )?;
        work()
    })
}

/// Lets go of a namespace; it ends with its last process. Nothing happens where there is none.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    while exists(path) {
        unmount(path, UnmountFlags::DETACH).map_err(|error| {
            Error::kernel(format!("let go of namespace {}", path.display()))(error.into())
        })?;
    }
    crate::state_file::remove(path)
}

/// Whether a namespace is mounted at `path`.
pub(crate) fn exists(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type).ok() == Some(NSFS_MAGIC))
        && statvfs(path).is_ok_and(|stat| !stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Names of the namespaces in `directory`; files that are none any more are removed.
pub(crate) fn list(directory: &Path) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let entry = entry.map_err(Error::file("list", directory))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if exists(&entry.path()) {
            names.insert(name);
        } else {
            crate::state_file::remove(&entry.path())?;
        }
    }
    Ok(names)
}

/// A thread changes its namespace for good, so none of the runtime's may.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(Error::kernel("start a thread"))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::kernel("work in a network namespace")(io::Error::other(
                "the thread panicked",
            )))
        })
    })
}

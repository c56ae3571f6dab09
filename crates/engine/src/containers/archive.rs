//! Files into and out of containers: `docker cp`, `export`, `diff`.
//!
//! Paths are a container's own words, so all of them are resolved by the kernel with the container's tree as
//! root. A running container is seen through its first process, volumes included; one that does not run is
//! mounted for the time.

mod pack;
mod unpack;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docker_types::container::FilesystemChange;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use tokio::sync::OwnedMutexGuard;

use super::container::Container;
use super::invalid::Invalid;
use super::mounts::{self, Kind};
use super::{Containers, Shared, blocking};
use crate::beneath::Root;
use crate::error::{Attempt, Error};

pub use unpack::UnpackOptions;

/// Attribute by which overlayfs knows where a file of the writable layer was copied from.
const OVERLAY_ORIGIN: &str = "trusted.overlay.origin";
/// Directories in each other; more is no tree anybody made on purpose.
const DEPTH_MAX: usize = 256;

/// What a path in a container is. `mode` has the bits of Go's `FileMode`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStat {
    pub name: String,
    pub size: u64,
    pub mode: u32,
    pub modified: jiff::Timestamp,
    /// Where a symbolic link leads, as it says itself.
    pub link_target: String,
}

/// A place in a container, open for reading or writing.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    container: Arc<Container>,
    root: Root,
    /// Within `root`.
    path: PathBuf,
    /// As the client wrote it.
    wanted: String,
    is_read_only: Option<ReadOnly>,
    /// Keeps a container that does not run from starting while its root is mounted here.
    mounted: Option<OwnedMutexGuard<()>>,
}

#[derive(Clone, Copy, Debug)]
enum ReadOnly {
    Rootfs,
    Volume,
}

impl Containers {
    /// Opens a place in a container.
    ///
    /// # Errors
    /// No such container, or an empty path.
    pub async fn place(&self, name: &str, path: &str) -> Result<Place, Error> {
        if path.is_empty() {
            return Err(Invalid::EmptyPath.into());
        }
        let container = self.shared.registry.find(name)?;
        let (shared, path) = (Arc::clone(&self.shared), path.to_owned());
        let operation = Arc::clone(&container.operation).lock_owned().await;
        blocking(move || shared.open_place(container, &path, operation)).await
    }

    /// What a container has changed of its image, by path.
    ///
    /// # Errors
    /// No such container, or a tree that cannot be read.
    pub async fn changes_of(&self, name: &str) -> Result<Vec<FilesystemChange>, Error> {
        let container = self.shared.registry.find(name)?;
        let upper = self.shared.images.upper_dir(&container.id);
        blocking(move || {
            let mut changes = Vec::new();
            collect_changes(&upper, Path::new("/"), 0, &mut changes)
                .attempt(|| format!("read {}", upper.display()))?;
            changes.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(changes)
        })
        .await
    }

    /// The ids of the user that a container's processes run as.
    ///
    /// # Errors
    /// A user the container does not know.
    pub async fn owner_of(&self, name: &str) -> Result<(u32, u32), Error> {
        let container = self.shared.registry.find(name)?;
        let place = self.place(name, "/").await?;
        blocking(move || {
            let record = container.record();
            let identity = super::start::resolve_user(&place.root, &record.config.user, &record)?;
            Ok((identity.uid, identity.gid))
        })
        .await
    }

    /// Notes an export or a copy among the events.
    pub fn note_archive(&self, name: &str, action: &'static str) {
        if let Ok(container) = self.shared.registry.find(name) {
            self.shared.event(&container, action, &[]);
        }
    }
}

impl Shared {
    fn open_place(
        self: Arc<Self>,
        container: Arc<Container>,
        wanted: &str,
        operation: OwnedMutexGuard<()>,
    ) -> Result<Place, Error> {
        let record = container.record();
        let clean = PathBuf::from(mounts::clean(wanted));
        let plan = record
            .mounts
            .iter()
            .filter(|plan| plan.kind != Kind::Tmpfs && clean.starts_with(&plan.destination))
            .max_by_key(|plan| plan.destination.len());
        let is_read_only = match plan {
            Some(plan) if plan.read_only => Some(ReadOnly::Volume),
            None if record.host.readonly_rootfs => Some(ReadOnly::Rootfs),
            _ => None,
        };
        let (base, inside, mounted) = if container.phase().is_up() {
            (PathBuf::from(format!("/proc/{}/root", container.status().pid)), clean.clone(), None)
        } else {
            let rootfs = self.images.mount_rootfs(&container.id)?;
            let (base, inside) = match plan {
                Some(plan) => {
                    let base = match plan.kind {
                        Kind::Volume => self.volumes.data_dir(&plan.volume).join(&plan.subpath),
                        Kind::Bind | Kind::Tmpfs => PathBuf::from(&plan.source),
                    };
                    let rest = clean.strip_prefix(&plan.destination).unwrap_or(Path::new(""));
                    (base, Path::new("/").join(rest))
                }
                None => (rootfs, clean.clone()),
            };
            (base, inside, Some(operation))
        };
        let root = Root::open(&base).attempt(|| format!("open {}", base.display()))?;
        Ok(Place {
            shared: self,
            container,
            root,
            path: inside,
            wanted: wanted.to_owned(),
            is_read_only,
            mounted,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted.is_some()
            && let Err(error) = self.shared.images.unmount_rootfs(&self.container.id)
        {
            tracing::warn!(container.id = self.container.id, %error, "unmount after a copy");
        }
    }
}

impl Place {
    /// What is there; a link at the end is not followed unless a slash follows it. Blocking.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`].
    pub fn stat(&self) -> Result<PathStat, Error> {
        let (parent, name) = self.parent().map_err(|error| self.missing(error))?;
        let stat = match &name {
            Some(name) => rustix::fs::statat(&parent, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW),
            None => rustix::fs::fstat(&parent),
        };
        let stat = stat.map_err(|error| self.missing(error.into()))?;
        let link_target = match (&name, FileType::from_raw_mode(stat.st_mode)) {
            (Some(name), FileType::Symlink) => {
                let target = rustix::fs::readlinkat(&parent, name.as_os_str(), Vec::new())
                    .map_err(|error| self.missing(error.into()))?;
                self.absolute(&target.to_string_lossy())
            }
            _ => String::new(),
        };
        Ok(PathStat {
            name: self.base_name(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: go_mode(&stat),
            modified: jiff::Timestamp::new(
                stat.st_mtime,
                i32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            )
            .unwrap_or_default(),
            link_target,
        })
    }

    /// Writes what is there as a tar archive. Blocking.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], or whatever keeps the tree from being read.
    pub fn pack(&self, output: impl Write) -> Result<(), Error> {
        let (parent, name) = self.parent().map_err(|error| self.missing(error))?;
        let packed = match &name {
            Some(name) => {
                pack::pack_entry(parent.as_fd(), name, OsStr::new(&self.base_name()), output)
            }
            None => pack::pack_directory(parent.as_fd(), OsStr::new(&self.base_name()), output),
        };
        packed.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.missing(error),
            _ => Error::Io { what: format!("pack {}", self.wanted), source: error },
        })
    }

    /// Unpacks a tar archive into the directory that is there. Blocking.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], [`Error::ExtractNotDirectory`], a place that is read-only, or an archive that
    /// cannot be unpacked.
    pub fn unpack(&self, archive: impl Read, options: UnpackOptions) -> Result<(), Error> {
        match self.is_read_only {
            Some(ReadOnly::Rootfs) => return Err(Error::ReadOnlyRootfs),
            Some(ReadOnly::Volume) => return Err(Error::ReadOnlyVolume),
            None => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory =
            self.root.open_at(&self.path, flags).map_err(|error| match error.kind() {
                io::ErrorKind::NotADirectory => Error::ExtractNotDirectory,
                _ => self.missing(error),
            })?;
        unpack::unpack(archive, Root::from(directory), options)
    }

    /// The directory a path ends in, and its last name; none for a directory named as such.
    fn parent(&self) -> io::Result<(std::os::fd::OwnedFd, Option<PathBuf>)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let is_directory = self.wanted.ends_with('/') || self.wanted.ends_with("/.");
        match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) if !is_directory => {
                Ok((self.root.open_at(parent, flags)?, Some(PathBuf::from(name))))
            }
            _ => Ok((self.root.open_at(&self.path, flags)?, None)),
        }
    }

    fn base_name(&self) -> String {
        let clean = PathBuf::from(mounts::clean(&self.wanted));
        clean.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// A link's target as a path from the container's root.
    fn absolute(&self, target: &str) -> String {
        let clean = PathBuf::from(mounts::clean(&self.wanted));
        let joined = clean.parent().unwrap_or(Path::new("/")).join(target);
        mounts::clean(&joined.to_string_lossy())
    }

    fn missing(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::NoSuchPath { path: self.wanted.clone(), id: self.container.id.clone() }
            }
            _ => Error::Io { what: format!("open {}", self.wanted), source: error },
        }
    }
}

/// A file's mode with the bits that Go's `FileMode` has for what Unix keeps elsewhere.
fn go_mode(stat: &Stat) -> u32 {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => (1 << 26) | (1 << 21),
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let mode = stat.st_mode;
    let flag = |unix: u32, go: u32| if mode & unix == 0 { 0 } else { go };
    kind | (mode & 0o777) | flag(0o4000, 1 << 23) | flag(0o2000, 1 << 22) | flag(0o1000, 1 << 20)
}

/// Walks the writable layer: what is there was added or changed, a 0/0 device hides what was deleted.
fn collect_changes(
    directory: &Path,
    inside: &Path,
    depth: usize,
    changes: &mut Vec<FilesystemChange>,
) -> io::Result<()> {
    const CHANGED: u8 = 0;
    const ADDED: u8 = 1;
    const DELETED: u8 = 2;
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deep"));
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let path = inside.join(entry.file_name());
        let is_whiteout = metadata.rdev() == 0
            && FileType::from_raw_mode(metadata.mode()) == FileType::CharacterDevice;
        let kind = if is_whiteout {
            DELETED
        } else if was_copied_up(&entry.path()) {
            CHANGED
        } else {
            ADDED
        };
        changes.push(FilesystemChange { path: path.to_string_lossy().into_owned(), kind });
        if metadata.is_dir() {
            collect_changes(&entry.path(), &path, depth + 1, changes)?;
        }
    }
    Ok(())
}

fn was_copied_up(path: &Path) -> bool {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path, OVERLAY_ORIGIN, &mut value).is_ok()
}

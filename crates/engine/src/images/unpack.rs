//! Writes a layer's archive into a directory in the form that overlayfs reads.
//!
//! The archive is hostile until shown otherwise: every path is opened beneath the directory, so
//! that neither `..` nor a symbolic link made by an earlier entry leads out of it. Whiteouts become
//! 0/0 character devices, opaque marks the overlay attribute. The directory starts empty and nobody
//! else writes to it.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::archive::{self, Entry, Kind, Limits, Timestamp};

/// Limits on one layer: a large model's layer has 40 GiB, a large tree 1.5 million files.
pub const LAYER_LIMITS: Limits = Limits { entries_max: 4_000_000, bytes_max: 256 << 30 };
/// Bytes of directory paths kept until their times are set at the end.
const DIRECTORY_PATH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes copied at once.
const COPY_BYTES: usize = 256 * 1024;
/// Name prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Name prefix of other marks of AUFS, which mean nothing to overlayfs.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Name of the mark that hides everything in lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attribute by which overlayfs knows an opaque directory.
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive itself.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// A path that leads out of the layer, or a link to one.
    #[error("archive entry {0:?} leads outside of the layer")]
    Escape(String),
    /// A whiteout without a name, or used as a directory.
    #[error("archive entry {0:?} is no valid whiteout")]
    Whiteout(String),
    /// Too many directories to remember.
    #[error("archive has too many directories")]
    TooManyDirectories,
    /// The file system refused an entry.
    #[error("unpack {path:?}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a layer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Sum of the files' sizes.
    pub bytes: u64,
    pub entries: u64,
}

/// Unpacks `archive` into the empty directory `root` and reads it to its very end.
///
/// # Errors
/// After one, `root` holds some part of the layer and must be removed.
pub fn unpack<R: Read>(
    archive: R,
    root: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Unpacked, Error> {
    let mut reader = archive::Reader::new(archive, limits);
    let mut unpacker = Unpacker {
        root,
        parent: None,
        directories: Vec::new(),
        directory_path_bytes: 0,
        buffer: vec![0; COPY_BYTES],
    };
    let mut unpacked = Unpacked { bytes: 0, entries: 0 };
    while let Some(entry) = reader.next_entry()? {
        unpacked.entries += 1;
        unpacked.bytes += entry.size;
        unpacker.write(&entry, &mut reader)?;
    }
    reader.drain()?;
    unpacker.set_directory_times()?;
    Ok(unpacked)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    /// The last directory written to: entries come in runs of one directory.
    parent: Option<(PathBuf, OwnedFd)>,
    directories: Vec<(PathBuf, Timestamp)>,
    directory_path_bytes: usize,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn write<R: Read>(
        &mut self,
        entry: &Entry,
        data: &mut archive::Reader<R>,
    ) -> Result<(), Error> {
        let path = clean(&entry.path)?;
        let Some(name) = path.file_name() else {
            return self.write_root(entry);
        };
        let parent_path = path.parent().expect("a path with a name has a parent");
        if is_below_meta(&path) {
            return Ok(());
        }
        if parent_path.iter().any(|c| c.as_bytes().starts_with(WHITEOUT)) {
            return Err(Error::Whiteout(path.display().to_string()));
        }
        self.open_parent(parent_path).map_err(at(&path))?;
        if name.as_bytes() == OPAQUE {
            return self.mark_opaque(Path::new(".")).map_err(at(&path));
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.write_whiteout(OsStr::from_bytes(hidden), &path);
        }
        match entry.kind {
            Kind::Directory => self.write_directory(entry, &path, name),
            Kind::File => self.write_file(entry, name, data).map_err(at(&path)),
            Kind::HardLink => self.write_hard_link(entry, &path, name),
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.write_special(entry, name).map_err(at(&path))
            }
        }
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root, |(_, fd)| fd.as_fd())
    }

    /// The archive's `./` gives the layer directory itself its owner and mode.
    fn write_root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::Escape(String::from_utf8_lossy(&entry.path).into_owned()));
        }
        let fd = rustix::io::dup(self.root).map_err(at(Path::new(".")))?;
        set_metadata(&fd, entry).map_err(at(Path::new(".")))?;
        self.remember_times(PathBuf::new(), entry.mtime)
    }

    fn write_directory(&mut self, entry: &Entry, path: &Path, name: &OsStr) -> Result<(), Error> {
        let made = match fs::mkdirat(self.parent(), name, Mode::RWXU) {
            Err(Errno::EXIST) => self.make_way_for_directory(name),
            result => result,
        };
        made.map_err(at(path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(self.parent(), name, flags, Mode::empty()).map_err(at(path))?;
        set_metadata(&fd, entry).map_err(at(path))?;
        self.remember_times(path.to_owned(), entry.mtime)
    }

    /// A directory in the place of a directory is the same one; in the place of a whiteout it hides
    /// what lies beneath; anything else it replaces.
    fn make_way_for_directory(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let stat = fs::statat(self.parent(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        fs::unlinkat(self.parent(), name, AtFlags::empty())?;
        fs::mkdirat(self.parent(), name, Mode::RWXU)?;
        if is_whiteout(&stat) {
            self.mark_opaque(Path::new(name))?;
        }
        Ok(())
    }

    fn write_file<R: Read>(
        &mut self,
        entry: &Entry,
        name: &OsStr,
        data: &mut archive::Reader<R>,
    ) -> Result<(), std::io::Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open =
            |parent: BorrowedFd<'_>| fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let fd = match open(self.parent()) {
            Err(Errno::EXIST) => {
                self.remove(name)?;
                open(self.parent())?
            }
            result => result?,
        };
        match &entry.sparse {
            None => self.copy(data, &fd, entry.size, None)?,
            Some(pieces) => {
                for (offset, length) in pieces {
                    self.copy(data, &fd, *length, Some(*offset))?;
                }
                fs::ftruncate(&fd, entry.size)?;
            }
        }
        set_metadata(&fd, entry)?;
        fs::futimens(&fd, &times(entry.mtime))?;
        Ok(())
    }

    fn copy<R: Read>(
        &mut self,
        data: &mut archive::Reader<R>,
        file: &OwnedFd,
        length: u64,
        offset: Option<u64>,
    ) -> Result<(), std::io::Error> {
        let mut done = 0;
        while done < length {
            let want = usize::try_from((length - done).min(self.buffer.len() as u64))
                .expect("a buffer's length");
            data.read_exact(&mut self.buffer[..want])?;
            let mut rest = &self.buffer[..want];
            while !rest.is_empty() {
                let count = match offset {
                    None => rustix::io::write(file, rest)?,
                    Some(offset) => rustix::io::pwrite(file, rest, offset + done)?,
                };
                rest = &rest[count..];
                done += count as u64;
            }
        }
        Ok(())
    }

    /// Links to a file that an earlier entry of the same archive made.
    fn write_hard_link(&mut self, entry: &Entry, path: &Path, name: &OsStr) -> Result<(), Error> {
        let target = clean(&entry.link)?;
        let Some(target_name) = target.file_name() else {
            return Err(Error::Escape(path.display().to_string()));
        };
        let target_parent = target.parent().expect("a path with a name has a parent");
        let target_parent = open_beneath(self.root, target_parent).map_err(at(path))?;
        let link = |new_parent: BorrowedFd<'_>| {
            fs::linkat(&target_parent, target_name, new_parent, name, AtFlags::empty())
        };
        let linked = match link(self.parent()) {
            Err(Errno::EXIST) if target == path => Ok(()),
            Err(Errno::EXIST) => self.remove(name).and_then(|()| link(self.parent())),
            result => result,
        };
        linked.map_err(at(path))
    }

    fn write_special(&mut self, entry: &Entry, name: &OsStr) -> rustix::io::Result<()> {
        match make_special(self.parent(), entry, name) {
            Err(Errno::EXIST) => {
                self.remove(name)?;
                make_special(self.parent(), entry, name)?;
            }
            result => result?,
        }
        let parent = self.parent();
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind != Kind::Symlink {
            fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        // Attributes of a node that cannot be opened go by a path through its parent's descriptor.
        let by_fd = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        for (key, value) in settable(&entry.xattrs) {
            tolerate(fs::lsetxattr(&by_fd, key, value, XattrFlags::empty()))?;
        }
        fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What this layer itself has under the name stays: a whiteout hides lower layers only.
    fn write_whiteout(&mut self, hidden: &OsStr, path: &Path) -> Result<(), Error> {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Error::Whiteout(path.display().to_string()));
        }
        let made = fs::mknodat(self.parent(), hidden, FileType::CharacterDevice, Mode::empty(), 0);
        let result = match made {
            Err(Errno::EXIST) => fs::statat(self.parent(), hidden, AtFlags::SYMLINK_NOFOLLOW)
                .and_then(|stat| {
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        self.mark_opaque(Path::new(hidden))
                    } else {
                        Ok(())
                    }
                }),
            result => result,
        };
        result.map_err(at(path))
    }

    fn mark_opaque(&self, directory: &Path) -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(self.parent(), directory, flags, Mode::empty())?;
        fs::fsetxattr(&fd, OVERLAY_OPAQUE, b"y", XattrFlags::empty())
    }

    /// Makes `path` the directory that is written to. Archives may leave out parents.
    fn open_parent(&mut self, path: &Path) -> rustix::io::Result<()> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        let fd = match open_beneath(self.root, path) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            result => result?,
        };
        self.parent = Some((path.to_owned(), fd));
        Ok(())
    }

    fn make_parents(&mut self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let mut fd = open_beneath(self.root, Path::new(""))?;
        let mut prefix = PathBuf::new();
        for name in path {
            prefix.push(name);
            self.parent = Some((PathBuf::new(), fd));
            fd = match open_beneath(self.root, &prefix) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(self.parent(), name, Mode::from_raw_mode(0o755))?;
                    open_beneath(self.root, &prefix)?
                }
                Err(Errno::NOTDIR) => {
                    self.replace_whiteout(name)?;
                    open_beneath(self.root, &prefix)?
                }
                result => result?,
            };
        }
        Ok(fd)
    }

    fn replace_whiteout(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let stat = fs::statat(self.parent(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_whiteout(&stat) {
            return Err(Errno::NOTDIR);
        }
        self.make_way_for_directory(name)?;
        fs::chmodat(self.parent(), name, Mode::from_raw_mode(0o755), AtFlags::empty())
    }

    /// Removes what has this name, so that a later entry may take its place.
    fn remove(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        match fs::unlinkat(self.parent(), name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            result => return result,
        }
        let parent = self.parent().as_raw_fd().to_string();
        let path = Path::new("/proc/self/fd").join(parent).join(name);
        std::fs::remove_dir_all(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    fn remember_times(&mut self, path: PathBuf, mtime: Timestamp) -> Result<(), Error> {
        self.directory_path_bytes += path.as_os_str().len() + size_of::<(PathBuf, Timestamp)>();
        if self.directory_path_bytes > DIRECTORY_PATH_BYTES_MAX {
            return Err(Error::TooManyDirectories);
        }
        self.directories.push((path, mtime));
        Ok(())
    }

    /// Directories change their time with each entry made in them, so theirs come last.
    fn set_directory_times(&mut self) -> Result<(), Error> {
        for (path, mtime) in std::mem::take(&mut self.directories) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match fs::openat2(self.root, dot_if_empty(&path), flags, Mode::empty(), BENEATH) {
                Ok(fd) => fs::futimens(&fd, &times(mtime)).map_err(at(&path))?,
                // A later entry put something else there.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(at(&path)(e)),
            }
        }
        Ok(())
    }
}

const BENEATH: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat2(root, dot_if_empty(path), flags, Mode::empty(), BENEATH)
}

fn dot_if_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Takes `.`, `..` and empty components out of an archived path.
fn clean(path: &[u8]) -> Result<PathBuf, Error> {
    let mut clean = PathBuf::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if !clean.pop() {
                    return Err(Error::Escape(String::from_utf8_lossy(path).into_owned()));
                }
            }
            name => clean.push(OsStr::from_bytes(name)),
        }
    }
    Ok(clean)
}

fn is_below_meta(path: &Path) -> bool {
    let is_opaque_mark = path.file_name().is_some_and(|n| n.as_bytes() == OPAQUE);
    path.iter().enumerate().any(|(depth, component)| {
        component.as_bytes().starts_with(WHITEOUT_META)
            && !(is_opaque_mark && depth + 1 == path.iter().count())
    })
}

fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn make_special(parent: BorrowedFd<'_>, entry: &Entry, name: &OsStr) -> rustix::io::Result<()> {
    let (major, minor) = entry.device;
    let file_type = match entry.kind {
        Kind::Symlink => return fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name),
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = if file_type == FileType::Fifo { 0 } else { fs::makedev(major, minor) };
    fs::mknodat(parent, name, file_type, Mode::from_raw_mode(entry.mode & 0o777), device)
}

/// Owner before mode, since a change of owner clears the set-id bits; and before the attributes,
/// since it clears capabilities too.
fn set_metadata(fd: &OwnedFd, entry: &Entry) -> rustix::io::Result<()> {
    if (entry.uid, entry.gid) != (0, 0) {
        fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    }
    for (key, value) in settable(&entry.xattrs) {
        tolerate(fs::fsetxattr(fd, key, value, XattrFlags::empty()))?;
    }
    let mode: RawMode = entry.mode;
    fs::fchmod(fd, Mode::from_raw_mode(mode))
}

/// A layer may not give itself overlayfs' own attributes: those redirect lookups elsewhere.
fn settable(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&OsStr, &[u8])> {
    xattrs
        .iter()
        .filter(|(key, _)| {
            !key.starts_with(b"trusted.overlay.") && !key.starts_with(b"user.overlay.")
        })
        .map(|(key, value)| (OsStr::from_bytes(key), value.as_slice()))
}

/// Attributes that this file system or kernel does not keep are left out, as Docker does.
fn tolerate(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn at<E: Into<std::io::Error>>(path: &Path) -> impl Fn(E) -> Error {
    move |source| Error::Io { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests;

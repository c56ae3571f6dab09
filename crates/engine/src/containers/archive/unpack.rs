//! Unpacks a tar archive into a directory of a container, which may hold links that try to lead out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::beneath::Root;
use crate::error::Error;

/// Entries of one archive; each may cost an inode.
const ENTRIES_MAX: usize = 4_000_000;

/// How to unpack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Whether it is an error to replace a directory by something else, or something else by one.
    pub no_overwrite_dir_non_dir: bool,
    /// All files get this owner instead of the archive's.
    pub owner: Option<(u32, u32)>,
}

pub(super) fn unpack(archive: impl Read, root: Root, options: UnpackOptions) -> Result<(), Error> {
    let failed = |path: &Path, error: io::Error| Error::Archive {
        what: format!("{}: {error}", path.display()),
    };
    let broken = |error: io::Error| Error::Archive { what: error.to_string() };
    let mut archive = Archive::new(archive);
    let mut directories = Vec::new();
    let unpacker = Unpacker { root, options };
    for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if count >= ENTRIES_MAX {
            return Err(Error::Archive { what: format!("more than {ENTRIES_MAX} entries") });
        }
        let path = clean(&entry.path().map_err(broken)?);
        unpacker.entry(&mut entry, &path).map_err(|error| failed(&path, error))?;
        if entry.header().entry_type().is_dir() {
            directories.push((path, entry.header().mtime().unwrap_or(0)));
        }
    }
    // Writing into a directory changes its time, so directories come last, children before parents.
    for (path, mtime) in directories.into_iter().rev() {
        if let Ok(directory) = unpacker.root.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
            let _ = fs::futimens(&directory, &times(mtime));
        }
    }
    Ok(())
}

struct Unpacker {
    root: Root,
    options: UnpackOptions,
}

impl Unpacker {
    fn entry<R: Read>(&self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The directory itself: it is there already, and stays as it is.
            return Ok(());
        };
        let parent = self.root.make_directories(parent, Mode::from(0o755))?;
        let kind = entry.header().entry_type();
        self.clear(&parent, name, kind)?;
        match kind {
            EntryType::Directory => match fs::mkdirat(&parent, name, Mode::from(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(entry, &parent, name);
            }
            EntryType::Symlink => fs::symlinkat(link_name(entry)?, &parent, name)?,
            EntryType::Link => {
                let target =
                    self.root.open_at(&clean(Path::new(&link_name(entry)?)), OFlags::PATH)?;
                let target = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target));
                return Ok(fs::linkat(fs::CWD, target, &parent, name, AtFlags::SYMLINK_FOLLOW)?);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default);
                let device =
                    fs::makedev(number(header.device_major())?, number(header.device_minor())?);
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                fs::mknodat(&parent, name, kind, Mode::from(0o600), device)?;
            }
            // Headers that tar itself has read, and kinds nobody writes any more.
            _ => return Ok(()),
        }
        self.own(entry, &parent, name, kind)
    }

    /// Makes room: a file gives way to what replaces it, a directory to nothing but an empty one's removal.
    fn clear(&self, parent: &OwnedFd, name: &OsStr, kind: EntryType) -> io::Result<()> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let was_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if was_directory && kind.is_dir() {
            return Ok(());
        }
        if was_directory != kind.is_dir() && self.options.no_overwrite_dir_non_dir {
            let what = if was_directory {
                "cannot overwrite directory with non-directory"
            } else {
                "cannot overwrite non-directory with directory"
            };
            return Err(io::Error::other(what));
        }
        let flags = if was_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(fs::unlinkat(parent, name, flags)?)
    }

    fn file<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(fs::openat(parent, name, flags, Mode::from(0o600))?);
        io::copy(entry, &mut &file)?;
        let header = entry.header();
        let (uid, gid) = self.owner(entry)?;
        fs::fchown(&file, Some(uid), Some(gid))?;
        fs::fchmod(&file, Mode::from_raw_mode(header.mode()? & 0o7777))?;
        let mtime = header.mtime().unwrap_or(0);
        set_attributes(entry, &file)?;
        Ok(fs::futimens(&file, &times(mtime))?)
    }

    /// Owner, mode and time of what is no regular file.
    fn own<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        kind: EntryType,
    ) -> io::Result<()> {
        let header = entry.header();
        let (uid, gid) = self.owner(entry)?;
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
            fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        let times = times(header.mtime().unwrap_or(0));
        Ok(fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn owner<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<(Uid, Gid)> {
        let header = entry.header();
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("owner out of range"));
        let (uid, gid) = match self.options.owner {
            Some(owner) => owner,
            None => (id(header.uid()?)?, id(header.gid()?)?),
        };
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }
}

/// Extended attributes that the archive carries, where the file system takes them.
fn set_attributes<R: Read>(entry: &mut Entry<'_, R>, file: &File) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr."))
        else {
            continue;
        };
        let is_wanted = name == "security.capability" || name.starts_with("user.");
        let flags = fs::XattrFlags::empty();
        match fs::fsetxattr(file.as_fd(), name, extension.value_bytes(), flags) {
            _ if !is_wanted => {}
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let name = entry.link_name_bytes().ok_or_else(|| io::Error::other("link without a target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&name)))
}

/// A path without a root, `.` or `..`: what would lead out leads to the top.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::{UnpackOptions, unpack};
    use crate::beneath::Root;
    use crate::containers::archive::pack::pack_directory;

    fn root(path: &Path) -> Root {
        Root::open(path).unwrap()
    }

    fn packed(directory: &Path, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let opened = fs::File::open(directory).unwrap();
        pack_directory(std::os::fd::AsFd::as_fd(&opened), std::ffi::OsStr::new(name), &mut bytes)
            .unwrap();
        bytes
    }

    #[test]
    fn what_is_packed_comes_out_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/file"), vec![7; 100_000]).unwrap();
        fs::set_permissions(from.path().join("sub/file"), fs::Permissions::from_mode(0o4751))
            .unwrap();
        fs::hard_link(from.path().join("sub/file"), from.path().join("twin")).unwrap();
        symlink("sub/file", from.path().join("link")).unwrap();
        let long = "n".repeat(200);
        fs::write(from.path().join(&long), "long name").unwrap();
        let archive = packed(from.path(), "top");
        unpack(archive.as_slice(), root(to.path()), UnpackOptions::default()).unwrap();
        let file = fs::metadata(to.path().join("top/sub/file")).unwrap();
        assert_eq!((file.len(), file.mode() & 0o7777, file.nlink()), (100_000, 0o4751, 2));
        assert_eq!(fs::read(to.path().join("top/link")).unwrap().len(), 100_000);
        assert_eq!(fs::read_to_string(to.path().join("top").join(long)).unwrap(), "long name");
        // Twice is no error, and owners can be given.
        let options = UnpackOptions { owner: Some((5, 6)), ..UnpackOptions::default() };
        unpack(archive.as_slice(), root(to.path()), options).unwrap();
        let owned = fs::metadata(to.path().join("top/twin")).unwrap();
        assert_eq!((owned.uid(), owned.gid()), (5, 6));
    }

    #[test]
    fn nothing_is_written_outside() {
        let outside = tempfile::tempdir().unwrap();
        let to = outside.path().join("root");
        fs::create_dir(&to).unwrap();
        symlink("/", to.join("absolute")).unwrap();
        symlink("../..", to.join("up")).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["absolute/a", "up/b", "plain"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            builder.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        unpack(builder.into_inner().unwrap().as_slice(), root(&to), UnpackOptions::default())
            .unwrap();
        for name in ["a", "b", "plain"] {
            assert!(to.join(name).is_file(), "{name}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_not_replaced_when_that_is_forbidden() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("x"), "file").unwrap();
        fs::create_dir(to.path().join("x")).unwrap();
        let archive = packed(from.path(), "/");
        let options = UnpackOptions { no_overwrite_dir_non_dir: true, ..UnpackOptions::default() };
        let refused = unpack(archive.as_slice(), root(to.path()), options).unwrap_err();
        assert!(refused.to_string().ends_with("cannot overwrite directory with non-directory"));
        unpack(archive.as_slice(), root(to.path()), UnpackOptions::default()).unwrap();
        assert!(to.path().join("x").is_file());
    }
}

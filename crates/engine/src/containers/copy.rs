//! Fills a new volume with what the image has in its place, owners, modes, times and attributes included.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::beneath::Root;
use crate::error::{Attempt, Error};

/// Directories in each other; more is no tree anybody made on purpose.
const DEPTH_MAX: usize = 256;
/// Largest extended attribute in bytes that the kernel takes.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Copies `place` of the image's root into the volume at `target`, when the image has a directory there and
/// the volume is empty. Blocking.
pub(super) fn fill_volume(rootfs: &Path, place: &Path, target: &Path) -> Result<(), Error> {
    let fill = || -> io::Result<()> {
        if std::fs::read_dir(target)?.next().is_some() {
            return Ok(());
        }
        let root = Root::open(rootfs)?;
        let source = match root.open_at(place, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(source) => source,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let target =
            fs::open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Copier::default().directory(source.as_fd(), target.as_fd(), 0)
    };
    fill().attempt(|| format!("copy {} of the image into its volume", place.display()))
}

#[derive(Default)]
struct Copier {
    /// Files with several links, by device and inode, and where the first copy is.
    links: HashMap<(u64, u64), OwnedFd>,
}

impl Copier {
    fn directory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        depth: usize,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other("directories are nested too deep"));
        }
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name().to_owned();
            if name.as_bytes() == b"." || name.as_bytes() == b".." {
                continue;
            }
            let stat = fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.entry(source, target, &name, &stat, depth)?;
        }
        copy_owner_and_times(source, target, &fs::fstat(source)?)
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                match fs::mkdirat(target, name, Mode::from(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY;
                let source = fs::openat(source, name, flags, Mode::empty())?;
                let target = fs::openat(target, name, flags, Mode::empty())?;
                self.directory(source.as_fd(), target.as_fd(), depth + 1)
            }
            FileType::RegularFile => self.file(source, target, name, stat),
            FileType::Symlink => {
                let link = fs::readlinkat(source, name, Vec::new())?;
                fs::symlinkat(&link, target, name)?;
                chown_no_follow(target, name, stat)
            }
            kind @ (FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Fifo
            | FileType::Socket) => {
                fs::mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
                chown_no_follow(target, name, stat)
            }
            FileType::Unknown => Ok(()),
        }
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
    ) -> io::Result<()> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&key) {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(first));
            return Ok(fs::linkat(fs::CWD, path, target, name, AtFlags::SYMLINK_FOLLOW)?);
        }
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let from = fs::openat(source, name, flags | OFlags::RDONLY, Mode::empty())?;
        let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = fs::openat(target, name, create, Mode::from(0o600))?;
        io::copy(&mut File::from(from.try_clone()?), &mut File::from(to.try_clone()?))?;
        copy_owner_and_times(from.as_fd(), to.as_fd(), stat)?;
        if stat.st_nlink > 1 {
            self.links.insert(key, to);
        }
        Ok(())
    }
}

/// Owner before mode, because a change of owner clears set-user-id; times last.
fn copy_owner_and_times(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    stat: &Stat,
) -> io::Result<()> {
    let (uid, gid) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
    fs::fchown(target, Some(uid), Some(gid))?;
    fs::fchmod(target, Mode::from_raw_mode(stat.st_mode))?;
    copy_attributes(source, target)?;
    let time =
        |seconds: i64, nanoseconds: i64| fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(stat.st_atime, i64::try_from(stat.st_atime_nsec).unwrap_or(0)),
        last_modification: time(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    };
    Ok(fs::futimens(target, &times)?)
}

/// All attributes but overlayfs's own, where the file system of the volume takes them.
fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match fs::flistxattr(source, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        let length = fs::fgetxattr(source, &name, &mut value)?;
        match fs::fsetxattr(target, &name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn chown_no_follow(directory: BorrowedFd<'_>, name: &CString, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
    Ok(fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::fill_volume;

    #[test]
    fn a_new_volume_begins_with_the_images_files() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = root.path().join("data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), "content").unwrap();
        fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o751)).unwrap();
        fs::hard_link(data.join("sub/file"), data.join("second")).unwrap();
        symlink("sub/file", data.join("link")).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
        fill_volume(root.path(), Path::new("/data"), volume.path()).unwrap();
        let copied = fs::metadata(volume.path().join("sub/file")).unwrap();
        assert_eq!((copied.mode() & 0o7777, copied.nlink()), (0o751, 2));
        assert_eq!(fs::read_to_string(volume.path().join("link")).unwrap(), "content");
        assert_eq!(fs::metadata(volume.path()).unwrap().mode() & 0o7777, 0o1777);

        // A volume that holds something keeps it.
        fs::write(volume.path().join("second"), "mine").unwrap();
        fill_volume(root.path(), Path::new("/data"), volume.path()).unwrap();
        assert_eq!(fs::read_to_string(volume.path().join("second")).unwrap(), "mine");
        // An image without the place is no error.
        fill_volume(root.path(), Path::new("/none"), tempfile::tempdir().unwrap().path()).unwrap();
    }
}

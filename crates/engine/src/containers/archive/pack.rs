//! Writes a tree as a tar archive, by descriptors: no name is looked up twice.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::DEPTH_MAX;

/// Largest extended attribute in bytes that the kernel takes.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// Packs the entry `name` of `parent` under the name `packed_as`.
pub(super) fn pack_entry(
    parent: BorrowedFd<'_>,
    name: &Path,
    packed_as: &OsStr,
    output: impl Write,
) -> io::Result<()> {
    let mut packer = Packer::new(output);
    let name = std::ffi::CString::new(name.as_os_str().as_bytes())?;
    packer.entry(parent, &name, Path::new(packed_as), 0)?;
    packer.finish()
}

/// Packs a directory and all beneath it under the name `packed_as`; `/` packs what is in it alone.
pub(super) fn pack_directory(
    directory: BorrowedFd<'_>,
    packed_as: &OsStr,
    output: impl Write,
) -> io::Result<()> {
    let mut packer = Packer::new(output);
    let path = if packed_as == "/" { PathBuf::new() } else { PathBuf::from(packed_as) };
    if !path.as_os_str().is_empty() {
        packer.header(directory, &path, &fs::fstat(directory)?)?;
    }
    packer.children(directory, &path, 0)?;
    packer.finish()
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// Files with several links, by device and inode, and the name they were packed under first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn new(output: W) -> Self {
        Self { builder: Builder::new(output), links: HashMap::new() }
    }

    fn finish(mut self) -> io::Result<()> {
        self.builder.finish()
    }

    fn children(&mut self, directory: BorrowedFd<'_>, path: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other("directories are nested too deep"));
        }
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            match self.entry(directory, name, &path, depth) {
                // Removed while we read the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                packed => packed?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directory = fs::openat(parent, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                self.header(directory.as_fd(), path, &stat)?;
                self.children(directory.as_fd(), path, depth + 1)
            }
            FileType::RegularFile => {
                let key = (stat.st_dev, stat.st_ino);
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&key) {
                        let mut header = header_of(&stat, EntryType::Link);
                        header.set_size(0);
                        let first = first.clone();
                        return self.builder.append_link(&mut header, path, first);
                    }
                    self.links.insert(key, path.to_owned());
                }
                let file = fs::openat(parent, name, flags, Mode::empty())?;
                self.file(file, path, &stat)
            }
            FileType::Symlink => {
                let target = fs::readlinkat(parent, name, Vec::new())?;
                let mut header = header_of(&stat, EntryType::Symlink);
                header.set_size(0);
                self.builder.append_link(&mut header, path, OsStr::from_bytes(target.as_bytes()))
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                let kind = match kind {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Fifo,
                };
                let mut header = header_of(&stat, kind);
                header.set_size(0);
                header.set_device_major(fs::major(stat.st_rdev))?;
                header.set_device_minor(fs::minor(stat.st_rdev))?;
                self.builder.append_data(&mut header, path, io::empty())
            }
            // A socket is nothing without the process behind it, and tar has no form for it.
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn file(&mut self, file: OwnedFd, path: &Path, stat: &Stat) -> io::Result<()> {
        self.attributes(file.as_fd())?;
        let mut header = header_of(stat, EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        // A file that grows is cut where its header says it ends; one that shrinks is filled with zeros.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.builder.append_data(&mut header, path, content)
    }

    fn header(&mut self, directory: BorrowedFd<'_>, path: &Path, stat: &Stat) -> io::Result<()> {
        self.attributes(directory)?;
        let mut header = header_of(stat, EntryType::Directory);
        header.set_size(0);
        let mut named = path.as_os_str().to_owned();
        named.push("/");
        self.builder.append_data(&mut header, Path::new(&named), io::empty())
    }

    /// Extended attributes go before the entry they belong to.
    fn attributes(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = match fs::flistxattr(file, &mut names) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            Ok(length) => length,
            Err(error) => return Err(error.into()),
        };
        let mut extensions = Vec::new();
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Ok(text) = std::str::from_utf8(name) else { continue };
            if !text.starts_with("security.capability") && !text.starts_with("user.") {
                continue;
            }
            let length = fs::fgetxattr(file, text, &mut value)?;
            extensions.push((format!("SCHILY.xattr.{text}"), value[..length].to_vec()));
        }
        if extensions.is_empty() {
            return Ok(());
        }
        let pairs = extensions.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(pairs)
    }
}

fn header_of(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

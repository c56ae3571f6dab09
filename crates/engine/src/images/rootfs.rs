//! Root file systems of containers: overlay mounts of an image's layers beneath a writable one.
//!
//! All that is needed to mount one again stands in its directory, so that no database write is
//! needed to make one: `upper` and `work` belong to overlayfs, `merged` is the mount point. `image`
//! names the image and its top layer; it is a symbolic link, whose content is part of the file
//! system's journal, and so is not lost before anything that is synced later.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FsWord;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::digest::Digest;
use super::error::{Error, io_error};
use super::state::{Hold, Image};
use super::store::Images;

/// `f_type` of overlayfs.
const OVERLAYFS_MAGIC: FsWord = 0x794c_7630;
/// Bytes of mount options that the kernel takes: a page, with the closing NUL.
const OPTIONS_BYTES_MAX: usize = 4095;
/// Name of the link that says which image a root file system stands on.
const IMAGE_LINK: &str = "image";
/// Mount option, and mark in that link, of a root file system that need not survive a crash.
const VOLATILE: &str = "volatile";

/// What a root file system is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootfsOptions {
    /// Nothing is written to disk for the sake of durability: what the container writes survives the
    /// daemon, but not a crash of the machine. Right for tasks of a swarm, which are replaced and
    /// never started again; unmounting is then faster by an order of magnitude.
    pub is_volatile: bool,
}

/// Sizes of a root file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootfsSize {
    /// Of the writable layer.
    pub writable: u64,
    /// Of the image's layers and the writable one.
    pub total: u64,
}

impl Images {
    /// Makes and mounts the root file system of `container` from `image`, and holds the image and
    /// its layers until [`Images::remove_rootfs`].
    ///
    /// # Errors
    /// Nothing is left behind then. A container that has a root file system keeps it.
    pub fn prepare_rootfs(&self, container: &str, image: &Image) -> Result<PathBuf, Error> {
        self.prepare_rootfs_with(container, image, RootfsOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As of [`Images::prepare_rootfs`].
    pub fn prepare_rootfs_with(
        &self,
        container: &str,
        image: &Image,
        options: RootfsOptions,
    ) -> Result<PathBuf, Error> {
        let top = image.config.chain_ids().last().copied();
        let hold = Hold { image: image.id, top };
        {
            let mut state = self.state();
            if state.holds.contains_key(container) {
                drop(state);
                return self.mount_rootfs(container);
            }
            if !state.images.contains_key(&image.id) {
                return Err(Error::NoSuchImage(image.id.to_string()));
            }
            state.holds.insert(container.to_owned(), hold);
        }
        let mounted = make_directories(&self.rootfs(container), &hold, options)
            .and_then(|()| self.mount_rootfs(container));
        if mounted.is_err()
            && let Err(error) = self.remove_rootfs(container)
        {
            tracing::warn!(container.id = container, %error, "root file system stays");
        }
        mounted
    }

    /// Mounts the root file system of `container` unless it is mounted, and returns where.
    ///
    /// # Errors
    /// [`Error::NoRootfs`] when it was never prepared.
    pub fn mount_rootfs(&self, container: &str) -> Result<PathBuf, Error> {
        let dir = self.rootfs(container);
        let merged = dir.join("merged");
        if is_overlay(&merged) {
            return Ok(merged);
        }
        let (chains, dirs) = self.lower_layers(container)?;
        self.restore_layers(&chains)?;
        let options = read_record(&dir).map_or_else(RootfsOptions::default, |(_, options)| options);
        mount_overlay(&self.0.layers_dir, &dirs, &dir, options)?;
        Ok(merged)
    }

    /// Unmounts the root file system of `container`, which keeps its content.
    pub fn unmount_rootfs(&self, container: &str) -> Result<(), Error> {
        unmount(&self.rootfs(container).join("merged"))
    }

    /// Removes the root file system of `container` with its content, and lets go of the image. One
    /// that is not there is no error. It is out of the way at once, and unmounted and deleted soon
    /// after; [`Images::flush`] waits for that.
    pub fn remove_rootfs(&self, container: &str) -> Result<(), Error> {
        let dir = self.rootfs(container);
        let aside = self.0.blobs.temporary_path();
        match fs::rename(&dir, &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.map_err(io_error("remove", &dir))?;
                self.0.reaper.remove(aside);
            }
        }
        let held = self.state().holds.remove(container);
        let is_orphan = held.is_some_and(|hold| self.get(&hold.image).is_none());
        if is_orphan {
            // The image was removed by force while the container held its layers.
            self.0.reaper.flush();
            self.collect_garbage()?;
        }
        Ok(())
    }

    /// Waits until removed root file systems are unmounted and deleted.
    pub fn flush(&self) {
        self.0.reaper.flush();
    }

    /// The sizes of a container's root file system.
    pub fn rootfs_size(&self, container: &str) -> Result<RootfsSize, Error> {
        let upper = self.upper_dir(container);
        let writable = tree_size(&upper).map_err(io_error("measure", &upper))?;
        let state = self.state();
        let top = state.holds.get(container).and_then(|hold| hold.top);
        let layers: u64 = state.chain(top).map(|(_, layer)| layer.bytes).sum();
        Ok(RootfsSize { writable, total: writable + layers })
    }

    /// The writable layer of a container, as overlayfs keeps it.
    pub fn upper_dir(&self, container: &str) -> PathBuf {
        self.rootfs(container).join("upper")
    }

    /// The containers that hold an image.
    pub fn holders(&self, image: &Digest) -> Vec<String> {
        self.state().holders_of(image).map(str::to_owned).collect()
    }

    /// All containers that have a root file system.
    pub fn rootfs_ids(&self) -> Vec<String> {
        self.state().holds.keys().cloned().collect()
    }

    fn rootfs(&self, container: &str) -> PathBuf {
        debug_assert!(is_container_id(container), "ids become file names");
        self.0.rootfs_dir.join(container)
    }

    /// Chain ids and directory names of a container's layers, top first.
    fn lower_layers(&self, container: &str) -> Result<(Vec<Digest>, Vec<String>), Error> {
        let state = self.state();
        let hold = state.holds.get(container);
        let hold = hold.ok_or_else(|| Error::NoRootfs(container.to_owned()))?;
        let layers: Vec<_> = state.chain(hold.top).collect();
        let bottom = layers.last().map(|(_, layer)| layer.parent);
        if hold.top.is_some() && bottom != Some(None) {
            return Err(Error::InvalidImage("a layer is missing"));
        }
        Ok(layers.into_iter().map(|(chain, layer)| (chain, layer.dir.clone())).unzip())
    }
}

/// Which container holds which image, read from the root file systems.
///
/// What has no link was being made when the daemon or the machine stopped, and goes by `discard`.
pub(super) fn read_holds(
    dir: &Path,
    discard: impl Fn(&Path) -> Result<(), Error>,
) -> Result<BTreeMap<String, Hold>, Error> {
    let mut holds = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io_error("read directory", dir))? {
        let entry = entry.map_err(io_error("read directory", dir))?;
        let Ok(container) = entry.file_name().into_string() else { continue };
        match read_record(&entry.path()) {
            Some((hold, _)) => {
                holds.insert(container, hold);
            }
            None => {
                tracing::warn!(container.id = container, "root file system names no image");
                discard(&entry.path())?;
            }
        }
    }
    Ok(holds)
}

fn read_record(dir: &Path) -> Option<(Hold, RootfsOptions)> {
    let text = fs::read_link(dir.join(IMAGE_LINK)).ok()?.into_os_string().into_string().ok()?;
    let mut words = text.split(',');
    let image = words.next()?.parse().ok()?;
    let top = words.next().filter(|top| !top.is_empty()).map(str::parse).transpose().ok()?;
    let is_volatile = words.next() == Some(VOLATILE);
    Some((Hold { image, top }, RootfsOptions { is_volatile }))
}

fn write_record(dir: &Path, hold: &Hold, options: RootfsOptions) -> Result<(), Error> {
    let link = dir.join(IMAGE_LINK);
    let top = hold.top.map(|top| top.to_string()).unwrap_or_default();
    let volatile = if options.is_volatile { VOLATILE } else { "" };
    let text = format!("{},{top},{volatile}", hold.image);
    std::os::unix::fs::symlink(text, &link).map_err(io_error("write", &link))
}

fn make_directories(dir: &Path, hold: &Hold, options: RootfsOptions) -> Result<(), Error> {
    // Other users of the host have no business in here; the mount itself is for the container.
    let make = |path: &Path, mode| match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(io_error("create directory", path)),
    };
    make(dir, 0o710)?;
    make(&dir.join("work"), 0o700)?;
    make(&dir.join("merged"), 0o700)?;
    let upper = dir.join("upper");
    make(&upper, 0o755)?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&upper, mode).map_err(io_error("change mode of", &upper))?;
    write_record(dir, hold, options)
}

fn is_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == OVERLAYFS_MAGIC)
        && !is_on_same_mount_as_parent(path)
}

/// The data root itself may lie on an overlay.
fn is_on_same_mount_as_parent(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|m| m.dev());
    let parent = path.parent().unwrap_or(path);
    matches!((device(path), device(parent)), (Ok(a), Ok(b)) if a == b)
}

/// Unmounts an overlay, and what may be mounted over it, from here.
pub(super) fn unmount(merged: &Path) -> Result<(), Error> {
    while is_overlay(merged) {
        rustix::mount::unmount(merged, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(io_error("unmount", merged))?;
    }
    Ok(())
}

/// Mounts `layers` (directory names within `layers_dir`, top first) beneath `dir/upper` at
/// `dir/merged`.
fn mount_overlay(
    layers_dir: &Path,
    layers: &[String],
    dir: &Path,
    options: RootfsOptions,
) -> Result<(), Error> {
    let merged = dir.join("merged");
    let base = if layers.is_empty() { dir } else { layers_dir };
    let plain = mount_options(layers, dir)?;
    if options.is_volatile {
        allow_volatile_again(dir)?;
        let volatile = [plain.as_slice(), b",", VOLATILE.as_bytes()].concat();
        match mount_at(base, &merged, volatile) {
            // Kernels before 5.10 do not know the option.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            result => return result.map_err(mount_error(&merged)),
        }
    }
    mount_at(base, &merged, plain).map_err(mount_error(&merged))
}

/// The kernel's refusal says nothing of its usual reason.
fn mount_error(merged: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.raw_os_error() {
        Some(code) if code == Errno::INVAL.raw_os_error() => {
            Error::Overlay { path: merged.to_owned(), source }
        }
        _ => io_error("mount overlay", merged)(source),
    }
}

fn mount_options(layers: &[String], dir: &Path) -> Result<Vec<u8>, Error> {
    // overlayfs wants one lower layer at least; an image may have none.
    let lower = if layers.is_empty() { "merged".to_owned() } else { layers.join(":") };
    let mut options = format!("lowerdir={lower}").into_bytes();
    for (option, name) in [(",upperdir=", "upper"), (",workdir=", "work")] {
        options.extend(option.bytes());
        options.extend(escape(&dir.join(name)));
    }
    // Without an index the same layers may be mounted by several overlays at once.
    options.extend(b",index=off");
    if options.len() + VOLATILE.len() + 1 > OPTIONS_BYTES_MAX {
        return Err(Error::TooDeep);
    }
    Ok(options)
}

/// The kernel leaves a mark at a volatile mount, so that nobody takes its content for complete after
/// a crash. Whoever asked for it does not.
fn allow_volatile_again(dir: &Path) -> Result<(), Error> {
    let mark = dir.join("work/work/incompat/volatile");
    match fs::remove_dir_all(&mark) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &mark)(e)),
        _ => Ok(()),
    }
}

/// The names of the layers are relative, since 127 absolute ones do not fit a page. The working
/// directory belongs to the process, so a thread with one of its own makes the mount.
fn mount_at(base: &Path, merged: &Path, options: Vec<u8>) -> io::Result<()> {
    let options = std::ffi::CString::new(options).expect("paths have no NUL");
    let mount = || -> io::Result<()> {
        unshare_working_directory()?;
        rustix::process::chdir(base)?;
        let (flags, options) = (MountFlags::empty(), options.as_c_str());
        rustix::mount::mount("overlay", merged, "overlay", flags, options)?;
        Ok(())
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("mount-rootfs".to_owned())
            .spawn_scoped(scope, mount)
            .and_then(|thread| thread.join().expect("the closure returns its errors"))
    })
}

/// Commas separate mount options, colons layers; a backslash takes their meaning away.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if b"\\,:".contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

#[allow(unsafe_code, reason = "unshare(2) is unsafe for the sake of CLONE_FILES")]
fn unshare_working_directory() -> rustix::io::Result<()> {
    // SAFETY: only the working directory, root and umask of this thread become its own; the thread
    // ends right after the mount. No file descriptors are unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// Container ids are hexadecimal, but a test may use any word.
fn is_container_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Sum of the sizes of all files, each inode once. Symbolic links are not followed.
fn tree_size(root: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            // The container may remove directories while they are counted.
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir != root => continue,
            result => result?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino())) {
                total += metadata.len();
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests;

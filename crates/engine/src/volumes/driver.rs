//! The `local` driver: a plain directory, or what `--opt type=… --opt device=… --opt o=…` says to mount there.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::containers::Invalid;

/// Options the driver knows.
const KNOWN: [&str; 4] = ["type", "device", "o", "size"];

/// # Errors
/// An option nobody knows, or a mount without a device or a type.
pub(super) fn check_options(options: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if let Some(option) = options.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(Invalid::VolumeOption { option: option.clone() });
    }
    let has = |key: &str| options.contains_key(key);
    let is_complete = has("device") && has("type");
    if !options.is_empty() && !is_complete {
        return Err(Invalid::VolumeDevice);
    }
    Ok(())
}

/// Mounts what the options say, unless it is mounted already.
pub(super) fn mount(options: &BTreeMap<String, String>, target: &Path) -> io::Result<()> {
    if options.is_empty() || is_mountpoint(target)? {
        return Ok(());
    }
    let get = |key: &str| options.get(key).map_or("", String::as_str);
    let (flags, data) = parse_options(get("o"));
    let kind = match get("type") {
        // The type of a bind mount is written `none`, and the kernel ignores it.
        "none" | "bind" => "",
        kind => kind,
    };
    let data = (!data.is_empty()).then(|| CString::new(data)).transpose()?;
    rustix::mount::mount(get("device"), target, kind, flags, data.as_deref())?;
    let read_only_bind = MountFlags::BIND | MountFlags::RDONLY;
    if flags.contains(read_only_bind) {
        // The first call of a bind mount ignores all other flags.
        rustix::mount::mount_remount(target, flags, "")?;
    }
    Ok(())
}

/// Unmounts what [`mount`] mounted.
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    match is_mountpoint(target) {
        Ok(true) => Ok(rustix::mount::unmount(target, UnmountFlags::DETACH)?),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_mountpoint(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    let parent = std::fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    if metadata.dev() != parent.dev() {
        return Ok(true);
    }
    // A bind mount of the same file system shows only in the mount's id.
    let id = |path: &Path| -> io::Result<u64> {
        let statx = rustix::fs::statx(
            rustix::fs::CWD,
            path,
            rustix::fs::AtFlags::empty(),
            rustix::fs::StatxFlags::MNT_ID,
        )?;
        Ok(statx.stx_mnt_id)
    };
    Ok(id(path)? != id(path.parent().unwrap_or(Path::new("/")))?)
}

/// Splits mount(8)'s options into the kernel's flags and the file system's own.
fn parse_options(text: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            own => data.push(own),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rustix::mount::MountFlags;

    use super::{check_options, parse_options};

    #[test]
    fn options_are_split_into_flags_and_data() {
        assert_eq!(
            parse_options("ro,size=1m,noexec,uid=5"),
            (MountFlags::RDONLY | MountFlags::NOEXEC, "size=1m,uid=5".to_owned())
        );
        let options = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert!(check_options(&options(&[])).is_ok());
        assert!(check_options(&options(&[("type", "tmpfs"), ("device", "tmpfs")])).is_ok());
        assert!(check_options(&options(&[("type", "tmpfs")])).is_err());
        assert_eq!(
            check_options(&options(&[("colour", "red")])).unwrap_err().to_string(),
            "invalid option: \"colour\""
        );
    }
}

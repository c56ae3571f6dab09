//! Reading and writing the small files of a cgroup tree.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use rustix::io::Errno;

use crate::Error;

/// Writes `value` in one call, as the kernel demands.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    let write = || fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    write().map_err(|error| fault("write", path, &error))
}

/// Writes a limit that some kernels or devices do not offer; says so instead of giving up.
pub(super) fn write_optional(
    path: &Path,
    value: &str,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    match write(path, value) {
        Err(Error::Cgroup { errno: Errno::NOENT | Errno::OPNOTSUPP, .. }) => {
            notes.push(format!("kernel has no {}, {value} is not set", name_of(path)));
            Ok(())
        }
        other => other,
    }
}

/// Writes a limit nobody may be without. `what` is limited.
pub(super) fn write_limit(path: &Path, value: &str, what: &'static str) -> Result<(), Error> {
    match write(path, value) {
        Err(Error::Cgroup { errno: Errno::NOENT, .. }) => {
            let group = path.parent().unwrap_or(path).to_owned();
            Err(Error::NoController { limit: what, path: group })
        }
        other => other,
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The whole file without the last newline.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|error| fault("read", path, &error))?;
    Ok(text.trim_end().to_owned())
}

/// A file of one number; `max` is the largest. Zero where there is none.
pub(super) fn number(path: &Path) -> u64 {
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == "max" => u64::MAX,
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// The number after `key` in a file of `key number` lines; zero where there is none.
pub(super) fn keyed(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// Makes a directory and those above it.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or_else(|| fault("make", path, &error))?;
            make(parent)?;
            fs::create_dir(path).or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(fault("make", path, &error)),
            })
        }
        Err(error) => Err(fault("make", path, &error)),
    }
}

/// Removes a directory with the groups beneath it; files of a cgroup go with their directory.
pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for child in children(path) {
        remove_tree(&child)?;
    }
    fs::remove_dir(path).map_err(|error| fault("remove", path, &error))
}

fn children(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Process ids of a group and the groups beneath it.
pub(super) fn pids(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(path) {
        pids.extend(self::pids(&child));
    }
    pids
}

pub(super) fn fault(action: &'static str, path: &Path, error: &io::Error) -> Error {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Error::Cgroup { action, path: path.to_owned(), errno }
}

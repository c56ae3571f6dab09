//! Small JSON files that are either whole or absent.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// Replaces the file at once. It need not survive a loss of power: the kernel objects it describes do not either.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let text = serde_json::to_vec(value).expect("plain data");
    std::fs::write(&temporary, text).map_err(Error::file("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(Error::file("replace", path))
}

/// The value in the file; `None` where there is none that can be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The files of a directory by their names, those aside that are being written.
pub(crate) fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let entry = entry.map_err(Error::file("list", directory))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.ends_with(".tmp")
        {
            files.push((name, entry.path()));
        }
    }
    Ok(files)
}

//! A log file that is rotated when it is full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::config::LogConfig;

/// The current file and its rules.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    max_file: u32,
}

impl LogFile {
    pub(super) fn open(config: &LogConfig) -> io::Result<Self> {
        let file = open(&config.path, false)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: config.path.clone(),
            file,
            size,
            max_size: config.max_size,
            max_file: config.max_file,
        })
    }

    /// Whether the file is due for rotation once `more` bytes are in it.
    pub(super) fn is_full_with(&self, more: usize) -> bool {
        self.max_size.is_some_and(|max| self.size + more as u64 >= max)
    }

    /// Writes and empties the batch. What a full disk does not take is lost.
    pub(super) fn write(&mut self, batch: &mut Vec<u8>) {
        if !batch.is_empty() && self.file.write_all(batch).is_ok() {
            self.size += batch.len() as u64;
        }
        batch.clear();
    }

    /// Moves `PATH` to `PATH.1`, `PATH.1` to `PATH.2`, drops the last and begins anew. Where that
    /// does not work the current file goes on.
    pub(super) fn rotate(&mut self) {
        let numbered = |number: u32| {
            let mut path = self.path.clone().into_os_string();
            path.push(format!(".{number}"));
            PathBuf::from(path)
        };
        let kept = self.max_file.max(1) - 1;
        for number in (1..kept).rev() {
            // Most often there is no such file yet.
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        if kept > 0 && fs::rename(&self.path, numbered(1)).is_err() {
            return;
        }
        if let Ok(file) = open(&self.path, true) {
            self.file = file;
            self.size = 0;
        }
    }
}

fn open(path: &PathBuf, empty: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o640);
    if empty {
        // Append mode and truncation do not go together in one call of the standard library.
        options.write(true).truncate(true).open(path)?;
        return OpenOptions::new().append(true).open(path);
    }
    options.append(true).open(path)
}

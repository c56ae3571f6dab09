//! A position in a log that may be rotated under it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;

use super::LogRecord;
use super::entry;
use crate::error::{Attempt, Error};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// A line longer than this is not one of ours: the shim splits what processes write into parts of 16 KiB.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Rotated files that are looked for; as many as a container may keep.
const FILES_MAX: usize = 1000;

/// A place in a log, from which reading goes on.
#[derive(Debug)]
pub(crate) struct Cursor {
    base: PathBuf,
    open: Option<OpenFile>,
    /// The beginning of a line whose end has not been read.
    partial: Vec<u8>,
    /// Whole lines not yet given out.
    lines: Vec<u8>,
    lines_at: usize,
    /// Lines to pass over, where the tail begins in the middle of a compressed file.
    skip: usize,
    /// When the last record given out was written.
    last: Option<Timestamp>,
    /// Whether the file we were in is gone, so that what it held may be met again, compressed.
    is_lost: bool,
}

#[derive(Debug)]
struct OpenFile {
    source: Source,
    /// Tells this file when it has been renamed.
    inode: u64,
}

enum Source {
    Plain(File),
    Compressed(Box<MultiGzDecoder<File>>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Compressed(_) => "Compressed",
        })
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Compressed(decoder) => decoder.read(buffer),
        }
    }
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let source = if path.extension().is_some_and(|extension| extension == "gz") {
            Source::Compressed(Box::new(MultiGzDecoder::new(file)))
        } else {
            Source::Plain(file)
        };
        Ok(Self { source, inode })
    }
}

impl Cursor {
    /// Goes to the beginning, or to the last `tail` lines. A log that does not exist yet is empty.
    pub(crate) fn open(base: PathBuf, tail: Option<usize>) -> Result<Self, Error> {
        let mut cursor = Self {
            base,
            open: None,
            partial: Vec::new(),
            lines: Vec::new(),
            lines_at: 0,
            skip: 0,
            last: None,
            is_lost: false,
        };
        if let Some(wanted) = tail {
            cursor.seek_tail(wanted).attempt(|| format!("open log {}", cursor.base.display()))?;
        }
        Ok(cursor)
    }

    /// Up to `max` records; none when there is nothing more to read now.
    pub(crate) fn next_batch(&mut self, max: usize) -> Result<Vec<LogRecord>, Error> {
        let mut records = Vec::new();
        while records.len() < max {
            let Some(line) = self.next_line() else {
                if self.fill().attempt(|| format!("read log {}", self.base.display()))? {
                    continue;
                }
                break;
            };
            let Some(record) = entry::parse(&line) else { continue };
            if self.is_lost && self.last.is_some_and(|last| record.time <= last) {
                continue;
            }
            self.is_lost = false;
            self.last = Some(record.time);
            records.push(record);
        }
        Ok(records)
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = &self.lines[self.lines_at..];
            let end = line_end(rest)?;
            let line = rest[..end].to_vec();
            self.lines_at += end + 1;
            if self.skip == 0 {
                return Some(line);
            }
            self.skip -= 1;
        }
    }

    /// Reads one more chunk, going on to the next file where one ends. False when there is no more now.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.read_chunk()? {
                return Ok(true);
            }
            let Some(next) = self.next_file()? else { return Ok(false) };
            // Between the end we saw and the rename, more may have been written to the file.
            if self.read_chunk()? {
                return Ok(true);
            }
            // A file ends with a whole line, unless its writer died.
            self.partial.clear();
            self.open = Some(next);
        }
    }

    fn read_chunk(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = open.source.read(&mut chunk)?;
        self.take(&chunk[..read]);
        Ok(read > 0)
    }

    /// Adds what was read: whole lines to give out, and the beginning of the next.
    fn take(&mut self, chunk: &[u8]) {
        self.lines.drain(..self.lines_at);
        self.lines_at = 0;
        self.partial.extend_from_slice(chunk);
        if let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            self.lines.append(&mut self.partial);
            self.partial = rest;
        }
        if self.partial.len() > LINE_BYTES_MAX {
            self.partial.clear();
        }
    }

    /// The file after the open one, when the open one has been rotated; the oldest when none is open.
    fn next_file(&mut self) -> io::Result<Option<OpenFile>> {
        let files = newest_first(&self.base);
        let inode = self.open.as_ref().map(|open| open.inode);
        let at = files.iter().position(|(_, file_inode)| Some(*file_inode) == inode);
        let next = match at {
            Some(0) => None,
            Some(at) => files.get(at - 1),
            None => files.last(),
        };
        // A file that is not there any more was dropped, or compressed into one we have not seen.
        self.is_lost |= inode.is_some() && at.is_none() && next.is_some();
        let Some((path, _)) = next else { return Ok(None) };
        match OpenFile::open(path) {
            Ok(open) => Ok(Some(open)),
            // Rotated in this moment; the next change is reported after it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes back from the end until `wanted` lines have been passed.
    fn seek_tail(&mut self, mut wanted: usize) -> io::Result<()> {
        for (path, _) in newest_first(&self.base) {
            let mut open = match OpenFile::open(&path) {
                Ok(open) => open,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let found = match &mut open.source {
                Source::Plain(file) => seek_back(file, wanted)?,
                Source::Compressed(decoder) => {
                    let lines = count_lines(decoder)?;
                    open = OpenFile::open(&path)?;
                    self.skip = lines.saturating_sub(wanted);
                    lines.min(wanted)
                }
            };
            wanted -= found;
            self.open = Some(open);
            if wanted == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// The files of a log that exist, with their inodes, the current one first.
fn newest_first(base: &Path) -> Vec<(PathBuf, u64)> {
    let named = |suffix: String| {
        let mut name = base.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let found = |path: PathBuf| fs::metadata(&path).ok().map(|metadata| (path, metadata.ino()));
    let rotated =
        |n: usize| found(named(format!(".{n}"))).or_else(|| found(named(format!(".{n}.gz"))));
    found(base.to_owned()).into_iter().chain((1..=FILES_MAX).map_while(rotated)).collect()
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

/// Sets the file's position to the beginning of its last `wanted` lines; returns how many there are.
fn seek_back(file: &mut File, wanted: usize) -> io::Result<usize> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if wanted == 0 || end == 0 {
        return Ok(0);
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut found = 0;
    let length = end;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let size = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut chunk[..size])?;
        for (at, byte) in chunk[..size].iter().enumerate().rev() {
            let position = start + at as u64;
            // The line feed at the very end closes the last line; it does not begin another.
            if *byte != b'\n' || position + 1 == length {
                continue;
            }
            found += 1;
            if found == wanted {
                file.seek(SeekFrom::Start(position + 1))?;
                return Ok(found);
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found + 1)
}

fn count_lines(source: &mut impl Read) -> io::Result<usize> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut lines = 0;
    loop {
        match source.read(&mut chunk)? {
            0 => return Ok(lines),
            read => lines += chunk[..read].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

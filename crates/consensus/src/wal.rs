//! The write-ahead log: segments of sealed batches, each batch one write and one fdatasync.
//!
//! ```text
//! segment: header | batch | batch | … | zeros
//! header:  magic 8 | id 8 | valid bytes of the segment before 8 | nonce base 12 | crc 4
//! batch:   payload length 4 | crc of the payload 4 | sealed payload | zeros up to a multiple of 8
//! ```
//! Every open begins a new segment, so nothing is ever written twice under one nonce. A batch that is not whole
//! ends the newest segment, if nothing follows it: it was being written when the machine stopped, and nobody was
//! told of it. Anywhere else it is damage, and the log refuses to open.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::cipher::{Cipher, DataKey, DataKeys, TAG_BYTES, random_base};
use crate::disk::{Disk, DiskFile};

const MAGIC: &[u8; 8] = b"SKEPLOG1";
const HEADER_BYTES: usize = 40;
const BATCH_HEADER_BYTES: usize = 8;
const ALIGNMENT: usize = 8;

/// Bytes of a segment, written with zeros when it is made: an append then changes no metadata and costs one flush.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Largest payload that is taken for one when reading.
const BATCH_BYTES_MAX: usize = 256 << 20;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    Header,
    Checksum,
    /// Intact, but sealed with another key or moved from another place.
    Key,
    Content,
    /// A segment between two others is not there.
    MissingSegment,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "the header is not one of ours",
            Self::Checksum => "the checksum does not match; restore this manager from another one or from a backup",
            Self::Key => "it was not written with this node's key",
            Self::Content => "the content cannot be read",
            Self::MissingSegment => "the segment before it is missing",
        })
    }
}

/// One raft entry at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    pub(crate) kind: i32,
    pub(crate) term: u64,
    pub(crate) index: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) data: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) context: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredHardState {
    pub(crate) term: u64,
    pub(crate) vote: u64,
    pub(crate) commit: u64,
}

/// What is made durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) hard_state: Option<StoredHardState>,
    pub(crate) entries: Vec<StoredEntry>,
    /// A snapshot of this index is about to replace everything before this batch. It counts only where that
    /// snapshot is found.
    #[serde(default)]
    pub(crate) replaced_by: Option<u64>,
}

/// A segment on disk and the greatest index in it.
#[derive(Debug)]
struct Segment {
    id: u64,
    last_index: u64,
    /// Sealed with a key that is out of use.
    is_outdated: bool,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    key: DataKey,
    segments: Vec<Segment>,
    file: Box<dyn DiskFile>,
    cipher: Cipher,
    /// Bytes the newest segment holds before it has to grow.
    capacity: u64,
    offset: u64,
    counter: u64,
    buffer: Vec<u8>,
}

impl Wal {
    /// Opens the log on `disk`, which may be empty, and reads every batch in it.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the log is not as it was written; it is left untouched then.
    pub(crate) fn open(disk: Arc<dyn Disk>, keys: &DataKeys) -> Result<(Self, Vec<Batch>), Error> {
        let mut ids = segment_ids(&*disk)?;
        ids.sort_unstable();
        let mut batches = Vec::new();
        let mut segments = Vec::new();
        let mut valid_bytes = 0;
        for (position, id) in ids.iter().enumerate() {
            let next = ids.get(position + 1);
            let sealed_at = next.map(|next| header_of(&*disk, *next)).transpose()?;
            let gap = next.is_some_and(|next| *next != id + 1);
            if gap {
                return Err(damaged(&*disk, id + 2, 0, Corruption::MissingSegment));
            }
            let read = read_segment(&*disk, *id, keys, sealed_at.map(|header| header.before))?;
            valid_bytes = read.valid_bytes;
            let last =
                read.batches.iter().flat_map(|batch| &batch.entries).map(|entry| entry.index);
            let inherited = segments.last().map_or(0, |segment: &Segment| segment.last_index);
            let last_index = last.max().unwrap_or(inherited);
            segments.push(Segment { id: *id, last_index, is_outdated: read.is_outdated });
            batches.extend(read.batches);
        }
        let id = ids.last().map_or(1, |last| last + 1);
        let key = keys.current.clone();
        let (file, cipher) = create_segment(&*disk, id, valid_bytes, &key)?;
        let last_index = segments.last().map_or(0, |last| last.last_index);
        segments.push(Segment { id, last_index, is_outdated: false });
        let wal = Self {
            disk,
            key,
            segments,
            file,
            cipher,
            capacity: SEGMENT_BYTES,
            offset: HEADER_BYTES as u64,
            counter: 0,
            buffer: Vec::new(),
        };
        Ok((wal, batches))
    }

    /// Makes `batch` durable: when this returns, it survives a loss of power. After an error nothing of it counts,
    /// and the same batch may be offered again.
    pub(crate) fn append(&mut self, batch: &Batch) -> Result<(), Error> {
        self.seal(batch);
        if self.offset + self.buffer.len() as u64 > self.capacity {
            self.roll()?;
            self.seal(batch);
        }
        let action = "append to";
        self.file.write_at(&self.buffer, self.offset).map_err(|e| self.failed(action, e))?;
        self.file.sync().map_err(|e| self.failed(action, e))?;
        self.offset += self.buffer.len() as u64;
        self.counter += 1;
        if let (Some(last), Some(segment)) =
            (batch.entries.iter().map(|entry| entry.index).max(), self.segments.last_mut())
        {
            segment.last_index = segment.last_index.max(last);
        }
        Ok(())
    }

    /// Deletes the segments that hold nothing beyond `index`. The newest always stays.
    pub(crate) fn compact(&mut self, index: u64) -> Result<(), Error> {
        while self.segments.len() > 1 && self.segments[0].last_index <= index {
            let name = segment_name(self.segments[0].id);
            self.disk.remove(&name).map_err(file_error("remove", &*self.disk, &name))?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// Seals with another key from the next batch on. After an error nothing has changed.
    pub(crate) fn rekey(&mut self, key: DataKey) -> Result<(), Error> {
        self.buffer.clear();
        let before = std::mem::replace(&mut self.key, key);
        if let Err(error) = self.roll() {
            self.key = before;
            return Err(error);
        }
        let older = self.segments.len() - 1;
        self.segments[..older].iter_mut().for_each(|segment| segment.is_outdated = true);
        Ok(())
    }

    /// The greatest index in what is sealed with a key that is out of use, if there is any.
    pub(crate) fn outdated(&self) -> Option<u64> {
        let outdated = self.segments.iter().filter(|segment| segment.is_outdated);
        outdated.map(|segment| segment.last_index).max()
    }

    /// Bytes of log that a restart would read.
    pub(crate) fn bytes(&self) -> u64 {
        (self.segments.len() as u64 - 1) * SEGMENT_BYTES + self.offset
    }

    fn seal(&mut self, batch: &Batch) {
        self.buffer = rmp_serde::to_vec(batch).expect("a batch is plain data");
        let aad = self.counter.to_le_bytes();
        self.cipher.seal(self.counter, &aad, &mut self.buffer);
        let length = u32::try_from(self.buffer.len()).expect("a batch is below 4 GiB");
        let crc = crc32fast::hash(&self.buffer);
        let mut record = Vec::with_capacity(self.buffer.len() + BATCH_HEADER_BYTES + ALIGNMENT);
        record.extend(length.to_le_bytes());
        record.extend(crc.to_le_bytes());
        record.append(&mut self.buffer);
        record.resize(record.len().next_multiple_of(ALIGNMENT), 0);
        self.buffer = record;
    }

    fn roll(&mut self) -> Result<(), Error> {
        let id = self.segments.last().map_or(1, |last| last.id + 1);
        let (file, cipher) = create_segment(&*self.disk, id, self.offset, &self.key)?;
        let last_index = self.segments.last().map_or(0, |last| last.last_index);
        self.segments.push(Segment { id, last_index, is_outdated: false });
        (self.file, self.cipher, self.counter) = (file, cipher, 0);
        self.offset = HEADER_BYTES as u64;
        // A batch larger than a segment makes its file grow.
        self.capacity = SEGMENT_BYTES.max(self.offset + self.buffer.len() as u64);
        Ok(())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        let id = self.segments.last().map_or(0, |segment| segment.id);
        Error::File { action, path: self.disk.path(&segment_name(id)), source }
    }
}

pub(crate) fn file_error<'a>(
    action: &'static str,
    disk: &'a dyn Disk,
    name: &'a str,
) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::File { action, path: disk.path(name), source }
}

fn damaged(disk: &dyn Disk, segment: u64, offset: usize, damage: Corruption) -> Error {
    Error::Damaged { path: disk.path(&segment_name(segment)), offset: offset as u64, damage }
}

fn segment_name(id: u64) -> String {
    format!("{id:016x}.log")
}

fn segment_ids(disk: &dyn Disk) -> Result<Vec<u64>, Error> {
    let names = disk.list().map_err(file_error("list", disk, ""))?;
    let ids = names.iter().filter_map(|name| {
        let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok()
    });
    Ok(ids.collect())
}

#[derive(Clone, Copy, Debug)]
struct Header {
    /// Valid bytes of the segment before this one.
    before: u64,
    base: [u8; 12],
}

fn header_of(disk: &dyn Disk, id: u64) -> Result<Header, Error> {
    let name = segment_name(id);
    let mut file = disk.open(&name).map_err(file_error("open", disk, &name))?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact(&mut bytes).map_err(|_| damaged(disk, id, 0, Corruption::Header))?;
    parse_header(&bytes, id).ok_or_else(|| damaged(disk, id, 0, Corruption::Header))
}

fn parse_header(bytes: &[u8], id: u64) -> Option<Header> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let (body, crc) = header.split_at(HEADER_BYTES - 4);
    let number = |at: usize| Some(u64::from_le_bytes(*body[at..].first_chunk::<8>()?));
    let intact = crc32fast::hash(body).to_le_bytes() == crc && &body[..8] == MAGIC;
    if !intact || number(8)? != id {
        return None;
    }
    Some(Header { before: number(16)?, base: *body[24..].first_chunk::<12>()? })
}

/// Makes a segment of zeros with its header, durable together with its directory entry.
fn create_segment(
    disk: &dyn Disk,
    id: u64,
    before: u64,
    key: &DataKey,
) -> Result<(Box<dyn DiskFile>, Cipher), Error> {
    let name = segment_name(id);
    let base = random_base();
    let mut segment = vec![0; usize::try_from(SEGMENT_BYTES).expect("4 MiB fit")];
    segment[..8].copy_from_slice(MAGIC);
    segment[8..16].copy_from_slice(&id.to_le_bytes());
    segment[16..24].copy_from_slice(&before.to_le_bytes());
    segment[24..36].copy_from_slice(&base);
    let crc = crc32fast::hash(&segment[..36]);
    segment[36..40].copy_from_slice(&crc.to_le_bytes());
    // Written beside and renamed: a segment either exists with its header or not at all.
    let make = || -> io::Result<Box<dyn DiskFile>> {
        let mut file = disk.create("segment.tmp")?;
        file.write_at(&segment, 0)?;
        file.sync()?;
        disk.rename("segment.tmp", &name)?;
        Ok(file)
    };
    let file = make().map_err(file_error("create", disk, &name))?;
    Ok((file, Cipher::new(key, base)))
}

struct ReadSegment {
    batches: Vec<Batch>,
    valid_bytes: u64,
    is_outdated: bool,
}

/// Reads one segment: up to `sealed_at` where a successor says how much of it is valid, else up to its last whole batch.
fn read_segment(
    disk: &dyn Disk,
    id: u64,
    keys: &DataKeys,
    sealed_at: Option<u64>,
) -> Result<ReadSegment, Error> {
    let name = segment_name(id);
    let mut bytes = Vec::new();
    let mut file = disk.open(&name).map_err(file_error("open", disk, &name))?;
    file.read_to_end(&mut bytes).map_err(file_error("read", disk, &name))?;
    let damaged = |offset, damage| damaged(disk, id, offset, damage);
    let header = parse_header(&bytes, id).ok_or_else(|| damaged(0, Corruption::Header))?;
    let (cipher, is_outdated) = cipher_of(&bytes, keys, header.base);
    let end = sealed_at.map(|end| usize::try_from(end).unwrap_or(usize::MAX));
    let mut batches = Vec::new();
    let mut offset = HEADER_BYTES;
    while end.is_none_or(|end| offset < end) {
        let Some(range) = whole_payload(&bytes, offset) else {
            if end.is_some() || has_whole_batch_after(&bytes, offset) {
                return Err(damaged(offset, Corruption::Checksum));
            }
            break;
        };
        let counter = batches.len() as u64;
        let next = range.end.next_multiple_of(ALIGNMENT);
        let payload = cipher
            .open(counter, &counter.to_le_bytes(), &mut bytes[range])
            .ok_or_else(|| damaged(offset, Corruption::Key))?;
        let batch =
            rmp_serde::from_slice(payload).map_err(|_| damaged(offset, Corruption::Content))?;
        batches.push(batch);
        offset = next;
    }
    Ok(ReadSegment { batches, valid_bytes: offset as u64, is_outdated })
}

/// What the first batch of a segment opens with, and whether that is out of use; the newest where nothing opens it.
fn cipher_of(bytes: &[u8], keys: &DataKeys, base: [u8; 12]) -> (Cipher, bool) {
    let ciphers = || keys.newest_first().map(|key| Cipher::new(key, base));
    let first = whole_payload(bytes, HEADER_BYTES).map(|range| &bytes[range]);
    let opens = |cipher: &Cipher| {
        first.is_some_and(|first| {
            cipher.open(0, &0_u64.to_le_bytes(), &mut first.to_vec()).is_some()
        })
    };
    let found = ciphers().enumerate().find(|(_, cipher)| opens(cipher));
    found.map_or_else(
        || (Cipher::new(&keys.current, base), false),
        |(age, cipher)| (cipher, age > 0),
    )
}

/// Where the payload of the batch at `offset` lies, if the batch is whole.
fn whole_payload(bytes: &[u8], offset: usize) -> Option<std::ops::Range<usize>> {
    let header = bytes.get(offset..)?.first_chunk::<BATCH_HEADER_BYTES>()?;
    let (length, crc) = header.split_at(4);
    let length = u32::from_le_bytes(*length.first_chunk()?) as usize;
    if !(TAG_BYTES..=BATCH_BYTES_MAX).contains(&length) {
        return None;
    }
    let start = offset + BATCH_HEADER_BYTES;
    let payload = bytes.get(start..start + length)?;
    (crc32fast::hash(payload).to_le_bytes() == crc).then_some(start..start + length)
}

/// Whether a whole batch stands anywhere behind a broken one: then that one was once durable.
fn has_whole_batch_after(bytes: &[u8], broken: usize) -> bool {
    let offsets = (broken + ALIGNMENT..bytes.len()).step_by(ALIGNMENT);
    offsets.into_iter().any(|offset| {
        bytes[offset..].first_chunk::<4>() != Some(&[0; 4])
            && whole_payload(bytes, offset).is_some()
    })
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::disk::Folder;

    fn open(directory: &Path, key: &DataKey) -> Result<(Wal, Vec<Batch>), Error> {
        Wal::open(Arc::new(Folder::new(directory).expect("folder")), &key.clone().into())
    }

    fn segment_path(directory: &Path, id: u64) -> PathBuf {
        directory.join(segment_name(id))
    }

    fn batch(index: u64) -> Batch {
        let data = vec![7; 40 + usize::try_from(index % 50).expect("small")];
        let entry = StoredEntry { kind: 0, term: 1, index, data, context: vec![1, 2] };
        let hard_state = StoredHardState { term: 1, vote: 1, commit: index - 1 };
        Batch { hard_state: Some(hard_state), entries: vec![entry], replaced_by: None }
    }

    fn written(directory: &Path, key: &DataKey, range: std::ops::Range<u64>) {
        let (mut wal, _) = open(directory, key).expect("opens");
        for index in range {
            wal.append(&batch(index)).expect("appends");
        }
    }

    fn reread(directory: &Path, key: &DataKey) -> Result<Vec<Batch>, Error> {
        open(directory, key).map(|(_, batches)| batches)
    }

    fn key() -> DataKey {
        DataKey::new([9; 32])
    }

    fn expected(range: std::ops::Range<u64>) -> Vec<Batch> {
        range.map(batch).collect()
    }

    /// Overwrites `bytes` at an offset counted from the start of the batch with this number.
    fn damage(directory: &Path, segment: u64, at: u64, bytes: &[u8]) {
        let path = segment_path(directory, segment);
        let file = OpenOptions::new().write(true).open(path).expect("segment exists");
        file.write_all_at(bytes, at).expect("writes");
    }

    #[test]
    fn what_was_appended_is_read_again_over_many_opens() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for start in [1, 11, 21] {
            written(directory.path(), &key(), start..start + 10);
        }
        assert_eq!(reread(directory.path(), &key()).expect("opens"), expected(1..31));
    }

    #[test]
    fn a_log_longer_than_a_segment_goes_on_in_the_next() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (mut wal, _) = open(directory.path(), &key()).expect("opens");
        let mut big = batch(1);
        big.entries[0].data = vec![1; 3 << 20];
        for index in 1..=4 {
            big.entries[0].index = index;
            wal.append(&big).expect("appends");
        }
        let mut huge = batch(5);
        huge.entries[0].data = vec![1; 9 << 20];
        wal.append(&huge).expect("appends");
        drop(wal);
        let batches = reread(directory.path(), &key()).expect("opens");
        assert_eq!(batches.iter().map(|b| b.entries[0].index).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_torn_last_batch_is_left_out_and_the_log_goes_on() {
        let directory = tempfile::tempdir().expect("temporary directory");
        written(directory.path(), &key(), 1..4);
        let bytes = std::fs::read(segment_path(directory.path(), 1)).expect("segment");
        let mut offset = HEADER_BYTES;
        for _ in 0..2 {
            offset = whole_payload(&bytes, offset).expect("whole").end.next_multiple_of(ALIGNMENT);
        }
        damage(directory.path(), 1, offset as u64 + 20, &[0xff; 4]);
        written(directory.path(), &key(), 3..6);
        assert_eq!(reread(directory.path(), &key()).expect("opens"), expected(1..6));
    }

    #[test]
    fn damage_before_the_end_is_refused_with_its_place() {
        let directory = tempfile::tempdir().expect("temporary directory");
        written(directory.path(), &key(), 1..9);
        damage(directory.path(), 1, HEADER_BYTES as u64 + 20, &[0xff; 4]);
        let error = reread(directory.path(), &key()).expect_err("damaged");
        assert!(
            matches!(error, Error::Damaged { offset: 40, damage: Corruption::Checksum, .. }),
            "{error}"
        );
    }

    #[test]
    fn damage_at_the_end_of_an_older_segment_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        written(directory.path(), &key(), 1..2);
        written(directory.path(), &key(), 2..3);
        damage(directory.path(), 1, HEADER_BYTES as u64 + 20, &[0xff; 4]);
        assert!(reread(directory.path(), &key()).is_err());
    }

    #[test]
    fn another_key_and_a_missing_segment_are_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for index in 1..4 {
            written(directory.path(), &key(), index..index + 1);
        }
        let error = reread(directory.path(), &DataKey::new([8; 32])).expect_err("another key");
        assert!(matches!(error, Error::Damaged { damage: Corruption::Key, .. }), "{error}");
        std::fs::remove_file(segment_path(directory.path(), 2)).expect("exists");
        let error = reread(directory.path(), &key()).expect_err("a segment is missing");
        assert!(
            matches!(error, Error::Damaged { damage: Corruption::MissingSegment, .. }),
            "{error}"
        );
    }

    #[test]
    fn compaction_keeps_what_is_not_in_the_snapshot() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for start in [1, 11, 21] {
            written(directory.path(), &key(), start..start + 10);
        }
        let (mut wal, _) = open(directory.path(), &key()).expect("opens");
        wal.compact(15).expect("compacts");
        drop(wal);
        assert_eq!(reread(directory.path(), &key()).expect("opens"), expected(11..31));
    }

    #[test]
    fn nothing_of_an_entry_is_readable_at_rest() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (mut wal, _) = open(directory.path(), &key()).expect("opens");
        let mut secret = batch(1);
        secret.entries[0].data = b"correct horse battery staple".to_vec();
        wal.append(&secret).expect("appends");
        let bytes = std::fs::read(segment_path(directory.path(), 1)).expect("segment");
        assert!(!bytes.windows(13).any(|window| window == b"correct horse"));
    }
}

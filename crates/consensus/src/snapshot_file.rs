//! The store's snapshot on disk: one sealed file for each, the newest wins.
//!
//! ```text
//! magic 8 | nonce base 12 | chunk … | last chunk
//! chunk:   length 4, its top bit set on the last one | sealed bytes
//! ```
//! Chunks bound the memory that writing and reading take beside the state itself.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use store::Snapshot;

use crate::cipher::{Cipher, DataKey, TAG_BYTES, random_base};
use crate::disk::{Disk, DiskFile};
use crate::wal::file_error;
use crate::{Corruption, Error};

const MAGIC: &[u8; 8] = b"SKEPSNP2";

/// Bytes of the state in one chunk.
const CHUNK_BYTES: usize = 1 << 20;

const LAST: u32 = 1 << 31;
const TEMPORARY: &str = "snapshot.tmp";

/// The store as of one raft entry, with the membership then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    pub(crate) state: Snapshot,
}

/// Makes `snapshot` durable and removes all but the newest `kept_old` before it.
pub(crate) fn save(
    disk: &dyn Disk,
    key: &DataKey,
    snapshot: &StoredSnapshot,
    kept_old: usize,
) -> Result<(), Error> {
    let name = name(snapshot.index);
    let write = || -> io::Result<()> {
        let mut writer = SealingWriter::new(disk.create(TEMPORARY)?, key)?;
        let encoder = &mut rmp_serde::Serializer::new(&mut writer).with_struct_map();
        snapshot.serialize(encoder).map_err(io::Error::other)?;
        writer.finish()?;
        disk.rename(TEMPORARY, &name)
    };
    write().map_err(file_error("write", disk, &name))?;
    let mut indexes = indexes(disk)?;
    indexes.sort_unstable();
    let excess = indexes.len().saturating_sub(kept_old + 1);
    for index in &indexes[..excess] {
        let name = self::name(*index);
        disk.remove(&name).map_err(file_error("remove", disk, &name))?;
    }
    Ok(())
}

/// The newest snapshot on `disk`; `None` where there is none yet.
pub(crate) fn load(disk: &dyn Disk, key: &DataKey) -> Result<Option<StoredSnapshot>, Error> {
    let Some(index) = indexes(disk)?.into_iter().max() else { return Ok(None) };
    let name = name(index);
    let file = disk.open(&name).map_err(file_error("read", disk, &name))?;
    let damaged = |damage| Error::DamagedSnapshot { path: disk.path(&name), damage };
    let mut reader = OpeningReader::new(file, key).map_err(|_| damaged(Corruption::Header))?;
    let decoded: Result<StoredSnapshot, _> = rmp_serde::from_read(io::BufReader::new(&mut reader));
    let is_whole = reader.is_whole();
    match decoded {
        Ok(snapshot) if is_whole && snapshot.index == index => Ok(Some(snapshot)),
        _ if reader.is_damaged || !is_whole => Err(damaged(Corruption::Checksum)),
        _ => Err(damaged(Corruption::Content)),
    }
}

fn name(index: u64) -> String {
    format!("{index:016x}.snap")
}

fn indexes(disk: &dyn Disk) -> Result<Vec<u64>, Error> {
    let names = disk.list().map_err(file_error("list", disk, ""))?;
    let indexes = names.iter().filter_map(|name| {
        let digits = name.strip_suffix(".snap").filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok()
    });
    Ok(indexes.collect())
}

/// Binds a chunk to its place.
fn associated(is_last: bool) -> [u8; 9] {
    let mut aad = [0; 9];
    aad[..8].copy_from_slice(MAGIC);
    aad[8] = u8::from(is_last);
    aad
}

struct SealingWriter {
    file: Box<dyn DiskFile>,
    offset: u64,
    cipher: Cipher,
    counter: u64,
    chunk: Vec<u8>,
}

impl SealingWriter {
    fn new(mut file: Box<dyn DiskFile>, key: &DataKey) -> io::Result<Self> {
        let base = random_base();
        file.write_at(MAGIC, 0)?;
        file.write_at(&base, 8)?;
        Ok(Self { file, offset: 20, cipher: Cipher::new(key, base), counter: 0, chunk: Vec::new() })
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        self.cipher.seal(self.counter, &associated(is_last), &mut self.chunk);
        let length = u32::try_from(self.chunk.len()).expect("a chunk is a mebibyte");
        let header = if is_last { length | LAST } else { length };
        self.file.write_at(&header.to_le_bytes(), self.offset)?;
        self.file.write_at(&self.chunk, self.offset + 4)?;
        self.offset += 4 + u64::from(length);
        self.counter += 1;
        self.chunk.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.seal(true)?;
        self.file.sync()
    }
}

impl Write for SealingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.seal(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct OpeningReader {
    file: Box<dyn Read + Send>,
    cipher: Cipher,
    counter: u64,
    chunk: Vec<u8>,
    read: usize,
    was_last: bool,
    is_damaged: bool,
}

impl OpeningReader {
    fn new(mut file: Box<dyn Read + Send>, key: &DataKey) -> io::Result<Self> {
        let (mut magic, mut base) = ([0; 8], [0; 12]);
        file.read_exact(&mut magic)?;
        file.read_exact(&mut base)?;
        if &magic != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let cipher = Cipher::new(key, base);
        let chunk = Vec::new();
        Ok(Self { file, cipher, counter: 0, chunk, read: 0, was_last: false, is_damaged: false })
    }

    /// Whether everything was read, and nothing follows.
    fn is_whole(&mut self) -> bool {
        let mut rest = [0; 1];
        self.was_last && self.read == self.chunk.len() && matches!(self.file.read(&mut rest), Ok(0))
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let mut header = [0; 4];
        self.file.read_exact(&mut header)?;
        let header = u32::from_le_bytes(header);
        let (is_last, length) = (header & LAST != 0, (header & !LAST) as usize);
        if !(TAG_BYTES..=CHUNK_BYTES + TAG_BYTES).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.chunk.resize(length, 0);
        self.file.read_exact(&mut self.chunk)?;
        let opened = self.cipher.open(self.counter, &associated(is_last), &mut self.chunk);
        let length = opened.ok_or(io::ErrorKind::InvalidData)?.len();
        self.chunk.truncate(length);
        (self.read, self.was_last) = (0, is_last);
        self.counter += 1;
        Ok(())
    }
}

impl Read for OpeningReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() && !self.was_last {
            if let Err(error) = self.next_chunk() {
                self.is_damaged = true;
                return Err(error);
            }
        }
        let count = into.len().min(self.chunk.len() - self.read);
        into[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Folder;

    fn snapshot() -> StoredSnapshot {
        StoredSnapshot {
            index: 7,
            term: 2,
            voters: (1..300_000).collect(),
            learners: vec![9],
            state: Snapshot::default(),
        }
    }

    #[test]
    fn a_snapshot_of_many_chunks_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().expect("dir");
        let (disk, key) = (Folder::new(directory.path()).expect("folder"), DataKey::new([1; 32]));
        save(&disk, &key, &snapshot(), 0).expect("saves");
        assert!(std::fs::metadata(disk.path(&name(7))).expect("file").len() > CHUNK_BYTES as u64);
        assert_eq!(load(&disk, &key).expect("loads"), Some(snapshot()));
    }

    #[test]
    fn a_snapshot_that_is_cut_changed_or_sealed_with_another_key_is_refused() {
        let directory = tempfile::tempdir().expect("dir");
        let (disk, key) = (Folder::new(directory.path()).expect("folder"), DataKey::new([1; 32]));
        save(&disk, &key, &snapshot(), 0).expect("saves");
        assert!(load(&disk, &DataKey::new([2; 32])).is_err());
        let path = disk.path(&name(7));
        let whole = std::fs::read(&path).expect("file");
        let cut_at = [3, 19, 30, 24 + CHUNK_BYTES + TAG_BYTES, whole.len() - 1];
        for cut in cut_at {
            std::fs::write(&path, &whole[..cut]).expect("writes");
            assert!(load(&disk, &key).is_err(), "cut at {cut}");
        }
        for at in [0, 10, 22, 30, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).expect("writes");
            assert!(load(&disk, &key).is_err(), "changed at {at}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).expect("writes");
        assert!(load(&disk, &key).is_err(), "more than was written");
    }
}

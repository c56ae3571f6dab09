//! The store's snapshot on disk: one sealed file for each, the newest wins.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use store::Snapshot;

use crate::cipher::{DataKey, DataKeys};
use crate::disk::{Disk, DiskFile};
use crate::sealed::{self, Magic};
use crate::wal::file_error;
use crate::{Corruption, Error};

const MAGIC: &Magic = b"SKEPSNP2";

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
        let file = Appending { file: disk.create(TEMPORARY)?, offset: 0 };
        sealed::write(file, MAGIC, key, snapshot)?.file.sync()?;
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

/// The newest snapshot on `disk`, and whether it is sealed with the current key; `None` where there is none yet.
pub(crate) fn load(
    disk: &dyn Disk,
    keys: &DataKeys,
) -> Result<Option<(StoredSnapshot, bool)>, Error> {
    let Some(index) = indexes(disk)?.into_iter().max() else { return Ok(None) };
    let name = name(index);
    let read = |key| {
        let file = disk.open(&name).map_err(file_error("read", disk, &name))?;
        let damaged = |damage| Error::DamagedSnapshot { path: disk.path(&name), damage };
        match sealed::read::<StoredSnapshot>(file, MAGIC, key) {
            Ok(snapshot) if snapshot.index == index => Ok(snapshot),
            Ok(_) => Err(damaged(Corruption::Content)),
            Err(damage) => Err(damaged(damage)),
        }
    };
    let error = match read(&keys.current) {
        Ok(snapshot) => return Ok(Some((snapshot, true))),
        Err(error) => error,
    };
    let older = keys.previous.iter().find_map(|key| read(key).ok());
    older.map(|snapshot| Some((snapshot, false))).ok_or(error)
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

/// A file that is written from its beginning to its end.
struct Appending {
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl Write for Appending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::TAG_BYTES;
    use crate::disk::Folder;
    use crate::sealed::CHUNK_BYTES;

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
        assert_eq!(load(&disk, &key.into()).expect("loads"), Some((snapshot(), true)));
    }

    #[test]
    fn a_snapshot_that_is_cut_changed_or_sealed_with_another_key_is_refused() {
        let directory = tempfile::tempdir().expect("dir");
        let (disk, key) = (Folder::new(directory.path()).expect("folder"), DataKey::new([1; 32]));
        save(&disk, &key, &snapshot(), 0).expect("saves");
        assert!(load(&disk, &DataKey::new([2; 32]).into()).is_err());
        let keys = DataKeys::from(key);
        let path = disk.path(&name(7));
        let whole = std::fs::read(&path).expect("file");
        let cut_at = [3, 19, 30, 24 + CHUNK_BYTES + TAG_BYTES, whole.len() - 1];
        for cut in cut_at {
            std::fs::write(&path, &whole[..cut]).expect("writes");
            assert!(load(&disk, &keys).is_err(), "cut at {cut}");
        }
        for at in [0, 10, 22, 30, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).expect("writes");
            assert!(load(&disk, &keys).is_err(), "changed at {at}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).expect("writes");
        assert!(load(&disk, &keys).is_err(), "more than was written");
    }
}

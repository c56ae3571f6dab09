//! The store's snapshot on disk: one sealed file for each, the newest wins.
//!
//! ```text
//! magic 8 | nonce base 12 | sealed payload
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::Snapshot;

use crate::cipher::{Cipher, DataKey, random_base};
use crate::wal::file_error;
use crate::{Corruption, Error};

const MAGIC: &[u8; 8] = b"SKEPSNP1";

/// The store as of one raft entry, with the membership then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    pub(crate) state: Snapshot,
}

/// Makes `snapshot` durable and removes all but the newest `kept_old` before it.
pub(crate) fn save(
    directory: &Path,
    key: &DataKey,
    snapshot: &StoredSnapshot,
    kept_old: usize,
) -> Result<(), Error> {
    let path = path(directory, snapshot.index);
    let base = random_base();
    let mut payload = rmp_serde::to_vec_named(snapshot).expect("a snapshot is plain data");
    Cipher::new(key, base).seal(snapshot.index, MAGIC, &mut payload);
    let temporary = directory.join("snapshot.tmp");
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&base)?;
        file.write_all(&payload)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(file_error("write", &path))?;
    let mut indexes = indexes(directory)?;
    indexes.sort_unstable();
    let excess = indexes.len().saturating_sub(kept_old + 1);
    for index in &indexes[..excess] {
        let path = self::path(directory, *index);
        std::fs::remove_file(&path).map_err(file_error("remove", &path))?;
    }
    Ok(())
}

/// The newest snapshot in `directory`; `None` where there is none yet.
pub(crate) fn load(directory: &Path, key: &DataKey) -> Result<Option<StoredSnapshot>, Error> {
    let Some(index) = indexes(directory)?.into_iter().max() else { return Ok(None) };
    let path = path(directory, index);
    let mut bytes = std::fs::read(&path).map_err(file_error("read", &path))?;
    let damaged = |damage| Error::DamagedSnapshot { path: path.clone(), damage };
    let (magic, rest) =
        bytes.split_first_chunk_mut::<8>().ok_or_else(|| damaged(Corruption::Header))?;
    let (base, sealed) =
        rest.split_first_chunk_mut::<12>().ok_or_else(|| damaged(Corruption::Header))?;
    if magic != MAGIC {
        return Err(damaged(Corruption::Header));
    }
    let payload = Cipher::new(key, *base)
        .open(index, MAGIC, sealed)
        .ok_or_else(|| damaged(Corruption::Checksum))?;
    let snapshot = rmp_serde::from_slice(payload).map_err(|_| damaged(Corruption::Content))?;
    Ok(Some(snapshot))
}

fn path(directory: &Path, index: u64) -> PathBuf {
    directory.join(format!("{index:016x}.snap"))
}

fn indexes(directory: &Path) -> Result<Vec<u64>, Error> {
    let mut indexes = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(file_error("list", directory))? {
        let name = entry.map_err(file_error("list", directory))?.file_name();
        let name = name.to_string_lossy();
        let digits = name.strip_suffix(".snap").filter(|digits| digits.len() == 16);
        indexes.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    Ok(indexes)
}

//! A disk that forgets what was not flushed, and tears what was being written.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consensus::{Disk, DiskFile};

use crate::random::Random;

/// What a flush says that the power failed in. Nobody is there to hear it.
pub(crate) const POWER_LOSS: &str = "the power failed";

#[derive(Clone, Debug, Default)]
struct Content {
    /// As programs see it.
    current: Vec<u8>,
    /// As a loss of power leaves it, without what is pending.
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Files removed since the folder was last flushed, oldest first.
    removed: Vec<(String, Arc<Mutex<Content>>)>,
    is_full: bool,
    /// The power fails in the next flush.
    fails_in_flush: bool,
}

/// One host's disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    content: Arc<Mutex<Content>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(into: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if into.len() < offset + bytes.len() {
        into.resize(offset + bytes.len(), 0);
    }
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl SimDisk {
    pub(crate) fn set_full(&self, is_full: bool) {
        lock(&self.0).is_full = is_full;
    }

    /// Has the power fail in the next flush, or no more.
    pub(crate) fn fail_in_flush(&self, is_armed: bool) {
        lock(&self.0).fails_in_flush = is_armed;
    }

    pub(crate) fn wipe(&self) {
        let mut state = lock(&self.0);
        state.files.clear();
        state.removed.clear();
    }

    /// The power fails. Of what was not flushed, each write is kept, lost, or torn; the last removals come back.
    pub(crate) fn lose_power(&self, random: &mut Random) {
        let mut state = lock(&self.0);
        // The journal keeps the order of removals, so those that come back are the last ones.
        let kept = random.index(state.removed.len() + 1);
        let back = state.removed.split_off(kept);
        state.removed.clear();
        state.files.extend(back);
        let temporary: Vec<_> =
            state.files.keys().filter(|name| name.ends_with(".tmp")).cloned().collect();
        for name in temporary {
            state.files.remove(&name);
        }
        for content in state.files.values() {
            let mut content = lock(content);
            let pending = std::mem::take(&mut content.pending);
            for (offset, mut bytes) in pending {
                match random.below(3) {
                    0 => continue,
                    1 => bytes.truncate(random.index(bytes.len() + 1)),
                    _ => {}
                }
                let offset = usize::try_from(offset).expect("small files");
                write(&mut content.durable, &bytes, offset);
            }
            content.current = content.durable.clone();
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.0).files.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let state = lock(&self.0);
        let content = state.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = lock(content).current.clone();
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = lock(&self.0);
        if state.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = Arc::new(Mutex::new(Content::default()));
        state.files.insert(name.to_owned(), content.clone());
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock(&self.0);
        let content = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), content);
        // The folder is flushed: what was removed before stays removed.
        state.removed.clear();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.0);
        if state.fails_in_flush {
            return Err(io::Error::other(POWER_LOSS));
        }
        state.removed.clear();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock(&self.0);
        let content = state.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.removed.push((name.to_owned(), content));
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

impl DiskFile for SimFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = lock(&self.content);
        let end = usize::try_from(offset).expect("small files") + bytes.len();
        if end > content.current.len() && lock(&self.disk.0).is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        write(&mut content.current, bytes, end - bytes.len());
        content.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if lock(&self.disk.0).fails_in_flush {
            return Err(io::Error::other(POWER_LOSS));
        }
        let mut content = lock(&self.content);
        for (offset, bytes) in std::mem::take(&mut content.pending) {
            write(&mut content.durable, &bytes, usize::try_from(offset).expect("small files"));
        }
        Ok(())
    }
}

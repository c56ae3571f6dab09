//! Ways in for the fuzz targets, to what no other crate sees.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cipher::DataKey;
use crate::disk::{Disk, DiskFile};
use crate::wal::{Batch, StoredEntry, Wal};

type Content = Arc<Mutex<Vec<u8>>>;

/// A folder in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, Content>>>);

#[derive(Debug)]
struct MemoryFile(Content);

impl Memory {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Content>> {
        self.0.lock().expect("no thread panics")
    }
}

fn locked(content: &Content) -> MutexGuard<'_, Vec<u8>> {
    content.lock().expect("no thread panics")
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let files = self.files();
        let content = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(locked(content).clone())))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let content = Content::default();
        self.files().insert(name.to_owned(), content.clone());
        Ok(Box::new(MemoryFile(content)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = locked(&self.0);
        let offset = usize::try_from(offset).expect("files are small");
        let end = content.len().max(offset + bytes.len());
        content.resize(end, 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes batches, flips bytes of the log or cuts its end off, and opens it again: it refuses, or it holds all that
/// was written but for one write at the end, which may have been going on.
pub fn damaged_log(batches: u8, damage: &[(u16, u8)], cut: Option<u16>) {
    let (folder, keys) = (Memory::default(), DataKey::new([7; 32]).into());
    let disk: Arc<dyn Disk> = Arc::new(folder.clone());
    let written: Vec<_> = (0..u64::from(batches % 8)).map(batch).collect();
    {
        let (mut wal, _) = Wal::open(disk.clone(), &keys).expect("an empty folder opens");
        for batch in &written {
            wal.append(batch).expect("memory takes it");
        }
    }
    for content in folder.files().values() {
        let mut content = locked(content);
        for (offset, bits) in damage {
            if let Some(byte) = content.get_mut(usize::from(*offset)) {
                *byte ^= bits;
            }
        }
        if let Some(cut) = cut {
            content.truncate(usize::from(cut));
        }
    }
    let Ok((_, read)) = Wal::open(disk, &keys) else { return };
    assert!(written.starts_with(&read), "something else was read than was written");
    if cut.is_none() && damage.iter().all(|(_, bits)| *bits == 0) {
        assert_eq!(read, written);
    } else if cut.is_none() {
        assert!(read.len() + 1 >= written.len(), "more than the last write is gone");
    }
}

fn batch(index: u64) -> Batch {
    let data = vec![u8::try_from(index).expect("few"); 40];
    let entry = StoredEntry { kind: 0, term: 1, index: index + 1, data, context: Vec::new() };
    Batch { hard_state: None, entries: vec![entry], replaced_by: None }
}

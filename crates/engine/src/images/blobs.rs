//! The content store: files named by the digest of their content.
//!
//! A blob appears under its name only when it is whole, verified and on disk; until then it is a
//! temporary file that the next start of the daemon sweeps away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::digest::{Digest, Hasher};
use super::error::{Error, io_error};

/// Downloads broken off with less than this many bytes are begun anew.
const PARTIAL_BYTES_MIN: u64 = 1024 * 1024;
/// How long a download that was broken off is kept for its continuation.
const PARTIAL_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// Distinguishes temporary files of one process.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A directory of blobs beside a directory of temporary files, on one file system.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
    tmp: PathBuf,
    partial: PathBuf,
}

impl Blobs {
    /// Makes the directories where they are missing.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let blobs = Self {
            dir: root.join("blobs/sha256"),
            tmp: root.join("tmp"),
            partial: root.join("partial"),
        };
        for dir in [&blobs.dir, &blobs.tmp, &blobs.partial] {
            fs::create_dir_all(dir).map_err(io_error("create directory", dir))?;
        }
        blobs.sweep_partial()?;
        Ok(blobs)
    }

    /// Where the blob is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// A name for something unfinished.
    pub fn temporary_path(&self) -> PathBuf {
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        self.tmp.join(format!("{}-{number}", std::process::id()))
    }

    /// The blob's size in bytes, when it is here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|m| m.len())
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.path(digest);
        File::open(&path).map_err(io_error("open blob", &path))
    }

    /// Reads a whole blob of at most `max` bytes.
    pub fn read(&self, what: &'static str, digest: &Digest, max: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let path = self.path(digest);
        let file = self.open_blob(digest)?;
        file.take(max + 1).read_to_end(&mut bytes).map_err(io_error("read blob", &path))?;
        if bytes.len() as u64 > max {
            return Err(Error::TooLarge { what, max });
        }
        Ok(bytes)
    }

    /// Starts a new blob.
    pub fn writer(&self) -> Result<BlobWriter, Error> {
        let path = self.temporary_path();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create", &path))?;
        Ok(BlobWriter {
            store: self.clone(),
            temporary: Temporary(path),
            file,
            hasher: Hasher::new(),
            size: 0,
        })
    }

    /// Goes on with a blob whose download was broken off, or starts a new one.
    pub fn resume(&self, digest: &Digest) -> Result<BlobWriter, Error> {
        let partial = self.partial.join(digest.hex());
        let mut writer = self.writer()?;
        let path = writer.temporary.0.clone();
        match fs::rename(&partial, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(writer),
            result => result.map_err(io_error("resume", &partial))?,
        }
        let file = OpenOptions::new().read(true).append(true).open(&path);
        writer.file = file.map_err(io_error("open", &path))?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = writer.file.read(&mut buffer).map_err(io_error("read", &path))?;
            if count == 0 {
                return Ok(writer);
            }
            writer.hasher.update(&buffer[..count]);
            writer.size += count as u64;
        }
    }

    fn sweep_partial(&self) -> Result<(), Error> {
        let dir = &self.partial;
        for entry in fs::read_dir(dir).map_err(io_error("read directory", dir))? {
            let entry = entry.map_err(io_error("read directory", dir))?;
            let age =
                entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_none_or(|age| age > PARTIAL_PERIOD) {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Stores `bytes`.
    pub fn insert(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        let path = writer.temporary.0.clone();
        writer.write_all(bytes).map_err(io_error("write", &path))?;
        Ok(writer.finish()?.commit()?.0)
    }

    /// Removes a blob; a missing one is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(io_error("remove blob", &path)),
        }
    }

    /// All blobs. Files that are not named like one are left alone.
    pub fn all(&self) -> Result<Vec<Digest>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(io_error("read directory", &self.dir))?;
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read directory", &self.dir))?;
            if let Some(Ok(digest)) = entry.file_name().to_str().map(Digest::from_hex) {
                blobs.push(digest);
            }
        }
        Ok(blobs)
    }

    fn sync_directory(&self) -> Result<(), Error> {
        let sync = || File::open(&self.dir)?.sync_all();
        sync().map_err(io_error("sync", &self.dir))
    }
}

/// A path that is removed when it goes out of scope.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Temporary {
    /// Leaves the file where it is.
    pub(crate) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        let result =
            if self.0.is_dir() { fs::remove_dir_all(&self.0) } else { fs::remove_file(&self.0) };
        if let Err(error) = result
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.0.display(), %error, "temporary file stays");
        }
    }
}

/// A blob being written, hashed on the way.
#[derive(Debug)]
pub struct BlobWriter {
    store: Blobs,
    temporary: Temporary,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter {
    /// Bytes written.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it is being written.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// Begins again with nothing.
    pub fn restart(&mut self) -> Result<(), Error> {
        let path = &self.temporary.0;
        self.file.set_len(0).map_err(io_error("truncate", path))?;
        self.file.rewind().map_err(io_error("rewind", path))?;
        self.hasher = Hasher::new();
        self.size = 0;
        Ok(())
    }

    /// Keeps what there is of `digest` for [`Blobs::resume`], if it is worth it.
    pub fn park(self, digest: &Digest) -> Result<(), Error> {
        if self.size < PARTIAL_BYTES_MIN {
            return Ok(());
        }
        let partial = self.store.partial.join(digest.hex());
        fs::rename(&self.temporary.0, &partial).map_err(io_error("keep", &partial))?;
        self.temporary.keep();
        Ok(())
    }

    /// Ends the writing; the blob is still temporary.
    pub fn finish(self) -> Result<FinishedBlob, Error> {
        let Self { store, temporary, file, hasher, size } = self;
        // Many blobs may wait to be committed; an open file for each would be too many.
        drop(file);
        Ok(FinishedBlob { digest: hasher.finish(), size, store, temporary })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A blob that is whole but not yet in the store.
#[derive(Debug)]
pub struct FinishedBlob {
    /// Of what was written.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    store: Blobs,
    temporary: Temporary,
}

impl FinishedBlob {
    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// The content from its start.
    pub fn reader(&self) -> Result<File, Error> {
        File::open(&self.temporary.0).map_err(io_error("open", &self.temporary.0))
    }

    /// The whole content, when it is of at most `max` bytes.
    pub fn read(&self, what: &'static str, max: u64) -> Result<Vec<u8>, Error> {
        if self.size > max {
            return Err(Error::TooLarge { what, max });
        }
        fs::read(&self.temporary.0).map_err(io_error("read", &self.temporary.0))
    }

    /// Puts the blob into the store, on disk for good, and keeps the temporary name besides, for
    /// others who share this.
    pub fn link(&self) -> Result<(), Error> {
        let path = self.store.path(&self.digest);
        let sync = || File::open(&self.temporary.0)?.sync_data();
        sync().map_err(io_error("sync", &self.temporary.0))?;
        match fs::hard_link(&self.temporary.0, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(io_error("link", &path))?,
        }
        self.store.sync_directory()
    }

    /// Puts the blob into the store, on disk for good.
    pub fn commit(self) -> Result<(Digest, u64), Error> {
        let path = self.store.path(&self.digest);
        let sync = || File::open(&self.temporary.0)?.sync_data();
        sync().map_err(io_error("sync", &self.temporary.0))?;
        fs::rename(&self.temporary.0, &path).map_err(io_error("rename", &path))?;
        self.temporary.keep();
        self.store.sync_directory()?;
        Ok((self.digest, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_found_by_its_digest_and_gone_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = blobs.insert(b"content").unwrap();
        assert_eq!(digest, Digest::of(b"content"));
        assert_eq!(blobs.insert(b"content").unwrap(), digest);
        assert_eq!(blobs.read("blob", &digest, 7).unwrap(), b"content");
        assert!(matches!(blobs.read("blob", &digest, 6), Err(Error::TooLarge { .. })));
        assert_eq!(blobs.all().unwrap(), [digest]);
        blobs.remove(&digest).unwrap();
        blobs.remove(&digest).unwrap();
        assert_eq!(blobs.size(&digest), None);
    }

    #[test]
    fn a_download_that_was_broken_off_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let content = vec![7u8; 3 << 20];
        let digest = Digest::of(&content);
        let mut writer = blobs.resume(&digest).unwrap();
        writer.write_all(&content[..2 << 20]).unwrap();
        writer.park(&digest).unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut writer = blobs.resume(&digest).unwrap();
        assert_eq!(writer.size(), 2 << 20);
        writer.write_all(&content[2 << 20..]).unwrap();
        assert_eq!(writer.finish().unwrap().commit().unwrap(), (digest, 3 << 20));

        let mut writer = blobs.resume(&digest).unwrap();
        assert_eq!(writer.size(), 0);
        writer.write_all(b"little").unwrap();
        writer.restart().unwrap();
        writer.write_all(b"less").unwrap();
        let mut again = blobs.writer().unwrap();
        again.write_all(b"less").unwrap();
        assert_eq!(writer.finish().unwrap().digest, again.finish().unwrap().digest);
    }

    #[test]
    fn an_unfinished_blob_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut writer = blobs.writer().unwrap();
        writer.write_all(b"half").unwrap();
        drop(writer);
        drop(blobs.writer().unwrap().finish().unwrap());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        assert!(blobs.all().unwrap().is_empty());
    }
}

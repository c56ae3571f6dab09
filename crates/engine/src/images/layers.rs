//! Unpacked layers: one directory for each chain id, shared by all images that stand on it.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::blobs::Temporary;
use super::compression;
use super::digest::{Digest, Hasher};
use super::error::{Error, io_error};
use super::state::{Image, Layer};
use super::store::{Images, LAYERS};
use super::unpack;

/// Digits of a layer directory's name: short, so that 127 of them fit a page of mount options.
const DIR_DIGITS: usize = 16;
/// Bytes read from an archive at once.
const READ_BYTES: usize = 256 * 1024;

/// Hears how many bytes of an archive were read.
pub(super) type Report<'a> = &'a (dyn Fn(u64) + Sync);

/// A layer to unpack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// What the uncompressed archive must hash to.
    pub(super) diff_id: Digest,
    /// Chain id of the layer beneath.
    pub(super) parent: Option<Digest>,
    /// Digest of the archive as it is stored.
    pub(super) blob: Digest,
}

impl Images {
    /// Whether the layer with this chain id is ready for use.
    pub(super) fn has_layer(&self, chain: &Digest) -> bool {
        self.state().layers.get(chain).is_some_and(|layer| layer.is_unpacked)
    }

    /// Unpacks a layer, unless it is there or another thread is at it, which is waited for.
    /// `report` hears how much of the stored archive was read.
    ///
    /// # Errors
    /// [`Error::DiffId`] when the content is not what the image says; nothing stays then.
    pub(super) fn unpack_layer(
        &self,
        source: Source,
        archive: impl Read + Send,
        report: Report<'_>,
    ) -> Result<(), Error> {
        let chain = source.diff_id.chain(source.parent.as_ref());
        let _turn = Turn::wait(self, chain);
        if self.has_layer(&chain) {
            return Ok(());
        }
        let temporary = Temporary(self.0.blobs.temporary_path());
        let path = &temporary.0;
        fs::create_dir(path).map_err(io_error("create directory", path))?;
        let bytes = unpack_verified(source.diff_id, archive, path, report)?;
        let dir = self.directory_name(&chain);
        let target = self.0.layers_dir.join(&dir);
        fs::rename(path, &target).map_err(io_error("rename layer", &target))?;
        temporary.keep();
        let layer = Layer {
            diff_id: source.diff_id,
            parent: source.parent,
            blob: source.blob,
            dir,
            bytes,
            unsynced_boot: Some(self.0.boot.clone()),
            is_unpacked: true,
        };
        self.state().layers.insert(chain, layer);
        Ok(())
    }

    /// Unpacks again what a crash of the machine may have left incomplete.
    pub(super) fn restore_layers(&self, chains: &[Digest]) -> Result<(), Error> {
        for chain in chains {
            let layer = self.state().layers.get(chain).cloned();
            let Some(layer) = layer.filter(|layer| !layer.is_unpacked) else { continue };
            tracing::info!(layer = %chain, "layer is unpacked again");
            let file = self.0.blobs.open_blob(&layer.blob)?;
            let source = Source { diff_id: layer.diff_id, parent: layer.parent, blob: layer.blob };
            self.unpack_layer(source, file, &|_| {})?;
        }
        Ok(())
    }

    /// The unpacked size of all layers of an image, in bytes.
    pub fn size(&self, image: &Image) -> u64 {
        image.record.size
    }

    /// Moves a layer's directory out of the way; it is removed when the result is dropped.
    pub(super) fn move_aside(&self, dir: &str) -> Temporary {
        let path = self.0.layers_dir.join(dir);
        let aside = Temporary(self.0.blobs.temporary_path());
        match fs::rename(&path, &aside.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "layer directory stays");
            }
            _ => {}
        }
        aside
    }

    /// Waits in a thread until all unpacked layers are on disk, and notes that they are.
    pub(super) fn settle_later(&self) {
        let images = Arc::downgrade(&self.0);
        let spawned = std::thread::Builder::new().name("sync-layers".to_owned()).spawn(move || {
            let Some(inner) = images.upgrade() else { return };
            if let Err(error) = Images(inner).settle() {
                tracing::warn!(%error, "layers are not known to be on disk");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "layers are not known to be on disk");
        }
    }

    /// Waits until all layers unpacked so far are on disk, and notes that they are.
    ///
    /// # Errors
    /// When the disk or the database does not take it; the layers stay usable until a reboot.
    pub fn settle(&self) -> Result<(), Error> {
        let unsynced = |layer: &Layer| layer.unsynced_boot.is_some() && layer.is_unpacked;
        let pending: Vec<Digest> = {
            let state = self.state();
            state.layers.iter().filter(|(_, l)| unsynced(l)).map(|(chain, _)| *chain).collect()
        };
        if pending.is_empty() {
            return Ok(());
        }
        let dir = &self.0.layers_dir;
        let fd = File::open(dir).map_err(io_error("open", dir))?;
        rustix::fs::syncfs(&fd).map_err(io_error("sync", dir))?;
        let mut state = self.state();
        for chain in &pending {
            if let Some(layer) = state.layers.get_mut(chain) {
                layer.unsynced_boot.take_if(|boot| *boot == self.0.boot);
            }
        }
        // Layers of an operation that is still running get their record when it ends.
        let live: BTreeSet<Digest> =
            state.images.values().flat_map(|image| image.config.chain_ids()).collect();
        self.0.db.write(|batch| {
            for chain in pending.iter().filter(|chain| live.contains(chain)) {
                if let Some(layer) = state.layers.get(chain) {
                    batch.put(LAYERS, &chain.to_string(), layer)?;
                }
            }
            Ok::<_, Error>(())
        })
    }

    /// A name that no other layer has: digits of the chain id, more of them in the case that
    /// should never be.
    fn directory_name(&self, chain: &Digest) -> String {
        let hex = chain.hex();
        let state = self.state();
        let is_taken = |dir: &str| state.layers.iter().any(|(c, l)| c != chain && l.dir == dir);
        let length = (DIR_DIGITS..=hex.len()).find(|n| !is_taken(&hex[..*n]));
        hex[..length.unwrap_or(hex.len())].to_owned()
    }
}

/// The right to unpack one layer.
struct Turn<'a> {
    images: &'a Images,
    chain: Digest,
}

impl<'a> Turn<'a> {
    fn wait(images: &'a Images, chain: Digest) -> Self {
        let inner = &images.0;
        let unpacking = inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unpacking = inner
            .unpacked
            .wait_while(unpacking, |unpacking| unpacking.contains(&chain))
            .unwrap_or_else(PoisonError::into_inner);
        unpacking.insert(chain);
        Self { images, chain }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let inner = &self.images.0;
        inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chain);
        inner.unpacked.notify_all();
    }
}

fn unpack_verified(
    diff_id: Digest,
    archive: impl Read + Send,
    path: &Path,
    report: Report<'_>,
) -> Result<u64, Error> {
    // What overlayfs shows of `/` comes from the container's own directory; this one matters to
    // nobody but is the archive's to set.
    let root = File::open(path).map_err(io_error("open", path))?;
    rustix::fs::fchmod(&root, rustix::fs::Mode::from_raw_mode(0o755))
        .map_err(io_error("change mode of", path))?;
    let archive = Metered { inner: archive, read: 0, report };
    let archive = BufReader::with_capacity(READ_BYTES, archive);
    let stream = compression::uncompressed(archive).map_err(io_error("read layer", path))?;
    let mut hashing = Hashing { inner: stream, hasher: Hasher::new() };
    let unpacked = unpack::unpack(&mut hashing, root.as_fd(), unpack::LAYER_LIMITS)?;
    let found = hashing.hasher.finish();
    if found != diff_id {
        return Err(Error::DiffId { expected: diff_id, found });
    }
    Ok(unpacked.bytes)
}

/// Compares the directories on disk with the records: records without directory, or from a boot
/// that ended before the files were on disk, are to be unpacked again. Returns directories that
/// are not to be used.
pub(super) fn check_directories(
    dir: &Path,
    boot: &str,
    layers: &mut HashMap<Digest, Layer>,
) -> Result<Vec<String>, Error> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(io_error("read directory", dir))? {
        let entry = entry.map_err(io_error("read directory", dir))?;
        found.extend(entry.file_name().into_string());
    }
    for layer in layers.values_mut() {
        let is_whole = layer.unsynced_boot.as_deref().is_none_or(|b| b == boot);
        layer.is_unpacked = is_whole && found.contains(&layer.dir);
    }
    let used: BTreeSet<&str> =
        layers.values().filter(|l| l.is_unpacked).map(|l| l.dir.as_str()).collect();
    Ok(found.iter().filter(|name| !used.contains(name.as_str())).cloned().collect())
}

/// Reports what is read.
struct Metered<'a, R> {
    inner: R,
    read: u64,
    report: Report<'a>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read += count as u64;
        (self.report)(self.read);
        Ok(count)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

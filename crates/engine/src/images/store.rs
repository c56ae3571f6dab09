//! The images of one node: opening the store, finding an image, adding one, naming one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::blobs::Blobs;
use super::config::{CONFIG_BYTES_MAX, ImageConfig, LAYERS_MAX};
use super::digest::Digest;
use super::error::{Error, io_error, json_error};
use super::event::{EVENTS_MAX, ImageAction, ImageEvent};
use super::manifest::Descriptor;
use super::reaper::Reaper;
use super::reference::{AnyReference, Reference};
use super::state::{Garbage, ImageRecord, Layer, State};
use super::transfer::Transfers;
use super::{layers, rootfs};
use crate::db::{self, Db};
use crate::registry::{self, Registry};

pub use super::state::Image;

/// Images by id.
pub(super) const IMAGES: db::Table = db::table("images");
/// Image ids by reference.
const REFERENCES: db::Table = db::table("image-references");
/// Layers by chain id.
pub(super) const LAYERS: db::Table = db::table("image-layers");
/// Repositories that a blob is known to be in, by its digest.
pub(super) const SOURCES: db::Table = db::table("image-blob-sources");
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where images live.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds `images/` and `rootfs/`, on one file system that overlayfs can stand on.
    pub data_root: PathBuf,
    /// How registries are reached.
    pub registry: registry::Config,
}

/// The image store of one node. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Images(pub(super) Arc<Inner>);

/// What clones of a store share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) db: Arc<Db>,
    pub(super) blobs: Blobs,
    pub(super) layers_dir: PathBuf,
    pub(super) rootfs_dir: PathBuf,
    pub(super) boot: String,
    pub(super) state: Mutex<State>,
    /// Layers that a thread is unpacking now, by chain id.
    pub(super) unpacking: Mutex<BTreeSet<Digest>>,
    pub(super) unpacked: Condvar,
    pub(super) reaper: Reaper,
    pub(super) registry: Registry,
    /// Turns of those who transfer; see `transfer.rs`.
    pub(super) transfers: Transfers,
    events: broadcast::Sender<ImageEvent>,
}

/// An image about to be added. Its blobs are in the store and its layers unpacked, all pinned.
#[derive(Debug)]
pub(super) struct NewImage {
    /// Digest of the configuration document.
    pub(super) id: Digest,
    pub(super) config: ImageConfig,
    pub(super) manifest: Option<Descriptor>,
    pub(super) layers: Vec<Descriptor>,
    pub(super) parent: Option<Digest>,
}

impl Images {
    /// Opens the store beneath `config.data_root`, making it where it is missing, and sweeps what
    /// an earlier daemon left unfinished.
    ///
    /// # Errors
    /// Also when the database has records that it cannot read; nothing is removed then.
    pub fn open(config: &Config, db: Arc<Db>) -> Result<Self, Error> {
        let root = config.data_root.join("images");
        sweep_temporary(&root)?;
        let blobs = Blobs::open(&root)?;
        let layers_dir = root.join("layers");
        let rootfs_dir = config.data_root.join("rootfs");
        for dir in [&layers_dir, &rootfs_dir] {
            fs::create_dir_all(dir).map_err(io_error("create directory", dir))?;
        }
        let boot = fs::read_to_string(BOOT_ID).map_err(io_error("read", Path::new(BOOT_ID)))?;
        let boot = boot.trim().to_owned();
        let mut state = read_state(&db, &blobs)?;
        let stray = layers::check_directories(&layers_dir, &boot, &mut state.layers)?;
        let reaper = Reaper::start()?;
        state.holds = rootfs::read_holds(&rootfs_dir, |dir| {
            let aside = blobs.temporary_path();
            fs::rename(dir, &aside).map_err(io_error("remove", dir))?;
            reaper.remove(aside);
            Ok(())
        })?;
        let images = Self(Arc::new(Inner {
            db,
            blobs,
            layers_dir,
            rootfs_dir,
            boot,
            state: Mutex::new(state),
            unpacking: Mutex::new(BTreeSet::new()),
            unpacked: Condvar::new(),
            reaper,
            registry: Registry::new(config.registry.clone()),
            transfers: Transfers::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
        }));
        for dir in stray {
            images.move_aside(&dir);
        }
        images.collect_garbage()?;
        Ok(images)
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ImageEvent> {
        self.0.events.subscribe()
    }

    /// The image with this id.
    pub fn get(&self, id: &Digest) -> Option<Arc<Image>> {
        self.state().images.get(id).cloned()
    }

    /// The image that a user means by `name`: a reference, an id, or the beginning of one.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`] in Docker's words; [`Error::Reference`] when `name` is neither.
    pub fn find(&self, name: &str) -> Result<Arc<Image>, Error> {
        self.state().find(name)
    }

    /// The references of an image, in order of name.
    pub fn references_of(&self, id: &Digest) -> Vec<Reference> {
        self.state().references_of(id)
    }

    /// Points `reference` at `image`, taking it from another image if need be.
    ///
    /// # Errors
    /// References with a digest cannot be pointed anywhere.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<(), Error> {
        if reference.digest().is_some() {
            return Err(Error::TagWithDigest);
        }
        if reference.familiar_name() == "sha256" {
            return Err(Error::TagLikeDigest);
        }
        let reference = reference.clone().or_latest();
        self.point(&image.id, std::slice::from_ref(&reference))?;
        self.emit(ImageAction::Tag, image, &reference.familiar());
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held cannot leave the maps half changed: each change is one
        // insert or remove.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn emit(&self, action: ImageAction, image: &Image, name: &str) {
        let mut attributes = image.config.config.labels.clone();
        attributes.insert("name".to_owned(), name.to_owned());
        self.emit_raw(ImageEvent { action, id: image.id.to_string(), attributes });
    }

    pub(super) fn emit_raw(&self, event: ImageEvent) {
        // Without subscribers there is nobody to tell.
        self.0.events.send(event).ok();
    }

    /// Adds an image, or finds that it is here already, and points `references` at it. Returns the
    /// image and the images that lost a reference.
    pub(super) fn add(
        &self,
        new: NewImage,
        references: &[Reference],
    ) -> Result<(Arc<Image>, Vec<Moved>), Error> {
        let mut state = self.state();
        let image = state.assemble(new);
        let chains = image.config.chain_ids();
        let moved = state.moved_by(references, &image.id);
        // A layer may have come in another form before, which only other images need now.
        for (chain, blob) in chains.iter().zip(&image.record.layers) {
            if let Some(layer) = state.layers.get_mut(chain) {
                layer.blob = blob.digest;
            }
        }
        self.0.db.write(|batch| {
            for layer in chains.iter().filter_map(|chain| Some((chain, state.layers.get(chain)?))) {
                batch.put(LAYERS, &layer.0.to_string(), layer.1)?;
            }
            batch.put(IMAGES, &image.id.to_string(), &image.record)?;
            for reference in references {
                batch.put(REFERENCES, &reference.to_string(), &image.id)?;
            }
            Ok::<_, Error>(())
        })?;
        for reference in references {
            state.references.insert(reference.clone(), image.id);
        }
        state.images.insert(image.id, Arc::clone(&image));
        drop(state);
        self.settle_later();
        Ok((image, moved))
    }

    /// Points references at an image that is here.
    pub(super) fn point(&self, id: &Digest, references: &[Reference]) -> Result<(), Error> {
        let mut state = self.state();
        let image = state.images.get(id).ok_or_else(|| Error::NoSuchImage(id.to_string()))?;
        let mut image = Image::clone(image);
        image.record.last_tagged = Some(jiff::Timestamp::now().to_string());
        self.0.db.write(|batch| {
            batch.put(IMAGES, &id.to_string(), &image.record)?;
            for reference in references {
                batch.put(REFERENCES, &reference.to_string(), id)?;
            }
            Ok::<_, Error>(())
        })?;
        state.references.extend(references.iter().map(|r| (r.clone(), *id)));
        state.images.insert(*id, Arc::new(image));
        Ok(())
    }

    /// Removes references and images from the database and then from memory.
    pub(super) fn forget(
        &self,
        state: &mut State,
        references: &[Reference],
        image: Option<&Digest>,
    ) -> Result<(), Error> {
        self.0.db.write(|batch| {
            for reference in references {
                batch.delete(REFERENCES, &reference.to_string())?;
            }
            image.map_or(Ok(()), |id| batch.delete(IMAGES, &id.to_string()))
        })?;
        for reference in references {
            state.references.remove(reference);
        }
        if let Some(id) = image {
            state.images.remove(id);
        }
        Ok(())
    }

    /// Removes layers and blobs that nothing needs. Returns the chain ids of the layers.
    pub(super) fn collect_garbage(&self) -> Result<Vec<Digest>, Error> {
        let (layers, aside) = {
            let mut state = self.state();
            let Garbage { layers, blobs } = state.take_garbage(self.0.blobs.all()?);
            self.0.db.write(|batch| {
                for (chain, _) in &layers {
                    batch.delete(LAYERS, &chain.to_string())?;
                }
                blobs.iter().try_for_each(|blob| batch.delete(SOURCES, &blob.to_string()))
            })?;
            // Out of the way while the lock is held, so that the same content may come anew.
            for blob in &blobs {
                self.0.blobs.remove(blob)?;
            }
            let aside: Vec<_> = layers.iter().map(|(_, dir)| self.move_aside(dir)).collect();
            (layers, aside)
        };
        // Removing a large layer takes its time, which the lock need not.
        drop(aside);
        Ok(layers.into_iter().map(|(chain, _)| chain).collect())
    }

    /// Removes garbage in a thread, for those who cannot wait.
    fn collect_later(&self) {
        let images = self.clone();
        let collect = move || {
            if let Err(error) = images.collect_garbage() {
                tracing::warn!(%error, "garbage stays");
            }
        };
        let spawned = std::thread::Builder::new().name("collect-garbage".to_owned()).spawn(collect);
        if let Err(error) = spawned {
            tracing::warn!(%error, "garbage stays");
        }
    }

    /// Keeps `digest`, a blob or a layer with all beneath it, until the guard is dropped.
    pub(super) fn pins(&self) -> Pins {
        let is_unfinished = AtomicBool::new(false);
        Pins { images: self.clone(), pinned: Vec::new(), is_unfinished }
    }
}

/// A reference that was pointed elsewhere, and the image it pointed at before.
pub type Moved = (Reference, Digest);

/// Keeps blobs and layers from being collected while an operation needs them.
#[derive(Debug)]
pub(super) struct Pins {
    images: Images,
    pinned: Vec<Digest>,
    is_unfinished: AtomicBool,
}

impl Pins {
    /// Says that what is pinned becomes garbage, unless [`Pins::finish`] is called before the drop.
    pub(super) fn begin(&self) {
        self.is_unfinished.store(true, Ordering::Relaxed);
    }

    /// Says that what is pinned belongs to an image now.
    pub(super) fn finish(&self) {
        self.is_unfinished.store(false, Ordering::Relaxed);
    }

    /// Keeps one more.
    pub(super) fn add(&mut self, digest: Digest) {
        *self.images.state().pins.entry(digest).or_default() += 1;
        self.pinned.push(digest);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.images.state();
        for digest in &self.pinned {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
        drop(state);
        if self.is_unfinished.load(Ordering::Relaxed) {
            self.images.collect_later();
        }
    }
}

impl State {
    /// See [`Images::find`].
    pub(super) fn find(&self, name: &str) -> Result<Arc<Image>, Error> {
        let any = AnyReference::parse(name)?;
        let (found, shown) = match &any {
            AnyReference::Digest(id) => (Some(*id), id.to_string()),
            AnyReference::Named(reference) => {
                let id = self.references.get(&stored_form(reference)).copied();
                (id.or_else(|| self.find_prefix(name)), reference.familiar())
            }
        };
        let image = found.and_then(|id| self.images.get(&id));
        image.cloned().ok_or(Error::NoSuchImage(shown))
    }

    /// The only image whose id begins so.
    fn find_prefix(&self, prefix: &str) -> Option<Digest> {
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.is_empty() || prefix.bytes().any(|b| !b.is_ascii_hexdigit()) {
            return None;
        }
        let mut hits = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        let hit = hits.next()?;
        hits.next().is_none().then_some(*hit)
    }

    fn assemble(&self, new: NewImage) -> Arc<Image> {
        if let Some(known) = self.images.get(&new.id) {
            let mut image = Image::clone(known);
            // The same image by another way: what it came with last is what a push sends.
            if new.manifest.is_some() {
                image.record.manifest = new.manifest;
                image.record.layers = new.layers;
            }
            image.record.last_tagged = Some(jiff::Timestamp::now().to_string());
            return Arc::new(image);
        }
        let layers = new.config.chain_ids();
        let size = layers.iter().filter_map(|chain| self.layers.get(chain)).map(|l| l.bytes).sum();
        Arc::new(Image {
            id: new.id,
            config: new.config,
            record: ImageRecord {
                parent: new.parent,
                manifest: new.manifest,
                layers: new.layers,
                size,
                last_tagged: Some(jiff::Timestamp::now().to_string()),
            },
        })
    }

    /// References that point at another image now.
    fn moved_by(&self, references: &[Reference], to: &Digest) -> Vec<Moved> {
        let old =
            references.iter().filter_map(|r| self.references.get(r).map(|id| (r.clone(), *id)));
        old.filter(|(_, id)| id != to).collect()
    }
}

/// The key of a reference in the store: a digest says more than a tag beside it.
pub(super) fn stored_form(reference: &Reference) -> Reference {
    match reference.digest() {
        Some(digest) => reference.with_digest(digest),
        None => reference.clone().or_latest(),
    }
}

/// Reads a configuration and checks that it is one that can run here at all.
pub(super) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, Error> {
    let config: ImageConfig =
        serde_json::from_slice(bytes).map_err(json_error("image configuration"))?;
    if config.rootfs.diff_ids.len() > LAYERS_MAX {
        return Err(Error::TooDeep);
    }
    Ok(config)
}

fn read_state(db: &Db, blobs: &Blobs) -> Result<State, Error> {
    let mut state = State::default();
    for (key, layer) in db.all::<Layer>(LAYERS)? {
        if let Ok(chain) = key.parse() {
            state.layers.insert(chain, layer);
        }
    }
    for (key, record) in db.all::<ImageRecord>(IMAGES)? {
        let Ok(id) = key.parse::<Digest>() else { continue };
        match read_config(blobs, &id) {
            Ok(config) => {
                state.images.insert(id, Arc::new(Image { id, config, record }));
            }
            Err(error) => tracing::error!(image.id = %id, %error, "image lost"),
        }
    }
    for (key, id) in db.all::<Digest>(REFERENCES)? {
        if let Ok(reference) = key.parse()
            && state.images.contains_key(&id)
        {
            state.references.insert(reference, id);
        }
    }
    Ok(state)
}

fn read_config(blobs: &Blobs, id: &Digest) -> Result<ImageConfig, Error> {
    let bytes = blobs.read("image configuration", id, CONFIG_BYTES_MAX)?;
    if Digest::of(&bytes) != *id {
        return Err(Error::Verification { what: "image configuration", expected: *id });
    }
    parse_config(&bytes)
}

/// Temporary files of a daemon that is no more go away aside, since a layer may have many.
fn sweep_temporary(root: &Path) -> Result<(), Error> {
    let tmp = root.join("tmp");
    let old = root.join("tmp.old");
    let result = match fs::rename(&tmp, &old) {
        // An earlier sweep was cut short; finish it now.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            remove_unmounted(&old)?;
            fs::rename(&tmp, &old)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    result.map_err(io_error("sweep", &tmp))?;
    let remove = move || {
        if let Err(error) = remove_unmounted(&old) {
            tracing::warn!(path = %old.display(), %error, "temporary files stay");
        }
    };
    std::thread::Builder::new()
        .name("sweep-images".to_owned())
        .spawn(remove)
        .map_err(io_error("start a thread to sweep", &tmp))?;
    Ok(())
}

/// Root file systems that were about to be removed may still be mounted.
fn remove_unmounted(dir: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("read directory", dir))?,
    };
    for entry in entries.flatten() {
        rootfs::unmount(&entry.path().join("merged"))?;
    }
    fs::remove_dir_all(dir).map_err(io_error("remove", dir))
}

#[cfg(test)]
mod tests;

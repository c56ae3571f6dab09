//! `docker load`: images from an archive in Docker's form or an OCI layout.
//!
//! The archive is read once from front to back, since it may be a pipe: each file becomes a
//! temporary blob, and what the files mean is found out at the end.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use super::archive::{self, Kind, Limits};
use super::blobs::FinishedBlob;
use super::compression::{self, Compression};
use super::config::{CONFIG_BYTES_MAX, LAYERS_MAX};
use super::digest::Digest;
use super::error::{Error, io_error, json_error};
use super::event::ImageAction;
use super::import::layer_type;
use super::layers::Source;
use super::manifest::{Descriptor, Document, Index, MANIFEST_BYTES_MAX, Manifest, media_type};
use super::platform::Platform;
use super::progress::{Progress, Reporter};
use super::reference::Reference;
use super::state::Image;
use super::store::{Images, Moved, NewImage, parse_config};

/// Limits on an archive of images: a hundred images of a hundred layers with their directories.
const LIMITS: Limits = Limits { entries_max: 100_000, bytes_max: 1 << 40 };
/// Largest `manifest.json` or `index.json`, in bytes.
const INDEX_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Symbolic links followed from one name; Docker's own archives have one.
const LINKS_MAX: usize = 8;
/// Levels of indexes within indexes.
const INDEX_DEPTH_MAX: usize = 3;
/// Layers unpacked at once.
pub(super) const UNPACK_THREADS: usize = 4;
/// Bytes between two lines of progress.
const PROGRESS_BYTES: u64 = 512 * 1024;
/// Name of an image within an OCI layout, as containerd writes it.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// The same by the OCI specification, which may be a tag only.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// An image that was in an archive.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub image: Arc<Image>,
    pub references: Vec<Reference>,
    /// References that pointed at another image until now, and that image.
    pub moved: Vec<Moved>,
}

/// An entry of Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image of the archive, found but not yet stored.
struct Found {
    config: Arc<FinishedBlob>,
    layers: Vec<Arc<FinishedBlob>>,
    references: Vec<Reference>,
    /// The manifest's exact bytes.
    manifest: Option<(Descriptor, Vec<u8>)>,
}

impl Images {
    /// Loads all images of `archive`, which may be compressed. Blocks.
    ///
    /// `platform` chooses among the images of an index.
    ///
    /// # Errors
    /// Images before the one in error stay loaded.
    pub fn load(
        &self,
        archive: impl Read + Send,
        platform: Option<&Platform>,
        reporter: &Reporter,
    ) -> Result<Vec<Loaded>, Error> {
        let result = self.load_all(archive, platform, reporter);
        if result.is_err() {
            self.collect_garbage()?;
        }
        result
    }

    fn load_all(
        &self,
        archive: impl Read + Send,
        platform: Option<&Platform>,
        reporter: &Reporter,
    ) -> Result<Vec<Loaded>, Error> {
        let host = Platform::host();
        let mut files = self.read_files(archive, reporter)?;
        let found = find_images(&mut files, platform.unwrap_or(&host))?;
        // Of the spooled files only those that an image names are needed from here on.
        drop(files);
        let mut loaded = Vec::with_capacity(found.len());
        for found in found {
            let one = self.store_found(found, reporter)?;
            report_loaded(&one, reporter);
            let id = one.image.id.to_string();
            let names = one.references.iter().map(Reference::familiar);
            let names = if one.references.is_empty() { vec![id] } else { names.collect() };
            for name in names {
                self.emit(ImageAction::Load, &one.image, &name);
            }
            loaded.push(one);
        }
        Ok(loaded)
    }

    fn read_files(&self, archive: impl Read + Send, reporter: &Reporter) -> Result<Files, Error> {
        let stream = compression::uncompressed(archive).map_err(archive::Error::from)?;
        let mut reader = archive::Reader::new(stream, LIMITS);
        let mut files = Files::default();
        while let Some(entry) = reader.next_entry()? {
            if reporter.is_abandoned() {
                return Err(Error::Cancelled);
            }
            let Some(path) = clean_name(&entry.path) else { continue };
            match entry.kind {
                Kind::File => {
                    let blob = self.spool(&mut reader)?;
                    if blob.size != entry.size {
                        return Err(archive::Error::Truncated.into());
                    }
                    check_blob_name(&path, &blob)?;
                    files.blobs.insert(path, Arc::new(blob));
                }
                Kind::Symlink | Kind::HardLink => {
                    if let Some(target) = link_target(&path, entry.kind, &entry.link) {
                        files.links.insert(path, target);
                    }
                }
                _ => {}
            }
        }
        Ok(files)
    }

    fn store_found(&self, found: Found, reporter: &Reporter) -> Result<Loaded, Error> {
        let bytes = found.config.read("image configuration", CONFIG_BYTES_MAX)?;
        let config = parse_config(&bytes)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != found.layers.len() {
            return Err(Error::InvalidImage("the numbers of layers and of diff ids differ"));
        }
        let mut pins = self.pins();
        let mut sources = Vec::with_capacity(diff_ids.len());
        let mut parent = None;
        for ((diff_id, chain), blob) in diff_ids.iter().zip(config.chain_ids()).zip(&found.layers) {
            pins.add(chain);
            pins.add(blob.digest);
            sources
                .push((Source { diff_id: *diff_id, parent, blob: blob.digest }, Arc::clone(blob)));
            parent = Some(chain);
        }
        pins.add(found.config.digest);
        self.unpack_loaded(&sources, reporter)?;
        let mut layers = Vec::with_capacity(sources.len());
        for (_, blob) in &sources {
            let kind = layer_type(compression_of(blob)?);
            self.commit_shared(blob)?;
            layers.push(Descriptor::new(kind, blob.digest, blob.size));
        }
        let id = self.0.blobs.insert(&bytes)?;
        let manifest = match found.manifest {
            Some((descriptor, bytes)) => {
                pins.add(descriptor.digest);
                self.0.blobs.insert(&bytes)?;
                Some(descriptor)
            }
            None => None,
        };
        let new = NewImage { id, config, manifest, layers, parent: None };
        let (image, moved) = self.add(new, &found.references)?;
        Ok(Loaded { image, references: found.references, moved })
    }

    /// Unpacks layers side by side: none needs the ones beneath it.
    fn unpack_loaded(
        &self,
        sources: &[(Source, Arc<FinishedBlob>)],
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let next = AtomicU64::new(0);
        let work = || -> Result<(), Error> {
            loop {
                let index =
                    usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("few layers");
                let Some((source, blob)) = sources.get(index) else { return Ok(()) };
                if self.has_layer(&source.diff_id.chain(source.parent.as_ref())) {
                    continue;
                }
                let report =
                    throttled(reporter.clone(), source.diff_id.short(), "Loading layer", blob.size);
                self.unpack_layer(*source, blob.reader()?, &report)?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..sources.len().min(UNPACK_THREADS)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| t.join().expect("work returns its errors"))
        })
    }

    /// Two images of one archive may share a blob.
    fn commit_shared(&self, blob: &Arc<FinishedBlob>) -> Result<(), Error> {
        if self.0.blobs.size(&blob.digest) == Some(blob.size) { Ok(()) } else { blob.link() }
    }
}

/// Files of an archive by name.
#[derive(Default)]
struct Files {
    blobs: HashMap<String, Arc<FinishedBlob>>,
    links: HashMap<String, String>,
}

impl Files {
    fn get(&self, name: &str) -> Option<Arc<FinishedBlob>> {
        let mut name = clean_name(name.as_bytes())?;
        for _ in 0..LINKS_MAX {
            if let Some(blob) = self.blobs.get(&name) {
                return Some(Arc::clone(blob));
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn blob(&self, digest: &Digest) -> Result<Arc<FinishedBlob>, Error> {
        let missing = Error::InvalidImage("a blob that the manifest names is not in the archive");
        self.get(&format!("blobs/sha256/{}", digest.hex())).ok_or(missing)
    }
}

fn find_images(files: &mut Files, platform: &Platform) -> Result<Vec<Found>, Error> {
    let layout = match files.get("index.json") {
        Some(index) => {
            let bytes = index.read("index.json", INDEX_BYTES_MAX)?;
            let index: Index = serde_json::from_slice(&bytes).map_err(json_error("index.json"))?;
            find_in_index(files, &index, platform, None, 0)
        }
        None => Ok(Vec::new()),
    };
    let Some(list) = files.get("manifest.json") else {
        let found = layout?;
        if found.is_empty() {
            return Err(Error::InvalidImage(
                "the archive has neither manifest.json nor index.json",
            ));
        }
        return Ok(found);
    };
    let bytes = list.read("manifest.json", INDEX_BYTES_MAX)?;
    let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(json_error("manifest.json"))?;
    // The layout beside it can say with which manifest an image was pulled.
    let layout = layout.unwrap_or_default();
    items.into_iter().map(|item| find_item(files, item, &layout)).collect()
}

fn find_item(files: &Files, item: Item, layout: &[Found]) -> Result<Found, Error> {
    let missing = Error::InvalidImage("a file that manifest.json names is not in the archive");
    let names = item.layers.unwrap_or_default();
    if names.len() > LAYERS_MAX {
        return Err(Error::TooDeep);
    }
    let config = files.get(&item.config).ok_or(missing)?;
    let mut layers = Vec::with_capacity(names.len());
    for name in &names {
        let missing = Error::InvalidImage("a layer that manifest.json names is not in the archive");
        layers.push(files.get(name).ok_or(missing)?);
    }
    let mut references = Vec::new();
    for tag in item.repo_tags.unwrap_or_default() {
        let reference: Reference = tag.parse()?;
        if reference.tag().is_none() || reference.digest().is_some() {
            return Err(Error::InvalidImage("a tag of manifest.json is none"));
        }
        references.push(reference);
    }
    let digests =
        |layers: &[Arc<FinishedBlob>]| layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    let same = layout.iter().find(|found| {
        found.config.digest == config.digest && digests(&found.layers) == digests(&layers)
    });
    let manifest = same.and_then(|found| found.manifest.clone());
    Ok(Found { config, layers, references, manifest })
}

fn find_in_index(
    files: &Files,
    index: &Index,
    platform: &Platform,
    name: Option<&Reference>,
    depth: usize,
) -> Result<Vec<Found>, Error> {
    if depth > INDEX_DEPTH_MAX {
        return Err(Error::InvalidImage("indexes within indexes"));
    }
    let mut found: Vec<Found> = Vec::new();
    for descriptor in choose(index, platform, depth) {
        let own_name = name_of(&descriptor.annotations);
        let name = own_name.as_ref().or(name);
        let bytes = files.blob(&descriptor.digest)?.read("manifest", MANIFEST_BYTES_MAX)?;
        match Document::parse(&bytes).map_err(json_error("manifest"))? {
            Document::Index(index) => {
                found.extend(find_in_index(files, &index, platform, name, depth + 1)?);
            }
            Document::Manifest(manifest) => {
                let one = find_manifest(files, descriptor, &manifest, bytes, name)?;
                found.push(one);
            }
            Document::Schema1 => return Err(Error::InvalidImage("a manifest of schema 1")),
        }
    }
    Ok(merge_names(found))
}

/// The outermost index lists images, each of which is wanted; an inner one lists one image for
/// several platforms, of which the best is.
fn choose<'a>(index: &'a Index, platform: &Platform, depth: usize) -> Vec<&'a Descriptor> {
    let is_image = |d: &&Descriptor| {
        d.platform.as_ref().is_none_or(|p| p.os != "unknown")
            && !d.annotations.contains_key("vnd.docker.reference.type")
    };
    let images: Vec<&Descriptor> = index.manifests.iter().filter(is_image).collect();
    if depth == 0 {
        let is_usable = |d: &&&Descriptor| d.platform.as_ref().is_none_or(|p| platform.accepts(p));
        let usable: Vec<&Descriptor> = images.iter().filter(is_usable).copied().collect();
        return if usable.is_empty() { images } else { usable };
    }
    let offered = images.iter().filter_map(|d| d.platform.as_ref().map(|p| (p, *d)));
    match platform.best(offered) {
        Some(best) => vec![best],
        None => images.into_iter().filter(|d| d.platform.is_none()).take(1).collect(),
    }
}

fn find_manifest(
    files: &Files,
    descriptor: &Descriptor,
    manifest: &Manifest,
    bytes: Vec<u8>,
    name: Option<&Reference>,
) -> Result<Found, Error> {
    if manifest.layers.len() > LAYERS_MAX {
        return Err(Error::TooDeep);
    }
    let config = files.blob(&manifest.config.digest)?;
    let layers: Result<Vec<_>, Error> =
        manifest.layers.iter().map(|layer| files.blob(&layer.digest)).collect();
    let layers = layers?;
    // A manifest over uncompressed layers is what `save` makes up; a push does better without.
    let is_compressed = layers
        .iter()
        .map(|l| compression_of(l))
        .all(|c| matches!(c, Ok(Compression::Gzip | Compression::Zstd)));
    let mut own = Descriptor::new(&descriptor.media_type, descriptor.digest, bytes.len() as u64);
    if own.media_type.is_empty() {
        own.media_type = media_type::OCI_MANIFEST.to_owned();
    }
    Ok(Found {
        config,
        layers,
        references: name.cloned().into_iter().collect(),
        manifest: is_compressed.then_some((own, bytes)),
    })
}

/// One image may stand in an index several times, once for each of its names.
fn merge_names(found: Vec<Found>) -> Vec<Found> {
    let mut merged: BTreeMap<Digest, Found> = BTreeMap::new();
    for mut one in found {
        match merged.get_mut(&one.config.digest) {
            Some(known) => known.references.append(&mut one.references),
            None => {
                merged.insert(one.config.digest, one);
            }
        }
    }
    merged.into_values().collect()
}

fn name_of(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let full = annotations.get(NAME_ANNOTATION);
    // A bare word is only a tag, which names nothing by itself.
    let short = annotations.get(REF_ANNOTATION).filter(|name| name.contains([':', '/']));
    let reference: Reference = full.or(short)?.parse().ok()?;
    reference.digest().is_none().then(|| reference.or_latest())
}

fn report_loaded(loaded: &Loaded, reporter: &Reporter) {
    for (reference, old) in &loaded.moved {
        reporter.send_blocking(Progress::stream(format!(
            "The image {} already exists, renaming the old one with ID {old} to empty string\n",
            reference.familiar()
        )));
    }
    if loaded.references.is_empty() {
        let line = format!("Loaded image ID: {}\n", loaded.image.id);
        reporter.send_blocking(Progress::stream(line));
    }
    for reference in &loaded.references {
        let line = format!("Loaded image: {}\n", reference.familiar());
        reporter.send_blocking(Progress::stream(line));
    }
}

/// Reports bytes read now and then.
pub(super) fn throttled(
    reporter: Reporter,
    id: String,
    status: &'static str,
    total: u64,
) -> impl Fn(u64) + Send + Sync + 'static {
    let last = AtomicU64::new(0);
    move |current| {
        let before = last.load(Ordering::Relaxed);
        if current == before || (current < total && current < before + PROGRESS_BYTES) {
            return;
        }
        last.store(current, Ordering::Relaxed);
        reporter.tick(Progress::of(id.clone(), status).with_detail(current, total));
    }
}

pub(super) fn compression_of(blob: &FinishedBlob) -> Result<Compression, Error> {
    let mut first = Vec::new();
    blob.reader()?.take(6).read_to_end(&mut first).map_err(io_error("read", blob.path()))?;
    Ok(Compression::of(&first))
}

/// A file under `blobs/sha256/` must be what its name says.
fn check_blob_name(path: &str, blob: &FinishedBlob) -> Result<(), Error> {
    let Some(hex) = path.strip_prefix("blobs/sha256/") else { return Ok(()) };
    match Digest::from_hex(hex) {
        Ok(expected) if expected != blob.digest => {
            Err(Error::Verification { what: "blob", expected })
        }
        _ => Ok(()),
    }
}

/// A name within the archive without `.`, `..` and leading slashes; `None` when it leads outside.
fn clean_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn link_target(path: &str, kind: Kind, target: &[u8]) -> Option<String> {
    if kind == Kind::HardLink {
        return clean_name(target);
    }
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    clean_name(&[directory.as_bytes(), b"/", target].concat())
}

#[cfg(test)]
mod tests;

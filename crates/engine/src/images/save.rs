//! `docker save`: images as an archive that both Docker's `load` and OCI tools read.
//!
//! Layers go out as they are stored, so what was pulled compressed stays so, under the same digest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::Serialize;

use super::config::CONFIG_BYTES_MAX;
use super::digest::Digest;
use super::error::Error;
use super::event::ImageAction;
use super::manifest::{Descriptor, Index, MANIFEST_BYTES_MAX, Manifest, media_type};
use super::platform::Platform;
use super::reference::Reference;
use super::state::Image;
use super::store::Images;

/// Most images of one archive.
const IMAGES_MAX: usize = 1000;

/// An image to save, with the names to save it under.
#[derive(Clone, Debug)]
pub struct Saved {
    image: Arc<Image>,
    references: Vec<Reference>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl Images {
    /// Finds what is to be saved. A name without tag means all tags of that repository.
    ///
    /// # Errors
    /// [`Error::NoReference`] for a name that is not here.
    pub fn select_saved(&self, names: &[String]) -> Result<Vec<Saved>, Error> {
        let mut selected: BTreeMap<Digest, Saved> = BTreeMap::new();
        if names.len() > IMAGES_MAX {
            return Err(Error::TooMany { what: "names", max: IMAGES_MAX });
        }
        let state = self.state();
        for name in names {
            for (id, reference) in state.named(name)? {
                let image = Arc::clone(state.images.get(&id).ok_or(Error::NoReference)?);
                let saved = selected.entry(id).or_insert(Saved { image, references: Vec::new() });
                saved.references.extend(reference.filter(|r| !saved.references.contains(r)));
            }
        }
        Ok(selected.into_values().collect())
    }

    /// Writes the archive. Blocks. The blobs are kept from removal meanwhile.
    ///
    /// # Errors
    /// What the receiver or the disk refuses; the archive is incomplete then.
    pub fn save(&self, saved: &[Saved], out: impl Write) -> Result<(), Error> {
        let mut pins = self.pins();
        for saved in saved {
            pins.add(saved.image.id);
            saved.image.record.layers.iter().for_each(|layer| pins.add(layer.digest));
            saved.image.record.manifest.iter().for_each(|manifest| pins.add(manifest.digest));
        }
        let mut archive = Archive { out, written: BTreeSet::new() };
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        let mut items = Vec::with_capacity(saved.len());
        let mut manifests = Vec::with_capacity(saved.len());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for saved in saved {
            let manifest = self.save_blobs(&saved.image, &mut archive)?;
            manifests.extend(named_descriptors(&manifest, &saved.references));
            items.push(item(saved));
            for reference in &saved.references {
                let tags = repositories.entry(reference.familiar_name()).or_default();
                let tag = reference.tag().unwrap_or_default().to_owned();
                tags.insert(tag, saved.image.id.hex());
            }
        }
        let index = Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            manifests,
            annotations: BTreeMap::new(),
        };
        archive.file("index.json", &json(&index))?;
        archive.file("manifest.json", &json(&items))?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("repositories", &json(&repositories))?;
        archive.finish()?;
        for saved in saved {
            self.emit(ImageAction::Save, &saved.image, &saved.image.id.to_string());
        }
        Ok(())
    }

    fn save_blobs<W: Write>(
        &self,
        image: &Image,
        archive: &mut Archive<W>,
    ) -> Result<Descriptor, Error> {
        let config = self.0.blobs.read("image configuration", &image.id, CONFIG_BYTES_MAX)?;
        archive.blob(&image.id, config.len() as u64, config.as_slice())?;
        for layer in &image.record.layers {
            let file = self.0.blobs.open_blob(&layer.digest)?;
            archive.blob(&layer.digest, layer.size, file)?;
        }
        let (mut descriptor, bytes) = match &image.record.manifest {
            Some(descriptor) => {
                let bytes =
                    self.0.blobs.read("manifest", &descriptor.digest, MANIFEST_BYTES_MAX)?;
                (descriptor.clone(), bytes)
            }
            None => make_manifest(image, config.len() as u64),
        };
        archive.blob(&descriptor.digest, bytes.len() as u64, bytes.as_slice())?;
        descriptor.platform = Some(Platform {
            architecture: image.config.architecture.clone(),
            os: image.config.os.clone(),
            os_version: image.config.os_version.clone(),
            variant: image.config.variant.clone(),
        });
        Ok(descriptor)
    }
}

impl super::state::State {
    /// What a user means to save by `name`.
    fn named(&self, name: &str) -> Result<Vec<(Digest, Option<Reference>)>, Error> {
        if let Ok(reference) = name.parse::<Reference>()
            && reference.is_name_only()
        {
            let of_repository = self
                .references
                .iter()
                .filter(|(r, _)| r.name() == reference.name() && r.tag().is_some());
            let all: Vec<_> = of_repository.map(|(r, id)| (*id, Some(r.clone()))).collect();
            if !all.is_empty() {
                return Ok(all);
            }
        }
        let image = self.find(name).map_err(|error| match error {
            Error::NoSuchImage(_) => Error::NoReference,
            error => error,
        })?;
        let reference = name.parse::<Reference>().ok().map(Reference::or_latest);
        let reference =
            reference.filter(|r| r.tag().is_some() && self.references.get(r) == Some(&image.id));
        Ok(vec![(image.id, reference)])
    }
}

/// A manifest for an image that came without one.
fn make_manifest(image: &Image, config_size: u64) -> (Descriptor, Vec<u8>) {
    let layer = |layer: &Descriptor| {
        let kind = match layer.media_type.as_str() {
            media_type::DOCKER_LAYER => media_type::OCI_LAYER,
            media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
            kind => kind,
        };
        Descriptor::new(kind, layer.digest, layer.size)
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        config: Descriptor::new(media_type::OCI_CONFIG, image.id, config_size),
        layers: image.record.layers.iter().map(layer).collect(),
        annotations: BTreeMap::new(),
    };
    let bytes = json(&manifest);
    (Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64), bytes)
}

/// One entry of the index for each name, or one without.
fn named_descriptors(manifest: &Descriptor, references: &[Reference]) -> Vec<Descriptor> {
    let named = |reference: &Reference| {
        let mut descriptor = manifest.clone();
        descriptor.annotations.insert("io.containerd.image.name".to_owned(), reference.to_string());
        let tag = reference.tag().unwrap_or_default().to_owned();
        descriptor.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        descriptor
    };
    if references.is_empty() {
        return vec![manifest.clone()];
    }
    references.iter().map(named).collect()
}

fn item(saved: &Saved) -> Item {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    Item {
        config: path(&saved.image.id),
        repo_tags: saved.references.iter().map(Reference::familiar).collect(),
        layers: saved.image.record.layers.iter().map(|layer| path(&layer.digest)).collect(),
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with text keys")
}

/// A tar archive of blobs, each once.
struct Archive<W> {
    out: W,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn directory(&mut self, path: &str) -> Result<(), Error> {
        let header = header(path, tar::EntryType::Directory, 0o755, 0);
        self.out.write_all(header.as_bytes()).map_err(Error::Send)
    }

    fn file(&mut self, path: &str, content: &[u8]) -> Result<(), Error> {
        self.stream(path, content.len() as u64, content)
    }

    fn blob(&mut self, digest: &Digest, size: u64, content: impl Read) -> Result<(), Error> {
        if !self.written.insert(*digest) {
            return Ok(());
        }
        self.stream(&format!("blobs/sha256/{}", digest.hex()), size, content)
    }

    fn stream(&mut self, path: &str, size: u64, content: impl Read) -> Result<(), Error> {
        let header = header(path, tar::EntryType::Regular, 0o644, size);
        let write = || -> io::Result<()> {
            self.out.write_all(header.as_bytes())?;
            let copied = io::copy(&mut content.take(size), &mut self.out)?;
            if copied != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let padding = usize::try_from(size.next_multiple_of(512) - size).expect("below 512");
            self.out.write_all(&[0; 512][..padding])
        };
        write().map_err(Error::Send)
    }

    fn finish(mut self) -> Result<(), Error> {
        self.out.write_all(&[0; 1024]).and_then(|()| self.out.flush()).map_err(Error::Send)
    }
}

/// All times are the epoch, so that the same images make the same archive.
fn header(path: &str, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).expect("our names are short and relative");
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

#[cfg(test)]
mod tests;

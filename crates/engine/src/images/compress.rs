//! Layers that came uncompressed, compressed for a registry and kept in that form.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::write::GzEncoder;

use super::digest::Digest;
use super::error::{Error, io_error};
use super::load::UNPACK_THREADS;
use super::manifest::{Descriptor, media_type};
use super::state::{Image, State};
use super::store::{IMAGES, Images, LAYERS, Pins};

/// Compressed forms by the digest of the uncompressed one.
type Compressed = HashMap<Digest, Descriptor>;

impl Images {
    /// Compresses the layers of an image that are not, in this image and all that share them.
    pub(super) fn compress_layers(
        &self,
        id: &Digest,
        pins: &mut Pins,
    ) -> Result<Arc<Image>, Error> {
        let image = self.get(id).ok_or_else(|| Error::NoSuchImage(id.to_string()))?;
        let mut plain: Vec<Descriptor> =
            image.record.layers.iter().filter(|layer| is_plain(layer)).cloned().collect();
        plain.sort_by_key(|layer| layer.digest);
        plain.dedup_by_key(|layer| layer.digest);
        if plain.is_empty() {
            return Ok(image);
        }
        plain.iter().for_each(|layer| pins.add(layer.digest));
        let compressed = self.compress_all(&plain)?;
        compressed.values().for_each(|layer| pins.add(layer.digest));
        self.replace_layers(&compressed)?;
        self.get(id).ok_or_else(|| Error::NoSuchImage(id.to_string()))
    }

    /// Records the manifest that an image is pushed with.
    pub(super) fn set_manifest(
        &self,
        id: &Digest,
        manifest: Descriptor,
    ) -> Result<Arc<Image>, Error> {
        let mut state = self.state();
        let image = state.images.get(id).ok_or_else(|| Error::NoSuchImage(id.to_string()))?;
        let mut image = Image::clone(image);
        image.record.manifest = Some(manifest);
        self.0.db.write(|batch| batch.put(IMAGES, &id.to_string(), &image.record))?;
        let image = Arc::new(image);
        state.images.insert(*id, Arc::clone(&image));
        Ok(image)
    }

    fn compress_all(&self, plain: &[Descriptor]) -> Result<Compressed, Error> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(Digest, Descriptor)>, Error> {
            let mut done = Vec::new();
            while let Some(layer) = plain.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((layer.digest, self.compress(layer)?));
            }
            Ok(done)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..plain.len().min(UNPACK_THREADS)).map(|_| scope.spawn(work)).collect();
            let mut compressed = Compressed::new();
            for thread in threads {
                compressed.extend(thread.join().expect("work returns its errors")?);
            }
            Ok(compressed)
        })
    }

    fn compress(&self, layer: &Descriptor) -> Result<Descriptor, Error> {
        let path = self.0.blobs.path(&layer.digest);
        let mut file = self.0.blobs.open_blob(&layer.digest)?;
        let writer = self.0.blobs.writer()?;
        let buffered = io::BufWriter::with_capacity(256 * 1024, writer);
        // Without name and time, so that the same layer gives the same bytes each time.
        let mut encoder = GzEncoder::new(buffered, flate2::Compression::default());
        let compress = || -> io::Result<_> {
            io::copy(&mut file, &mut encoder)?;
            let mut buffered = encoder.finish()?;
            buffered.flush()?;
            buffered.into_inner().map_err(io::IntoInnerError::into_error)
        };
        let writer = compress().map_err(io_error("compress", &path))?;
        let (digest, size) = writer.finish()?.commit()?;
        Ok(Descriptor::new(media_type::DOCKER_LAYER_GZIP, digest, size))
    }

    fn replace_layers(&self, compressed: &Compressed) -> Result<(), Error> {
        let mut state = self.state();
        let images = with_layers_replaced(&state, compressed);
        let mut layers = state.layers.clone();
        layers.retain(|_, layer| compressed.contains_key(&layer.blob));
        for layer in layers.values_mut() {
            layer.blob = compressed[&layer.blob].digest;
        }
        self.0.db.write(|batch| {
            for image in &images {
                batch.put(IMAGES, &image.id.to_string(), &image.record)?;
            }
            layers
                .iter()
                .try_for_each(|(chain, layer)| batch.put(LAYERS, &chain.to_string(), layer))
        })?;
        state.layers.extend(layers);
        state.images.extend(images.into_iter().map(|image| (image.id, Arc::new(image))));
        Ok(())
    }
}

/// The images that have some of these layers, with the compressed ones in their place.
fn with_layers_replaced(state: &State, compressed: &Compressed) -> Vec<Image> {
    let has_some = |image: &&Arc<Image>| {
        image.record.layers.iter().any(|layer| compressed.contains_key(&layer.digest))
    };
    let mut images: Vec<Image> =
        state.images.values().filter(has_some).map(|image| Image::clone(image)).collect();
    for image in &mut images {
        // A manifest over the uncompressed layers names blobs that are about to go.
        image.record.manifest = None;
        for layer in &mut image.record.layers {
            if let Some(compressed) = compressed.get(&layer.digest) {
                *layer = compressed.clone();
            }
        }
    }
    images
}

fn is_plain(layer: &Descriptor) -> bool {
    matches!(layer.media_type.as_str(), media_type::DOCKER_LAYER | media_type::OCI_LAYER)
}

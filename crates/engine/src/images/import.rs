//! `docker import`: an image of one layer from an archive of a file system.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::blobs::FinishedBlob;
use super::compression::{self, Compression};
use super::config::{History, ImageConfig, RootFs};
use super::digest::{Digest, Hasher};
use super::error::{Error, io_error};
use super::event::ImageAction;
use super::layers::Source;
use super::manifest::{Descriptor, media_type};
use super::platform::Platform;
use super::reference::Reference;
use super::state::Image;
use super::store::{Images, NewImage};
use super::{archive, change};

/// Largest archive, in bytes, compressed or not.
const ARCHIVE_BYTES_MAX: u64 = 256 << 30;

/// What to make of an archive.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// The new image's name; without one it has only its id.
    pub reference: Option<Reference>,
    /// Instructions for its configuration.
    pub changes: Vec<String>,
    /// Comment in its history.
    pub message: String,
    /// What it runs on; this machine when absent.
    pub platform: Option<Platform>,
}

impl Images {
    /// Makes an image of `archive`, a tar archive that may be compressed. Blocks.
    ///
    /// # Errors
    /// Wrong instructions are found before the archive is read.
    pub fn import(&self, request: &ImportRequest, archive: impl Read) -> Result<Arc<Image>, Error> {
        let mut config = ImageConfig::default();
        change::apply(&mut config.config, &request.changes)?;
        if request.reference.as_ref().is_some_and(|r| r.digest().is_some()) {
            return Err(Error::TagWithDigest);
        }
        let blob = self.spool(archive)?;
        let (diff_id, compression) = diff_id_of(&blob)?;
        let mut pins = self.pins();
        pins.add(diff_id);
        pins.add(blob.digest);
        let source = Source { diff_id, parent: None, blob: blob.digest };
        self.unpack_layer(source, blob.reader()?, &|_| {})?;
        let (digest, size) = blob.commit()?;
        let layer = Descriptor::new(layer_type(compression), digest, size);
        describe(&mut config, request, diff_id);
        let bytes = serde_json::to_vec(&config).expect("a configuration is plain data");
        pins.add(Digest::of(&bytes));
        let id = self.0.blobs.insert(&bytes)?;
        let new = NewImage { id, config, manifest: None, layers: vec![layer], parent: None };
        let references: Vec<Reference> =
            request.reference.clone().map(Reference::or_latest).into_iter().collect();
        let (image, _) = self.add(new, &references)?;
        for reference in &references {
            self.emit(ImageAction::Tag, &image, &reference.familiar());
        }
        let name = references.first().map_or_else(|| image.id.to_string(), Reference::familiar);
        self.emit(ImageAction::Import, &image, &name);
        Ok(image)
    }

    /// Writes a stream into a temporary blob.
    pub(super) fn spool(&self, mut stream: impl Read) -> Result<FinishedBlob, Error> {
        let mut writer = self.0.blobs.writer()?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = match stream.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(archive::Error::Truncated.into());
                }
                result => result.map_err(io_error("receive into", writer.path()))?,
            };
            if count == 0 {
                return writer.finish();
            }
            writer.write_all(&buffer[..count]).map_err(io_error("write", writer.path()))?;
            if writer.size() > ARCHIVE_BYTES_MAX {
                return Err(Error::TooLarge { what: "archive", max: ARCHIVE_BYTES_MAX });
            }
        }
    }
}

/// The media type of a layer's archive.
pub(super) fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => media_type::DOCKER_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    }
}

/// The digest of the uncompressed content, and how it is compressed.
fn diff_id_of(blob: &FinishedBlob) -> Result<(Digest, Compression), Error> {
    let path = blob.path().to_owned();
    let mut first = Vec::new();
    blob.reader()?.take(6).read_to_end(&mut first).map_err(io_error("read", &path))?;
    let compression = Compression::of(&first);
    if compression == Compression::None {
        return Ok((blob.digest, compression));
    }
    let stream = compression::uncompressed(blob.reader()?).map_err(io_error("read", &path))?;
    let mut stream = stream.take(ARCHIVE_BYTES_MAX);
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut buffer).map_err(io_error("read", &path))?;
        if count == 0 {
            return Ok((hasher.finish(), compression));
        }
        hasher.update(&buffer[..count]);
    }
}

fn describe(config: &mut ImageConfig, request: &ImportRequest, diff_id: Digest) {
    let platform = request.platform.clone().unwrap_or_else(Platform::host);
    let now = jiff::Timestamp::now().to_string();
    config.architecture = platform.architecture;
    config.os = platform.os;
    config.variant = platform.variant;
    config.created = Some(now.clone());
    config.comment.clone_from(&request.message);
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] };
    config.history = vec![History {
        created: Some(now),
        comment: request.message.clone(),
        ..History::default()
    }];
}

#[cfg(test)]
mod tests;

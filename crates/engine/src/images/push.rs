//! `docker push`: layers the registry does not have, then the manifest that names them.
//!
//! An image that was pulled goes out with the very manifest it came with, so its digest is the same
//! everywhere. One that was loaded or imported gets its layers compressed first, once and for all.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, TryStreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio_util::io::ReaderStream;

use super::digest::Digest;
use super::download::{blocking, wait};
use super::error::{Error, io_error};
use super::event::{ImageAction, ImageEvent};
use super::load::throttled;
use super::manifest::{Descriptor, MANIFEST_BYTES_MAX, Manifest, media_type};
use super::progress::{Aux, Progress, Reporter};
use super::pull::may_be_elsewhere;
use super::reference::Reference;
use super::state::Image;
use super::store::{Images, Pins, SOURCES};
use crate::registry::auth::Credentials;
use crate::registry::blob::Upload;
use crate::registry::{self, Access, Session};

/// Attempts to send a blob.
const ATTEMPTS_MAX: u32 = 5;
/// Bytes read from a blob at once.
const READ_BYTES: usize = 256 * 1024;

/// What to push.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Without tag it means all tags of the repository.
    pub reference: Reference,
    pub credentials: Credentials,
}

impl Images {
    /// Pushes an image, or all of a repository.
    ///
    /// # Errors
    /// In Docker's words. Blobs that the registry has by then stay there.
    pub async fn push(&self, request: &PushRequest, reporter: &Reporter) -> Result<(), Error> {
        let repository = request.reference.name();
        let refers = format!("The push refers to repository [{repository}]");
        reporter.send(Progress::status(refers)).await;
        let selected = self.select_pushed(&request.reference)?;
        let sessions = self.0.registry.sessions(
            request.reference.domain(),
            request.reference.path(),
            Access::Push,
            &request.credentials,
        )?;
        let mut last = None;
        for session in sessions {
            match self.push_to(&session, &selected, reporter).await {
                Ok(()) => {
                    self.0.registry.remember(&session);
                    return Ok(());
                }
                Err(error) if may_be_elsewhere(&session, &error) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(Error::NoSuchRepository(request.reference.familiar_name())))
    }

    /// The tags to push, with the images they stand for.
    fn select_pushed(&self, reference: &Reference) -> Result<Vec<(Reference, Digest)>, Error> {
        if reference.digest().is_some() {
            return Err(Error::PushDigest);
        }
        let state = self.state();
        let of_repository = state.references.iter().filter(|(r, _)| r.name() == reference.name());
        let mut selected: Vec<(Reference, Digest)> = of_repository
            .filter(|(r, _)| r.tag().is_some())
            .map(|(r, id)| (r.clone(), *id))
            .collect();
        if selected.is_empty() {
            return Err(Error::NoSuchRepository(reference.familiar_name()));
        }
        if reference.tag().is_some() {
            selected.retain(|(r, _)| r == reference);
        }
        if selected.is_empty() {
            return Err(Error::NoSuchTag(reference.familiar()));
        }
        Ok(selected)
    }

    async fn push_to(
        &self,
        session: &Session,
        selected: &[(Reference, Digest)],
        reporter: &Reporter,
    ) -> Result<(), Error> {
        // Before anything is said of layers, which would be said again at the next address.
        session.ping().await?;
        for (reference, id) in selected {
            self.push_one(session, reference, id, reporter).await?;
        }
        Ok(())
    }

    async fn push_one(
        &self,
        session: &Session,
        reference: &Reference,
        id: &Digest,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let image = self.get(id).ok_or_else(|| Error::NoSuchTag(reference.familiar()))?;
        for diff_id in image.config.rootfs.diff_ids.iter().rev() {
            reporter.send(Progress::of(diff_id.short(), "Preparing")).await;
        }
        let images = self.clone();
        let (image, manifest, pins) = blocking(move || images.prepare_push(&image)).await?;
        self.push_layers(session, reference, &image, reporter).await?;
        let config =
            Descriptor::new("", image.id, self.0.blobs.size(&image.id).unwrap_or_default());
        self.push_blob(session, &config, None, &Progress::default(), &Reporter::silent()).await?;

        let label = reference.tag().unwrap_or_default().to_owned();
        let bytes =
            Bytes::from(self.0.blobs.read("manifest", &manifest.digest, MANIFEST_BYTES_MAX)?);
        session.put_manifest(&label, &manifest.media_type, bytes).await?;
        let (images, layers, name) = (self.clone(), image.record.layers.clone(), reference.name());
        let pushed = reference.with_digest(manifest.digest);
        blocking(move || {
            images.remember_sources(&layers, &name)?;
            images.point(&image.id, std::slice::from_ref(&pushed))?;
            drop(pins);
            // Uncompressed layers that were compressed for this push.
            images.collect_garbage().map(drop)
        })
        .await?;
        self.report_pushed(reference, label, &manifest, reporter).await;
        Ok(())
    }

    async fn report_pushed(
        &self,
        reference: &Reference,
        tag: String,
        manifest: &Descriptor,
        reporter: &Reporter,
    ) {
        let (digest, size) = (manifest.digest.to_string(), manifest.size);
        let line = format!("{tag}: digest: {digest} size: {size}");
        reporter.send(Progress::status(line)).await;
        reporter.send(Progress::aux(Aux::Push { tag, digest, size })).await;
        self.emit_raw(ImageEvent {
            action: ImageAction::Push,
            id: reference.familiar(),
            attributes: [("name".to_owned(), reference.familiar_name())].into(),
        });
    }

    async fn push_layers(
        &self,
        session: &Session,
        reference: &Reference,
        image: &Image,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let mut layers = Vec::new();
        for (diff_id, blob) in image.config.rootfs.diff_ids.iter().zip(&image.record.layers).rev() {
            let source = self.source_of(blob, reference)?;
            source.iter().for_each(|source| session.add_source(source));
            layers.push((diff_id.short(), blob, source));
        }
        let work = async |(id, blob, source): (String, &Descriptor, Option<String>)| {
            let line = Progress::of(id, "");
            self.push_blob(session, blob, source.as_deref(), &line, reporter).await
        };
        let mut layers: FuturesUnordered<_> = layers.into_iter().map(work).collect();
        while layers.try_next().await?.is_some() {}
        Ok(())
    }

    /// Another repository of the same registry that is known to have a blob.
    fn source_of(&self, blob: &Descriptor, reference: &Reference) -> Result<Option<String>, Error> {
        let known: Option<Vec<String>> = self.0.db.get(SOURCES, &blob.digest.to_string())?;
        let domain = format!("{}/", reference.domain());
        let paths = known.iter().flatten().filter_map(|name| name.strip_prefix(&domain));
        Ok(paths.into_iter().find(|path| *path != reference.path()).map(str::to_owned))
    }

    async fn push_blob(
        &self,
        session: &Session,
        blob: &Descriptor,
        source: Option<&str>,
        line: &Progress,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let id = line.id.clone().unwrap_or_default();
        let _alone = self.0.transfers.blob(&blob.digest).await;
        let _turn = self.0.transfers.upload(&id, reporter).await;
        if session.has_blob(&blob.digest).await? {
            reporter.send(Progress::of(id, "Layer already exists")).await;
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            // What could not be mounted once is sent.
            let source = source.filter(|_| attempt == 1);
            match self.send_blob(session, blob, source, &id, reporter).await {
                Err(Error::Registry(error)) if error.is_temporary() && attempt < ATTEMPTS_MAX => {
                    tracing::debug!(blob = %blob.digest, attempt, %error, "upload broke off");
                    wait(attempt, &id, reporter).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn send_blob(
        &self,
        session: &Session,
        blob: &Descriptor,
        source: Option<&str>,
        id: &str,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let upload = match session.start_upload(&blob.digest, source).await {
            // The other repository may be closed to us, or gone.
            Err(error) if source.is_some() && !error.is_temporary() => {
                tracing::debug!(blob = %blob.digest, %error, "blob could not be mounted");
                session.start_upload(&blob.digest, None).await?
            }
            upload => upload?,
        };
        let address = match upload {
            Upload::Mounted => {
                let from = source.unwrap_or_default();
                reporter.send(Progress::of(id, format!("Mounted from {from}"))).await;
                return Ok(());
            }
            Upload::Session(address) => address,
        };
        let path = self.0.blobs.path(&blob.digest);
        let (label, size) = (id.to_owned(), blob.size);
        // Opened once beforehand, so that a missing blob is an error and not an empty upload.
        let file = std::fs::File::open(&path).map_err(io_error("open blob", &path))?;
        let content = move || {
            let file = file.try_clone().and_then(|mut file| {
                std::io::Seek::rewind(&mut file)?;
                Ok(tokio::fs::File::from_std(file))
            });
            body_of(file, label.clone(), size, reporter.clone())
        };
        session.upload(&address, &blob.digest, size, &content).await?;
        reporter.send(Progress::of(id, "Pushed")).await;
        Ok(())
    }

    /// Sees to it that all layers are compressed and that there is a manifest. What is to be sent is
    /// pinned.
    fn prepare_push(&self, image: &Image) -> Result<(Arc<Image>, Descriptor, Pins), Error> {
        let mut pins = self.pins();
        let image = self.compress_layers(&image.id, &mut pins)?;
        pins.add(image.id);
        image.record.layers.iter().for_each(|layer| pins.add(layer.digest));
        if let Some(manifest) = image.record.manifest.clone() {
            pins.add(manifest.digest);
            return Ok((image, manifest, pins));
        }
        let size = self.0.blobs.size(&image.id).unwrap_or_default();
        let (kind, bytes) = make_manifest(&image, size);
        let manifest = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
        pins.add(manifest.digest);
        self.0.blobs.insert(&bytes)?;
        let image = self.set_manifest(&image.id, manifest.clone())?;
        Ok((image, manifest, pins))
    }
}

/// The content of a file, reporting how much of it was taken.
fn body_of(
    file: std::io::Result<tokio::fs::File>,
    id: String,
    size: u64,
    reporter: Reporter,
) -> registry::Body {
    let report = throttled(reporter, id, "Pushing", size);
    let mut done = 0;
    let pieces = futures::stream::iter([file])
        .map_ok(|file| ReaderStream::with_capacity(file, READ_BYTES))
        .try_flatten()
        .map_ok(move |piece| {
            done += piece.len() as u64;
            report(done);
            Frame::data(piece)
        });
    BodyExt::boxed(StreamBody::new(pieces))
}

/// Docker's schema 2, which every registry takes, unless a layer's compression is not known to it.
fn make_manifest(image: &Image, config_size: u64) -> (&'static str, Vec<u8>) {
    let layers = &image.record.layers;
    let is_oci = layers.iter().any(|layer| layer.media_type == media_type::OCI_LAYER_ZSTD);
    let (manifest, config, gzip) = if is_oci {
        (media_type::OCI_MANIFEST, media_type::OCI_CONFIG, media_type::OCI_LAYER_GZIP)
    } else {
        (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG, media_type::DOCKER_LAYER_GZIP)
    };
    let layer = |layer: &Descriptor| {
        let is_zstd = layer.media_type == media_type::OCI_LAYER_ZSTD;
        let kind = if is_zstd { media_type::OCI_LAYER_ZSTD } else { gzip };
        Descriptor::new(kind, layer.digest, layer.size)
    };
    let document = Manifest {
        schema_version: 2,
        media_type: manifest.to_owned(),
        config: Descriptor::new(config, image.id, config_size),
        layers: layers.iter().map(layer).collect(),
        annotations: std::collections::BTreeMap::new(),
    };
    (manifest, serde_json::to_vec(&document).expect("plain data with text keys"))
}

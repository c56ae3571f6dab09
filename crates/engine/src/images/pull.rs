//! `docker pull`: a manifest, the image of it that runs here, and the layers that are missing.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, TryStreamExt};

use super::config::{CONFIG_BYTES_MAX, ImageConfig, LAYERS_MAX};
use super::digest::Digest;
use super::download::{Work, blocking};
use super::error::{Error, json_error};
use super::event::{ImageAction, ImageEvent};
use super::layers::Source;
use super::load::throttled;
use super::manifest::{Descriptor, Document, Index, Manifest, media_type};
use super::platform::Platform;
use super::progress::{Progress, Reporter};
use super::reference::Reference;
use super::state::Image;
use super::store::{Images, NewImage, Pins, SOURCES, parse_config};
use crate::registry::auth::Credentials;
use crate::registry::manifest::Fetched;
use crate::registry::{Access, Session};

/// Tags pulled by one `pull --all-tags`.
const TAGS_MAX: usize = 10_000;
/// Repositories remembered for each blob, to mount it from.
const SOURCES_MAX: usize = 8;
/// Configurations of images, under the types that builders have given them.
const CONFIG_TYPES: [&str; 5] = [
    media_type::OCI_CONFIG,
    media_type::DOCKER_CONFIG,
    "application/octet-stream",
    "text/html",
    "",
];

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// Without tag and digest it means all tags.
    pub reference: Reference,
    /// Instead of this machine's.
    pub platform: Option<Platform>,
    pub credentials: Credentials,
}

/// A manifest chosen for one platform.
struct Chosen {
    /// Of what the reference leads to: the index, if there is one.
    digest: Digest,
    manifest: Box<Manifest>,
    /// Of the manifest itself.
    descriptor: Descriptor,
    bytes: bytes::Bytes,
}

impl Images {
    /// Pulls an image, or all of a repository.
    ///
    /// # Errors
    /// In Docker's words. Layers that are here by then are kept for the next attempt while
    /// something else needs them, and removed otherwise.
    pub async fn pull(
        &self,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let reference = &request.reference;
        let sessions = self.0.registry.sessions(
            reference.domain(),
            reference.path(),
            Access::Pull,
            &request.credentials,
        )?;
        let mut last = None;
        for session in sessions {
            match self.pull_from(&session, request, reporter).await {
                Ok(images) => {
                    self.0.registry.remember(&session);
                    return Ok(images);
                }
                Err(error) if may_be_elsewhere(&session, &error) => {
                    tracing::debug!(image = %reference, %error, "the next address is tried");
                    last = Some(error);
                }
                Err(error) => return Err(self.pull_failed(error, reference).await),
            }
        }
        let error = last.unwrap_or(Error::NoSuchImage(reference.familiar()));
        Err(self.pull_failed(error, reference).await)
    }

    async fn pull_failed(&self, error: Error, reference: &Reference) -> Error {
        let images = self.clone();
        if let Err(error) = blocking(move || images.collect_garbage()).await {
            tracing::warn!(%error, "garbage of a pull stays");
        }
        match error {
            Error::Registry(error) => error.for_pull(reference).into(),
            error => error,
        }
    }

    async fn pull_from(
        &self,
        session: &Session,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let platform = request.platform.as_ref();
        if !request.reference.is_name_only() {
            let image = self.pull_one(session, &request.reference, platform, reporter).await?;
            return Ok(vec![image]);
        }
        let tags = session.tags().await?;
        if tags.len() > TAGS_MAX {
            return Err(Error::TooMany { what: "tags", max: TAGS_MAX });
        }
        let mut images = Vec::with_capacity(tags.len());
        for tag in tags {
            let reference = request.reference.with_tag(&tag)?;
            images.push(self.pull_one(session, &reference, platform, reporter).await?);
        }
        Ok(images)
    }

    async fn pull_one(
        &self,
        session: &Session,
        reference: &Reference,
        platform: Option<&Platform>,
        reporter: &Reporter,
    ) -> Result<Arc<Image>, Error> {
        let label = label_of(reference);
        let from = Progress::remark(&label, format!("Pulling from {}", reference.path()));
        if let Some((image, digest)) = self.is_current(session, reference, platform).await {
            reporter.send(from).await;
            self.report_pulled(reference, digest, false, reporter).await;
            return Ok(image);
        }
        let fetched = session.manifest(&label).await?;
        reporter.send(from).await;
        let chosen = choose(session, reference, platform, fetched).await?;
        let before = self.find(&reference.to_string()).ok().map(|image| image.id);
        let image = self.pull_image(session, reference, platform, &chosen, reporter).await?;
        let is_new = before != Some(image.id);
        self.report_pulled(reference, chosen.digest, is_new, reporter).await;
        Ok(image)
    }

    /// The image that a tag leads to, when the registry says that it is the one that is here.
    async fn is_current(
        &self,
        session: &Session,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Option<(Arc<Image>, Digest)> {
        let image = self.find(&reference.to_string()).ok()?;
        if !platform.unwrap_or(&Platform::host()).accepts(&image.platform()) {
            return None;
        }
        let digest = match reference.digest() {
            Some(digest) => digest,
            // A failure comes again, and is told, when the manifest is asked for.
            None => session.manifest_digest(reference.tag()?).await.ok()??,
        };
        let known = self.find(&reference.with_digest(digest).to_string()).ok()?;
        (known.id == image.id).then_some((image, digest))
    }

    async fn report_pulled(
        &self,
        reference: &Reference,
        digest: Digest,
        is_new: bool,
        reporter: &Reporter,
    ) {
        reporter.send(Progress::status(format!("Digest: {digest}"))).await;
        let familiar = reference.familiar();
        let status = if is_new {
            format!("Status: Downloaded newer image for {familiar}")
        } else {
            format!("Status: Image is up to date for {familiar}")
        };
        reporter.send(Progress::status(status)).await;
        let name = reference.familiar_name();
        self.emit_raw(ImageEvent {
            action: ImageAction::Pull,
            id: familiar,
            attributes: [("name".to_owned(), name)].into(),
        });
    }

    async fn pull_image(
        &self,
        session: &Session,
        reference: &Reference,
        platform: Option<&Platform>,
        chosen: &Chosen,
        reporter: &Reporter,
    ) -> Result<Arc<Image>, Error> {
        let descriptor = &chosen.manifest.config;
        if !CONFIG_TYPES.contains(&descriptor.media_type.as_str()) {
            return Err(Error::NotAnImage(descriptor.media_type.clone()));
        }
        let config_bytes = session.small_blob(&descriptor.digest, CONFIG_BYTES_MAX).await?;
        let config = parse_config(&config_bytes)?;
        check_platform(&config, platform, reference)?;
        let layers: Vec<Descriptor> =
            chosen.manifest.layers.iter().filter(|l| !l.is_foreign_layer()).cloned().collect();
        if layers.len() > LAYERS_MAX {
            return Err(Error::TooDeep);
        }
        if layers.len() != config.rootfs.diff_ids.len() {
            return Err(Error::InvalidImage("the numbers of layers and of diff ids differ"));
        }
        let work = Work::new(self.pin_pull(chosen, &config, &layers));
        let pulled = self.pull_layers(session, &config, &layers, &work, reporter).await;
        if pulled.is_err() {
            // Threads that still write would write behind the back of the garbage collector.
            work.rest().await;
            // Whoever called collects the garbage, and waits for it.
            work.pins().finish();
        }
        pulled?;

        let (images, bytes) = (self.clone(), chosen.bytes.clone());
        let new = NewImage {
            id: descriptor.digest,
            config,
            manifest: Some(chosen.descriptor.clone()),
            layers,
            parent: None,
        };
        let mut references = vec![reference.with_digest(chosen.digest)];
        references.extend(
            reference.tag().filter(|_| reference.digest().is_none()).map(|_| reference.clone()),
        );
        let (source, pins) = (reference.name(), work.pins());
        work.run(move || {
            images.0.blobs.insert(&config_bytes)?;
            images.0.blobs.insert(&bytes)?;
            images.remember_sources(&new.layers, &source)?;
            let (image, _) = images.add(new, &references)?;
            pins.finish();
            Ok(image)
        })
        .await
    }

    fn pin_pull(&self, chosen: &Chosen, config: &ImageConfig, layers: &[Descriptor]) -> Pins {
        let mut pins = self.pins();
        pins.add(chosen.descriptor.digest);
        pins.add(chosen.manifest.config.digest);
        layers.iter().for_each(|layer| pins.add(layer.digest));
        config.chain_ids().into_iter().for_each(|chain| pins.add(chain));
        pins
    }

    async fn pull_layers(
        &self,
        session: &Session,
        config: &ImageConfig,
        layers: &[Descriptor],
        work: &Work,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let mut parent = None;
        let mut missing = Vec::new();
        for ((diff_id, chain), blob) in
            config.rootfs.diff_ids.iter().zip(config.chain_ids()).zip(layers)
        {
            let id = blob.digest.short();
            // The blob is needed besides the unpacked layer: a push or save sends it, and another
            // image may have brought the same layer in another form.
            if self.has_layer(&chain) && self.0.blobs.size(&blob.digest).is_some() {
                reporter.send(Progress::of(id, "Already exists")).await;
            } else {
                reporter.send(Progress::of(id, "Pulling fs layer")).await;
                missing
                    .push((Source { diff_id: *diff_id, parent, blob: blob.digest }, blob.clone()));
            }
            parent = Some(chain);
        }
        // Dropping the rest on the first failure breaks their downloads off.
        let pull = |(source, blob)| self.pull_layer(session, source, blob, work, reporter);
        let mut layers: FuturesUnordered<_> = missing.into_iter().map(pull).collect();
        while layers.try_next().await?.is_some() {}
        Ok(())
    }

    async fn pull_layer(
        &self,
        session: &Session,
        source: Source,
        blob: Descriptor,
        work: &Work,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        self.download(session, &blob, work, reporter).await?;
        let _turn = self.0.transfers.work().await;
        let (images, in_thread) = (self.clone(), reporter.clone());
        let id = blob.digest.short();
        let label = id.clone();
        work.run(move || {
            let file = images.0.blobs.open_blob(&blob.digest)?;
            let report = throttled(in_thread, label, "Extracting", blob.size);
            images.unpack_layer(source, file, &report)
        })
        .await?;
        reporter.send(Progress::of(id, "Pull complete")).await;
        Ok(())
    }

    /// Notes that a repository has these blobs.
    pub(super) fn remember_sources(&self, blobs: &[Descriptor], name: &str) -> Result<(), Error> {
        let mut known = Vec::with_capacity(blobs.len());
        for blob in blobs {
            let key = blob.digest.to_string();
            let mut names: Vec<String> = self.0.db.get(SOURCES, &key)?.unwrap_or_default();
            if !names.iter().any(|n| n == name) {
                names.insert(0, name.to_owned());
                names.truncate(SOURCES_MAX);
                known.push((key, names));
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        self.0.db.write(|batch| {
            known.iter().try_for_each(|(key, names)| batch.put(SOURCES, key, names))?;
            Ok(())
        })
    }
}

impl Image {
    /// What the image says that it runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.config.architecture.clone(),
            os: self.config.os.clone(),
            os_version: self.config.os_version.clone(),
            variant: self.config.variant.clone(),
        }
    }
}

/// Whether the next address may do better.
pub(super) fn may_be_elsewhere(session: &Session, error: &Error) -> bool {
    match error {
        Error::Registry(error) => session.is_mirror() || error.is_unreachable(),
        _ => session.is_mirror(),
    }
}

/// The tag or digest of a reference; the digest says more.
pub(super) fn label_of(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or(super::reference::DEFAULT_TAG).to_owned(),
    }
}

async fn choose(
    session: &Session,
    reference: &Reference,
    platform: Option<&Platform>,
    fetched: Fetched,
) -> Result<Chosen, Error> {
    let host = Platform::host();
    let digest = fetched.digest;
    let mut fetched = fetched;
    // An index may lead to another one, as those of several builders do; not further.
    for _ in 0..3 {
        match Document::parse(&fetched.bytes).map_err(json_error("manifest"))? {
            Document::Schema1 => return Err(Error::Schema1(reference.familiar())),
            Document::Manifest(manifest) => {
                let size = fetched.bytes.len() as u64;
                let descriptor =
                    Descriptor::new(&media_type_of(&fetched, &manifest), fetched.digest, size);
                return Ok(Chosen { digest, manifest, descriptor, bytes: fetched.bytes });
            }
            Document::Index(index) => {
                let best = best_of(&index, platform.unwrap_or(&host))?;
                fetched = session.manifest(&best.to_string()).await?;
            }
        }
    }
    Err(Error::InvalidImage("indexes within indexes"))
}

fn media_type_of(fetched: &Fetched, manifest: &Manifest) -> String {
    if manifest.media_type.is_empty() {
        fetched.media_type.clone()
    } else {
        manifest.media_type.clone()
    }
}

fn best_of(index: &Index, platform: &Platform) -> Result<Digest, Error> {
    let offered = index.manifests.iter().filter_map(|d| d.platform.as_ref().map(|p| (p, d.digest)));
    platform.best(offered).ok_or_else(|| Error::NoPlatform { platform: platform.to_string() })
}

/// Asked for by name, a platform must be the right one; otherwise the image is taken as it is.
fn check_platform(
    config: &ImageConfig,
    wanted: Option<&Platform>,
    reference: &Reference,
) -> Result<(), Error> {
    let Some(wanted) = wanted else { return Ok(()) };
    let found = Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        os_version: None,
        variant: config.variant.clone(),
    };
    if wanted.accepts(&found) {
        return Ok(());
    }
    let (reference, platform) = (reference.familiar(), wanted.to_string());
    Err(Error::OtherPlatform { reference, platform })
}

#[cfg(test)]
mod tests;

//! A node's image store in a temporary directory, with images to push.

use std::path::Path;
use std::sync::Arc;

use docker_types::image::AuthConfig;
use engine::db::Db;
use engine::images::digest::Digest;
use engine::images::progress::{self, Progress, Reporter};
use engine::images::pull::PullRequest;
use engine::images::push::PushRequest;
use engine::images::reference::Reference;
use engine::images::{Config, Error, Image, Images};
use engine::registry;
use engine::registry::auth::Credentials;

pub(crate) struct Node {
    pub(crate) images: Images,
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(registry::Config::default())
    }

    pub(crate) fn with(registry: registry::Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Db::open(&dir.path().join("engine.redb")).unwrap());
        let config = Config { data_root: dir.path().to_owned(), registry };
        Self { images: Images::open(&config, db).unwrap(), dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Pulls, and returns the lines that were shown besides those that repeat.
    pub(crate) async fn pull(&self, name: &str) -> (Vec<String>, Result<(), Error>) {
        self.pull_as(name, AuthConfig::default()).await
    }

    pub(crate) async fn pull_as(
        &self,
        name: &str,
        auth: AuthConfig,
    ) -> (Vec<String>, Result<(), Error>) {
        let request = PullRequest {
            reference: name.parse().unwrap(),
            platform: None,
            credentials: Credentials::new(auth),
        };
        let images = self.images.clone();
        shown(async move |reporter| images.pull(&request, &reporter).await.map(drop)).await
    }

    pub(crate) async fn push(&self, name: &str) -> (Vec<String>, Result<(), Error>) {
        self.push_as(name, AuthConfig::default()).await
    }

    pub(crate) async fn push_as(
        &self,
        name: &str,
        auth: AuthConfig,
    ) -> (Vec<String>, Result<(), Error>) {
        let reference: Reference = name.parse().unwrap();
        let request = PushRequest { reference, credentials: Credentials::new(auth) };
        let images = self.images.clone();
        shown(async move |reporter| images.push(&request, &reporter).await).await
    }

    /// An image of these layers under `name`.
    pub(crate) fn load(&self, name: &str, layers: &[Vec<u8>]) -> Arc<Image> {
        let archive = archive(name, layers);
        let loaded = self.images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
        Arc::clone(&loaded[0].image)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.images
            .remove(name, engine::images::remove::RemoveOptions::default(), &|_| false)
            .unwrap();
    }

    /// Files that an operation should not have left.
    pub(crate) fn leftovers(&self) -> usize {
        std::fs::read_dir(self.path().join("images/tmp")).unwrap().count()
    }

    pub(crate) fn blobs(&self) -> usize {
        std::fs::read_dir(self.path().join("images/blobs/sha256")).unwrap().count()
    }
}

async fn shown<F>(work: impl FnOnce(Reporter) -> F) -> (Vec<String>, Result<(), Error>)
where
    F: Future<Output = Result<(), Error>>,
{
    let (reporter, mut lines) = progress::channel();
    let collect = async move {
        let mut shown: Vec<String> = Vec::new();
        while let Some(line) = lines.recv().await {
            shown.extend(text(&line));
        }
        shown
    };
    let (result, shown) = tokio::join!(work(reporter), collect);
    (shown, result)
}

/// `id: status`; lines with a measure come as often as the network wills and are left out.
fn text(line: &Progress) -> Option<String> {
    if line.detail.is_some_and(|(_, total)| total > 0) {
        return None;
    }
    if let Some(aux) = &line.aux {
        return Some(format!("{aux:?}"));
    }
    let status = line.status.clone().unwrap_or_default();
    Some(match &line.id {
        Some(id) => format!("{id}: {status}"),
        None => status,
    })
}

/// A layer with one file of `size` bytes that do not compress to nothing.
pub(crate) fn layer(name: &str, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ name.len() as u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(size)
    .collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content.as_slice()).unwrap();
    tar.into_inner().unwrap()
}

pub(crate) fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
    let config = serde_json::json!({
        "architecture": engine::images::platform::Platform::host().architecture,
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).unwrap()
}

fn archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("config.json", &config_of(layers));
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        names.push(format!("{number}.tar"));
        add(&names[number], layer);
    }
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [name], "Layers": names }
    ]);
    add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    tar.into_inner().unwrap()
}

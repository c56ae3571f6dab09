//! Archives and stores for tests: honest ones, and ones that no honest writer makes.

use std::path::Path;
use std::sync::Arc;

use super::digest::Digest;
use super::progress::Reporter;
use super::store::{Config, Images};
use crate::db::Db;

/// A tar archive being written, without any check on what goes in.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, b'0', 0o644, "", content)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(path, b'5', 0o755, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, b'2', 0o777, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, b'1', 0o644, target, b"")
    }

    pub(crate) fn entry(self, path: &str, kind: u8, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = header(path, kind, mode, link, data.len() as u64);
        seal(&mut header);
        self.raw(&header, data)
    }

    /// An entry whose header bytes are changed before the checksum is made.
    pub(crate) fn with(
        mut self,
        kind: u8,
        path: &str,
        data: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut header = header(path, kind, 0o644, "", data.len() as u64);
        change(&mut header);
        seal(&mut header);
        self = self.raw(&header, data);
        self
    }

    /// PAX records for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry("pax", b'x', 0o644, "", &data)
    }

    pub(crate) fn raw(mut self, header: &[u8; 512], data: &[u8]) -> Self {
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// The archive without its end.
    pub(crate) fn cut(mut self, bytes: usize) -> Vec<u8> {
        self.0.truncate(self.0.len() - bytes);
        self.0
    }
}

fn header(path: &str, kind: u8, mode: u32, link: &str, size: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &path.as_bytes()[..path.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{:011o}", 1_000_000_000).as_bytes());
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    header
}

fn seal(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// An image archive in the form of `docker save` before OCI layouts.
pub(crate) fn docker_archive(
    config: &serde_json::Value,
    layers: &[Vec<u8>],
    tags: &[&str],
) -> Vec<u8> {
    let config = serde_json::to_vec(config).unwrap();
    let mut tar = Tar::default().file("config.json", &config);
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number}/layer.tar");
        tar = tar.file(&name, layer);
        names.push(name);
    }
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": tags, "Layers": names }
    ]);
    tar.file("manifest.json", &serde_json::to_vec(&manifest).unwrap()).finish()
}

/// A configuration over uncompressed layers.
pub(crate) fn config_of(layers: &[Vec<u8>], config: &serde_json::Value) -> serde_json::Value {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    serde_json::json!({
        "architecture": super::platform::Platform::host().architecture,
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "created": "2024-01-02T03:04:05Z", "created_by": "/bin/sh -c #(nop) CMD" }],
    })
}

/// A store beneath a temporary directory.
pub(crate) fn open(dir: &Path) -> Images {
    // A thread that syncs layers for a store that was dropped may hold the database a moment longer.
    let db = loop {
        match Db::open(&dir.join("engine.redb")) {
            Err(crate::db::Error::Open { .. }) => std::thread::yield_now(),
            db => break Arc::new(db.unwrap()),
        }
    };
    let registry = crate::registry::Config::default();
    Images::open(&Config { data_root: dir.to_owned(), registry }, db).unwrap()
}

/// Loads an image of the given layers under `tags`.
pub(crate) fn load(images: &Images, layers: &[Vec<u8>], tags: &[&str]) -> Arc<super::Image> {
    let config = config_of(layers, &serde_json::json!({ "Cmd": ["/bin/sh"] }));
    let archive = docker_archive(&config, layers, tags);
    let loaded = images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    Arc::clone(&loaded[0].image)
}

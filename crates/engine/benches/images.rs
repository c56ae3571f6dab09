//! How fast references are read, layers unpacked, and a 100 MB image pulled from a registry beside.
//!
//! The last needs Debian's `docker-registry`; all but the first need root. Files go to memory, so
//! that the figures are ours and not the disk's.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and end")]

use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::db::Db;
use engine::images::digest::Digest;
use engine::images::progress::Reporter;
use engine::images::pull::PullRequest;
use engine::images::push::PushRequest;
use engine::images::reference::Reference;
use engine::images::{Config, Images, compression, unpack};
use engine::registry;
use engine::registry::auth::Credentials;
use testbed::DockerRegistry;

/// Files of one layer and their size: like a language's runtime.
const FILES: usize = 1000;
const FILE_BYTES: usize = 20_000;
/// Layers of the pulled image, 20 MB each.
const LAYERS: usize = 5;

/// Content that gzip halves, as it does programs.
fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&(state & 0x00ff_00ff_0fff_0fff).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn layer(seed: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..FILES {
        let mut header = tar::Header::new_ustar();
        header.set_size(FILE_BYTES as u64);
        header.set_mode(0o755);
        let name = format!("usr/lib/{}/file-{seed}-{number}", number / 50);
        let content = content(seed * 10_000 + number as u64, FILE_BYTES);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn references(c: &mut Criterion) {
    let mut group = c.benchmark_group("reference");
    let pinned = format!("registry.example:5000/team/app:1.2.3@{}", Digest::of(b""));
    for text in ["busybox", pinned.as_str()] {
        group.bench_function(if text.len() > 20 { "pinned" } else { "short" }, |b| {
            b.iter(|| black_box(text).parse::<Reference>().unwrap());
        });
    }
    group.finish();
}

fn unpacking(c: &mut Criterion) {
    let plain = layer(1);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
    let mut group = c.benchmark_group("unpack");
    group.sample_size(20).throughput(Throughput::Bytes(plain.len() as u64));
    for (name, archive) in [("plain", &plain), ("gzip", &gzip), ("zstd", &zstd)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                directory,
                |dir| {
                    let root = std::fs::File::open(dir.path()).unwrap();
                    let stream = compression::uncompressed(archive.as_slice()).unwrap();
                    unpack::unpack(stream, root.as_fd(), unpack::LAYER_LIMITS).unwrap();
                    dir
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

struct Node {
    images: Images,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = directory();
        let db = Arc::new(Db::open(&dir.path().join("engine.redb")).unwrap());
        let registry = registry::Config::default();
        let config = Config { data_root: dir.path().to_owned(), registry };
        Self { images: Images::open(&config, db).unwrap(), _dir: dir }
    }
}

fn archive(name: &str) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = (0..LAYERS as u64).map(layer).collect();
    let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("config.json", config.to_string().as_bytes());
    let names: Vec<String> = (0..LAYERS).map(|n| format!("{n}.tar")).collect();
    names.iter().zip(&layers).for_each(|(name, layer)| add(name, layer));
    let list =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
    add("manifest.json", list.to_string().as_bytes());
    tar.into_inner().unwrap()
}

fn transfers(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = DockerRegistry::start();
    let name = format!("{}/bench:1", registry.address);
    let archive = archive(&name);
    let credentials = Credentials::default;
    let reference: Reference = name.parse().unwrap();
    let push = PushRequest { reference: reference.clone(), credentials: credentials() };
    let pull = PullRequest { reference, platform: None, credentials: credentials() };
    let source = Node::new();
    source.images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    runtime.block_on(source.images.push(&push, &Reporter::silent())).unwrap();

    let mut group = c.benchmark_group("image of 100 MB in 5 layers");
    group.sample_size(10).throughput(Throughput::Bytes(archive.len() as u64));
    group.bench_function("load", |b| {
        b.iter_batched(
            Node::new,
            |node| {
                node.images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
                node
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("pull", |b| {
        b.iter_batched(
            Node::new,
            |node| {
                runtime.block_on(node.images.pull(&pull, &Reporter::silent())).unwrap();
                node
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn root_file_systems(c: &mut Criterion) {
    let node = Node::new();
    let archive = archive("bench:1");
    let loaded = node.images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    c.bench_function("root file system, made and removed", |b| {
        b.iter(|| {
            node.images.prepare_rootfs("bench", &loaded[0].image).unwrap();
            node.images.remove_rootfs("bench").unwrap();
        });
    });
}

criterion_group!(benches, references, unpacking, transfers, root_file_systems);
criterion_main!(benches);

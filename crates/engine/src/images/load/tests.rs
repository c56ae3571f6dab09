//! Tests of loading: the forms that tools write, and the archives that none should.

use super::*;
use crate::images::progress;
use crate::images::testing::{Tar, config_of, docker_archive, open};
use std::io::Write;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn layers() -> Vec<Vec<u8>> {
    vec![Tar::default().file("a", b"1").finish(), Tar::default().file("b", b"2").finish()]
}

/// An OCI layout of one image with compressed layers, named by annotation.
fn layout(name: &str) -> (Vec<u8>, Digest) {
    let config = serde_json::to_vec(&config_of(&layers(), &serde_json::json!({}))).unwrap();
    let mut tar = Tar::default().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut add = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let taken = std::mem::take(&mut tar);
        tar = taken.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        serde_json::json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    };
    let config = add(media_type::OCI_CONFIG, &config);
    let blobs: Vec<_> =
        layers().iter().map(|l| add(media_type::OCI_LAYER_GZIP, &gzip(l))).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": blobs });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut inner = add(media_type::OCI_MANIFEST, &manifest);
    let host = Platform::host();
    inner["platform"] = serde_json::json!({ "os": "linux", "architecture": host.architecture });
    let mut other = inner.clone();
    other["platform"] = serde_json::json!({ "os": "linux", "architecture": "s390x" });
    other["digest"] = serde_json::json!(Digest::of(b"not in the archive"));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [other, inner] });
    let mut outer = add(media_type::OCI_INDEX, &serde_json::to_vec(&index).unwrap());
    outer["annotations"] = serde_json::json!({ NAME_ANNOTATION: name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [outer] });
    let archive = tar.file("index.json", &serde_json::to_vec(&index).unwrap()).finish();
    (archive, Digest::of(&manifest))
}

#[test]
fn dockers_archives_load_compressed_or_not() {
    let config = config_of(&layers(), &serde_json::json!({ "Cmd": ["x"] }));
    let archive = docker_archive(&config, &layers(), &["app:1", "app:2"]);
    let compressed_layers: Vec<Vec<u8>> = layers().iter().map(|l| gzip(l)).collect();
    for archive in [
        archive.clone(),
        gzip(&archive),
        zstd::encode_all(archive.as_slice(), 1).unwrap(),
        docker_archive(&config, &compressed_layers, &["app:1", "app:2"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        let (reporter, mut lines) = progress::channel();
        let loaded = images.load(archive.as_slice(), None, &reporter).unwrap();
        drop(reporter);
        assert_eq!(loaded[0].image.id, Digest::of(&serde_json::to_vec(&config).unwrap()));
        assert_eq!(images.find("app:2").unwrap().record.size, 2);
        let mut streams = Vec::new();
        let mut loading = Vec::new();
        while let Some(line) = lines.blocking_recv() {
            streams.extend(line.stream);
            loading.extend(line.status);
        }
        assert_eq!(streams, ["Loaded image: app:1\n", "Loaded image: app:2\n"]);
        assert!(loading.iter().all(|l| l == "Loading layer") && loading.len() == 2);
    }
}

#[test]
fn an_oci_layout_keeps_its_manifest_and_chooses_the_platform() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let (archive, manifest) = layout("docker.io/library/app:1");
    images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    let image = images.find("app:1").unwrap();
    assert_eq!(image.record.manifest.as_ref().unwrap().digest, manifest);
    assert!(images.0.blobs.size(&manifest).is_some());
}

#[test]
fn an_image_without_name_is_known_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let config = config_of(&layers(), &serde_json::json!({}));
    let (reporter, mut lines) = progress::channel();
    let archive = docker_archive(&config, &layers(), &[]);
    let loaded = images.load(archive.as_slice(), None, &reporter).unwrap();
    drop(reporter);
    let mut last = String::new();
    while let Some(line) = lines.blocking_recv() {
        last = line.stream.unwrap_or(last);
    }
    assert_eq!(last, format!("Loaded image ID: {}\n", loaded[0].image.id));
}

#[test]
fn a_tag_that_was_taken_is_said_to_have_moved() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let load = |config: serde_json::Value| {
        let archive = docker_archive(&config, &layers(), &["app:1"]);
        images.load(archive.as_slice(), None, &Reporter::silent()).unwrap()
    };
    let old = load(config_of(&layers(), &serde_json::json!({ "Cmd": ["1"] })));
    let new = load(config_of(&layers(), &serde_json::json!({ "Cmd": ["2"] })));
    assert_eq!(new[0].moved, [("app:1".parse().unwrap(), old[0].image.id)]);
    assert!(load(config_of(&layers(), &serde_json::json!({ "Cmd": ["2"] })))[0].moved.is_empty());
}

#[test]
fn links_within_an_old_archive_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let layer = Tar::default().file("a", b"1").finish();
    let config = config_of(&[layer.clone(), layer.clone()], &serde_json::json!({}));
    let archive = Tar::default()
        .file("c.json", &serde_json::to_vec(&config).unwrap())
        .file("one/layer.tar", &layer)
        .symlink("two/layer.tar", "../one/layer.tar")
        .file(
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":null,"Layers":["one/layer.tar","two/layer.tar"]}]"#,
        )
        .finish();
    images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
}

#[test]
fn bad_archives_are_refused_and_leave_nothing() {
    let config = config_of(&layers(), &serde_json::json!({}));
    let good = docker_archive(&config, &layers(), &["app:1"]);
    let with_manifest = |text: &str| {
        Tar::default()
            .file("c.json", &serde_json::to_vec(&config).unwrap())
            .file("manifest.json", text.as_bytes())
            .finish()
    };
    let loop_archive = Tar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("manifest.json", br#"[{"Config":"a","Layers":[]}]"#)
        .finish();
    for (archive, message) in [
        (b"this is no archive at all".to_vec(), "archive: archive/tar: invalid tar header"),
        (good[..good.len() / 2].to_vec(), "archive: unexpected EOF"),
        (gzip(&good)[..300].to_vec(), "archive: unexpected EOF"),
        (
            b"\xfd7zXZ\0\0\0".to_vec(),
            "archive: read archive: archive is compressed with xz, which is not supported; use gzip, zstd or no compression",
        ),
        (
            Tar::default().file("f", b"x").finish(),
            "invalid image: the archive has neither manifest.json nor index.json",
        ),
        (
            with_manifest("{}"),
            "invalid manifest.json: invalid type: map, expected a sequence at line 1 column 0",
        ),
        (
            with_manifest(r#"[{"Config":"../../etc/passwd","Layers":[]}]"#),
            "invalid image: a file that manifest.json names is not in the archive",
        ),
        (
            with_manifest(r#"[{"Config":"c.json","Layers":["nowhere"]}]"#),
            "invalid image: a layer that manifest.json names is not in the archive",
        ),
        (
            with_manifest(r#"[{"Config":"c.json","Layers":[]}]"#),
            "invalid image: the numbers of layers and of diff ids differ",
        ),
        (
            with_manifest(r#"[{"Config":"c.json","RepoTags":["UP:x"],"Layers":[]}]"#),
            "invalid reference format: repository name (library/UP) must be lowercase",
        ),
        (loop_archive, "invalid image: a file that manifest.json names is not in the archive"),
        (
            Tar::default().file(&format!("blobs/sha256/{}", "0".repeat(64)), b"x").finish(),
            &format!("blob verification failed for digest sha256:{}", "0".repeat(64)),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        let error = images.load(archive.as_slice(), None, &Reporter::silent()).unwrap_err();
        assert!(error.to_string().contains(message), "{error} / {message}");
        assert!(images.0.blobs.all().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
    }
}

//! Tests of import.

use super::*;
use crate::images::testing::{Tar, open};

#[test]
fn an_archive_becomes_an_image_with_the_changes_applied() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let archive = Tar::default().dir("bin/").file("bin/sh", b"#!").finish();
    let request = ImportRequest {
        reference: Some("made:1".parse().unwrap()),
        changes: vec!["CMD [\"/bin/sh\"]".to_owned(), "ENV A=1".to_owned()],
        message: "from a test".to_owned(),
        platform: None,
    };
    let image = images.import(&request, archive.as_slice()).unwrap();
    assert_eq!(images.find("made:1").unwrap().id, image.id);
    assert_eq!(image.config.config.cmd.as_deref(), Some(&["/bin/sh".to_owned()][..]));
    assert_eq!(image.config.rootfs.diff_ids, [Digest::of(&archive)]);
    assert_eq!(image.config.history[0].comment, "from a test");

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive).unwrap();
    let compressed = encoder.finish().unwrap();
    let again = images.import(&ImportRequest::default(), compressed.as_slice()).unwrap();
    assert_eq!(again.config.rootfs, image.config.rootfs);
}

#[test]
fn a_bad_import_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let archive = Tar::default().file("../x", b"").finish();
    let error = images.import(&ImportRequest::default(), archive.as_slice()).unwrap_err();
    assert_eq!(error.to_string(), "archive entry \"../x\" leads outside of the layer");
    let request = ImportRequest { changes: vec!["RUN x".to_owned()], ..ImportRequest::default() };
    let error = images.import(&request, &b"never read"[..]).unwrap_err();
    assert_eq!(error.to_string(), "RUN is not a valid change command");
    assert!(images.0.blobs.all().unwrap().is_empty());
}

//! Tests of saving: what comes out goes in again.

use super::*;
use crate::images::progress::Reporter;
use crate::images::testing::{Tar, load, open};

fn saved(images: &Images, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut archive = Vec::new();
    images.save(&images.select_saved(&names).unwrap(), &mut archive).unwrap();
    archive
}

#[test]
fn a_saved_image_loads_elsewhere_with_the_same_id_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let layers = [Tar::default().file("a", b"1").finish(), Tar::default().file("b", b"2").finish()];
    let image = load(&images, &layers, &["app:1", "app:2", "other.io/x:y"]);
    for (names, expected) in [
        (&["app"][..], &["app:1", "app:2"][..]),
        (&["app:2", "other.io/x:y"], &["app:2", "other.io/x:y"]),
        (&["app:2", "app:2"], &["app:2"]),
        (&[&image.id.hex()[..12]], &[]),
    ] {
        let elsewhere = tempfile::tempdir().unwrap();
        let others = open(elsewhere.path());
        let archive = saved(&images, names);
        assert_eq!(archive, saved(&images, names), "the same each time");
        others.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
        let same = others.get(&image.id).unwrap();
        assert_eq!(same.config, image.config);
        let found: Vec<String> =
            others.references_of(&image.id).iter().map(Reference::familiar).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn the_layout_alone_loads_too() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    load(&images, &[Tar::default().file("a", b"1").finish()], &["app:1"]);
    let archive = saved(&images, &["app:1"]);
    let at = archive.windows(13).position(|w| w == b"manifest.json").unwrap();
    let mut hidden = archive.clone();
    // Hiding Docker's list under another name, with the checksum put right.
    hidden[at] = b'n';
    let sum: u32 = u32::from(b'n' - b'm');
    let field = std::str::from_utf8(&hidden[at + 148..at + 155]).unwrap();
    let sum = u32::from_str_radix(field.trim(), 8).unwrap() + sum;
    hidden[at + 148..at + 155].copy_from_slice(format!("{sum:07o}").as_bytes());
    let elsewhere = tempfile::tempdir().unwrap();
    let others = open(elsewhere.path());
    others.load(hidden.as_slice(), None, &Reporter::silent()).unwrap();
    assert!(others.find("app:1").is_ok());
}

#[test]
fn unknown_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    for (name, message) in [
        ("nothing", "reference does not exist"),
        ("nothing:1", "reference does not exist"),
        ("UP", "invalid reference format: repository name (library/UP) must be lowercase"),
    ] {
        let error = images.select_saved(&[name.to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

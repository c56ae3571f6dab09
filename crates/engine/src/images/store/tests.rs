//! Tests of the store: finding, naming, and living through a restart.

use super::*;
use crate::images::progress::Reporter;
use crate::images::testing::{Tar, config_of, docker_archive, load, open};

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::default().dir("bin/").file("bin/sh", b"#!").finish(),
        Tar::default().file("etc/name", b"two").finish(),
    ]
}

#[test]
fn an_image_is_found_by_reference_id_and_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let image = load(&images, &layers(), &["app:1", "localhost:5000/x/app:2"]);
    let hex = image.id.hex();
    for name in [
        "app:1",
        "docker.io/library/app:1",
        "localhost:5000/x/app:2",
        &hex,
        &hex[..12],
        &hex[..1],
        &image.id.to_string(),
        &format!("sha256:{}", &hex[..9]),
    ] {
        assert_eq!(images.find(name).unwrap_or_else(|e| panic!("{name}: {e}")).id, image.id);
    }
    for (name, message) in [
        ("app", "No such image: app:latest"),
        ("docker.io/library/app", "No such image: app:latest"),
        ("zz", "No such image: zz:latest"),
        ("App", "invalid reference format: repository name (library/App) must be lowercase"),
        ("a b", "invalid reference format"),
    ] {
        assert_eq!(images.find(name).unwrap_err().to_string(), message);
    }
    let other = format!("{}0", &hex[..63]);
    let shown = images.find(&other).unwrap_err().to_string();
    assert_eq!(shown, format!("No such image: sha256:{other}"));
}

#[test]
fn the_store_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let images = open(dir.path());
        let image = load(&images, &layers(), &["app:1"]);
        images.tag(&image, &"other".parse().unwrap()).unwrap();
        images.settle().unwrap();
        image.id
    };
    let images = open(dir.path());
    let image = images.find("other").unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.config.config.cmd.as_deref(), Some(&["/bin/sh".to_owned()][..]));
    let names: Vec<String> = images.references_of(&id).iter().map(Reference::familiar).collect();
    assert_eq!(names, ["app:1", "other:latest"]);
    let state = images.state();
    assert!(state.layers.values().all(|l| l.is_unpacked && l.unsynced_boot.is_none()));
}

#[test]
fn layers_that_a_crash_may_have_spoilt_are_unpacked_again() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let images = open(dir.path());
        let image = load(&images, &layers(), &["app:1"]);
        // As if the machine had died before the files were on disk.
        let mut state = images.state();
        let chain = image.config.chain_ids()[1];
        let layer = state.layers.get_mut(&chain).unwrap();
        layer.unsynced_boot = Some("an earlier boot".to_owned());
        fs::write(images.0.layers_dir.join(&layer.dir).join("etc/name"), "").unwrap();
        images.0.db.write(|b| b.put(LAYERS, &chain.to_string(), &*layer)).unwrap();
        image.id
    };
    let images = open(dir.path());
    let image = images.get(&id).unwrap();
    let chains = image.config.chain_ids();
    assert_eq!((images.has_layer(&chains[0]), images.has_layer(&chains[1])), (true, false));
    images.restore_layers(&chains).unwrap();
    let layer = images.state().layers[&chains[1]].dir.clone();
    assert_eq!(fs::read(images.0.layers_dir.join(layer).join("etc/name")).unwrap(), b"two");
}

#[test]
fn what_an_interrupted_operation_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    {
        let images = open(dir.path());
        load(&images, &layers(), &["app:1"]);
        images.0.blobs.insert(b"of a pull that was cut short").unwrap();
        fs::create_dir(images.0.layers_dir.join("0123456789abcdef")).unwrap();
        fs::write(dir.path().join("images/tmp/half"), "x").unwrap();
    }
    let images = open(dir.path());
    assert_eq!(images.0.blobs.all().unwrap().len(), 3, "two layers and a configuration");
    assert_eq!(fs::read_dir(&images.0.layers_dir).unwrap().count(), 2);
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
    assert!(images.find("app:1").is_ok());
}

#[test]
fn tags_move_and_odd_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let one = load(&images, &layers()[..1], &["app:1"]);
    let two = load(&images, &layers(), &["app:2"]);
    images.tag(&two, &"app:1".parse().unwrap()).unwrap();
    assert_eq!(images.find("app:1").unwrap().id, two.id);
    assert!(images.references_of(&one.id).is_empty());
    let digest = format!("app@{}", one.id);
    for (name, message) in [
        (digest.as_str(), "refusing to create a tag with a digest reference"),
        ("sha256:x", "refusing to create an ambiguous tag using digest algorithm as name"),
    ] {
        let error = images.tag(&one, &name.parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let config = config_of(&layers(), &serde_json::json!({}));
    let mut wrong = layers();
    wrong[1] = Tar::default().file("etc/name", b"tampered").finish();
    let archive = docker_archive(&config, &wrong, &["app:1"]);
    let error = images.load(archive.as_slice(), None, &Reporter::silent()).unwrap_err();
    assert!(matches!(error, Error::DiffId { .. }), "{error}");
    assert!(images.find("app:1").is_err());
    assert!(images.0.blobs.all().unwrap().is_empty());
    assert_eq!(fs::read_dir(&images.0.layers_dir).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
}

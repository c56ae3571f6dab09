//! Tests of removal: what is said, what goes, and what stays.

use super::*;
use crate::images::testing::{Tar, load, open};

fn layer(name: &str) -> Vec<u8> {
    Tar::default().file(name, b"x").finish()
}

fn lines(items: &[DeleteItem]) -> Vec<String> {
    let line = |item: &DeleteItem| match item.untagged.as_str() {
        "" => format!("Deleted: {}", item.deleted),
        name => format!("Untagged: {name}"),
    };
    items.iter().map(line).collect()
}

fn none(_: &str) -> bool {
    false
}

#[test]
fn the_last_name_takes_the_image_and_its_own_layers_along() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let base = load(&images, &[layer("base")], &["base:1"]);
    let app = load(&images, &[layer("base"), layer("app")], &["app:1", "app:2"]);
    let remove = |name: &str| lines(&images.remove(name, RemoveOptions::default(), &none).unwrap());
    assert_eq!(remove("app:1"), ["Untagged: app:1"]);
    let top = app.config.chain_ids()[1];
    assert_eq!(
        remove("app:2"),
        ["Untagged: app:2".to_owned(), format!("Deleted: {}", app.id), format!("Deleted: {top}")]
    );
    assert!(images.find("base:1").is_ok());
    assert_eq!(images.layers_size(), 1);
    assert_eq!(images.0.blobs.all().unwrap().len(), 2);
    assert_eq!(remove(&base.id.short())[0], "Untagged: base:1");
    assert!(images.0.blobs.all().unwrap().is_empty());
    let error = images.remove("base:1", RemoveOptions::default(), &none).unwrap_err();
    assert_eq!(error.to_string(), "No such image: base:1");
}

#[test]
fn an_image_that_is_used_or_has_other_names_stays_with_dockers_reason() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let app = load(&images, &[layer("app")], &["app:1"]);
    let container = "0123456789abcdef0123";
    images.prepare_rootfs(container, &app).unwrap();
    images.unmount_rootfs(container).unwrap();
    let short = app.id.short();
    let force = RemoveOptions { force: true, no_prune: false };
    let refuse = |name: &str, options, running: bool| {
        images.remove(name, options, &move |_| running).unwrap_err().to_string()
    };
    assert_eq!(
        refuse("app:1", RemoveOptions::default(), true),
        format!(
            "conflict: unable to remove repository reference \"app:1\" (must force) - container 0123456789ab is using its referenced image {short}"
        )
    );
    assert_eq!(
        refuse(&short, RemoveOptions::default(), false),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is being used by stopped container 0123456789ab"
        )
    );
    assert_eq!(
        refuse(&short, force, true),
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container 0123456789ab"
        )
    );
    images.tag(&app, &"other.io/app:1".parse().unwrap()).unwrap();
    assert_eq!(
        refuse(&short, RemoveOptions::default(), false),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    assert_eq!(images.references_of(&app.id).len(), 2, "nothing was changed");

    let items = images.remove(&short, force, &none).unwrap();
    assert_eq!(
        lines(&items),
        [
            "Untagged: app:1".to_owned(),
            "Untagged: other.io/app:1".to_owned(),
            format!("Deleted: {}", app.id)
        ]
    );
    let root = images.mount_rootfs(container).unwrap();
    assert!(root.join("app").exists(), "the container keeps its layers");
    images.remove_rootfs(container).unwrap();
    assert_eq!(images.layers_size(), 0);
    assert!(images.0.blobs.all().unwrap().is_empty());
}

#[test]
fn a_running_containers_image_loses_its_name_by_force_but_stays() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let app = load(&images, &[layer("app")], &["app:1"]);
    images.prepare_rootfs("c1", &app).unwrap();
    let force = RemoveOptions { force: true, no_prune: false };
    assert_eq!(lines(&images.remove("app:1", force, &|_| true).unwrap()), ["Untagged: app:1"]);
    assert!(images.get(&app.id).is_some());
    images.remove_rootfs("c1").unwrap();
}

#[test]
fn prune_takes_what_nobody_uses() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let lost = load(&images, &[layer("old")], &["app:1"]);
    load(&images, &[layer("new")], &["app:1"]);
    let used = load(&images, &[layer("used")], &["used:1"]);
    images.prepare_rootfs("c1", &used).unwrap();
    let pruned = images.prune(&ListOptions::default(), &none).unwrap();
    assert_eq!(lines(&pruned.items)[0], format!("Deleted: {}", lost.id));
    assert_eq!((pruned.items.len(), pruned.bytes), (2, 1));
    let all = ListOptions { dangling: Some(false), ..ListOptions::default() };
    let kept = ListOptions { labels: vec!["no".to_owned()], ..all.clone() };
    assert!(images.prune(&kept, &none).unwrap().items.is_empty());
    let pruned = images.prune(&all, &none).unwrap();
    assert_eq!(lines(&pruned.items)[0], "Untagged: app:1");
    assert!(images.find("used:1").is_ok() && images.find("app:1").is_err());
    images.remove_rootfs("c1").unwrap();
}

//! Tests of root file systems. They mount, so they need root.

use super::*;
use crate::images::testing::{Tar, load, open};

/// Unmounts what a failed test would leave.
struct Mounted<'a>(&'a Images);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        for container in self.0.rootfs_ids() {
            self.0.unmount_rootfs(&container).unwrap();
        }
    }
}

#[test]
fn a_container_sees_all_layers_and_writes_to_none() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let _mounted = Mounted(&images);
    let layers = [
        Tar::default().file("a", b"1").file("gone", b"1").dir("d/").file("d/low", b"1").finish(),
        Tar::default().file("a", b"2").file(".wh.gone", b"").finish(),
        Tar::default().dir("d/").file("d/.wh..wh..opq", b"").file("d/high", b"3").finish(),
    ];
    let image = load(&images, &layers, &["app:1"]);
    let root = images.prepare_rootfs("c1", &image).unwrap();
    let names = |path: &Path| {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&root), ["a", "d"]);
    assert_eq!(names(&root.join("d")), ["high"]);
    assert_eq!(fs::read(root.join("a")).unwrap(), b"2");

    fs::write(root.join("a"), "changed").unwrap();
    let other = images.prepare_rootfs("c2", &image).unwrap();
    assert_eq!(fs::read(other.join("a")).unwrap(), b"2");
    assert_eq!(images.rootfs_size("c1").unwrap(), RootfsSize { writable: 7, total: 12 });
    assert_eq!(fs::read(images.upper_dir("c1").join("a")).unwrap(), b"changed");
    assert_eq!(images.holders(&image.id), ["c1", "c2"]);

    images.unmount_rootfs("c1").unwrap();
    images.unmount_rootfs("c1").unwrap();
    assert!(names(&root).is_empty());
    assert_eq!(images.mount_rootfs("c1").unwrap(), root);
    assert_eq!(images.mount_rootfs("c1").unwrap(), root);
    assert_eq!(fs::read(root.join("a")).unwrap(), b"changed");

    for container in ["c1", "c2", "c1"] {
        images.remove_rootfs(container).unwrap();
    }
    images.flush();
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
    assert!(images.rootfs_ids().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("rootfs")).unwrap().count(), 0);
    assert_eq!(
        images.mount_rootfs("c1").unwrap_err().to_string(),
        "no such container root file system: c1"
    );
}

#[test]
fn a_daemon_that_comes_back_knows_the_holds_and_can_mount_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = {
        let images = open(dir.path());
        let image = load(&images, &[Tar::default().file("a", b"1").finish()], &["app:1"]);
        let root = images.prepare_rootfs("c1", &image).unwrap();
        images.unmount_rootfs("c1").unwrap();
        root
    };
    let images = open(dir.path());
    let _mounted = Mounted(&images);
    assert_eq!(images.rootfs_ids(), ["c1"]);
    assert_eq!(images.mount_rootfs("c1").unwrap(), root);
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
}

#[test]
fn as_many_layers_as_an_image_may_have_are_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let _mounted = Mounted(&images);
    let layers: Vec<Vec<u8>> = (0..crate::images::config::LAYERS_MAX)
        .map(|n| {
            Tar::default().file(&format!("f{n}"), b"").file("n", n.to_string().as_bytes()).finish()
        })
        .collect();
    let image = load(&images, &layers, &["deep:1"]);
    let root = images.prepare_rootfs("c1", &image).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 128);
    assert_eq!(fs::read(root.join("n")).unwrap(), b"126");
}

#[test]
fn odd_characters_in_the_data_root_are_no_mount_options() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("a,b:c\\d e");
    fs::create_dir(&odd).unwrap();
    let images = open(&odd);
    let _mounted = Mounted(&images);
    let image = load(&images, &[Tar::default().file("a", b"1").finish()], &["app:1"]);
    let root = images.prepare_rootfs("c1", &image).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
}

#[test]
fn an_image_without_layers_gives_an_empty_root() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let _mounted = Mounted(&images);
    let image = load(&images, &[], &["empty:1"]);
    let root = images.prepare_rootfs("c1", &image).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    fs::write(root.join("a"), "x").unwrap();
}

#[test]
fn a_volatile_root_is_mounted_again_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let _mounted = Mounted(&images);
    let image = load(&images, &[Tar::default().file("a", b"1").finish()], &["app:1"]);
    let options = RootfsOptions { is_volatile: true };
    let root = images.prepare_rootfs_with("c1", &image, options).unwrap();
    let is_volatile = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|l| l.contains(root.to_str().unwrap())).unwrap();
        // Newer kernels write `fsync=volatile`.
        line.contains("volatile")
    };
    assert!(is_volatile());
    fs::write(root.join("b"), "2").unwrap();
    images.unmount_rootfs("c1").unwrap();
    images.mount_rootfs("c1").unwrap();
    assert!(is_volatile());
    assert_eq!(fs::read(root.join("b")).unwrap(), b"2");
}

#[test]
fn what_a_killed_daemon_had_no_time_to_unmount_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let image = load(&images, &[Tar::default().file("a", b"1").finish()], &["app:1"]);
    images.prepare_rootfs("c1", &image).unwrap();
    let aside = dir.path().join("images/tmp/aside");
    fs::rename(dir.path().join("rootfs/c1"), &aside).unwrap();
    drop((images, image));
    let images = open(dir.path());
    let old = dir.path().join("images/tmp.old");
    while old.exists() {
        std::thread::yield_now();
    }
    assert!(images.rootfs_ids().is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()));
}

#[test]
fn a_root_that_was_being_made_when_the_machine_stopped_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::create_dir_all(dir.path().join("rootfs/c1/upper")).unwrap();
    let images = open(dir.path());
    images.flush();
    assert!(images.rootfs_ids().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("rootfs")).unwrap().count(), 0);
}

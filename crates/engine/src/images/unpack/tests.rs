//! Tests of unpacking: what overlayfs needs, and what an archive may not do.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::images::testing::Tar;

const LIMITS: Limits = Limits { entries_max: 1000, bytes_max: 1 << 24 };

/// Unpacks into `layer` within a directory that also has a file an archive should never reach.
fn unpacked(archive: &[u8]) -> (tempfile::TempDir, Result<Unpacked, Error>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let root = fs::File::open(dir.path().join("layer")).unwrap();
    let result = unpack(archive, root.as_fd(), LIMITS);
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the layer");
    (dir, result)
}

fn layer_of(tar: Tar) -> (tempfile::TempDir, PathBuf) {
    let (dir, result) = unpacked(&tar.finish());
    result.unwrap();
    let layer = dir.path().join("layer");
    (dir, layer)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = fs::symlink_metadata(path)
        .ok()
        .and_then(|_| rustix::fs::lgetxattr(path, name, &mut value[..]).ok())?;
    value.truncate(length);
    Some(value)
}

#[test]
fn files_keep_their_owner_mode_time_and_attributes() {
    let (_dir, layer) = layer_of(
        Tar::default()
            .dir("etc/")
            .pax(&[
                ("uid", b"1000"),
                ("gid", b"2000"),
                ("mtime", b"1234567890.25"),
                ("SCHILY.xattr.user.note", b"hi"),
            ])
            .entry("etc/conf", b'0', 0o4751, "", b"content")
            .symlink("etc/link", "conf")
            .hard_link("etc/hard", "etc/conf")
            .with(b'3', "etc/null", b"", |h| {
                h[329..336].copy_from_slice(b"0000001");
                h[337..344].copy_from_slice(b"0000003");
            })
            .entry("etc/pipe", b'6', 0o600, "", b""),
    );
    let conf = fs::metadata(layer.join("etc/conf")).unwrap();
    assert_eq!((conf.uid(), conf.gid(), conf.permissions().mode() & 0o7777), (1000, 2000, 0o4751));
    assert_eq!((conf.mtime(), conf.mtime_nsec()), (1_234_567_890, 250_000_000));
    assert_eq!(xattr(&layer.join("etc/conf"), "user.note").as_deref(), Some(&b"hi"[..]));
    assert_eq!(fs::metadata(layer.join("etc/hard")).unwrap().ino(), conf.ino());
    assert_eq!(fs::read_link(layer.join("etc/link")).unwrap(), Path::new("conf"));
    let null = fs::metadata(layer.join("etc/null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
    assert!(fs::metadata(layer.join("etc/pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(layer.join("etc")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn whiteouts_hide_what_lies_beneath_and_nothing_of_their_own_layer() {
    let (_dir, layer) = layer_of(
        Tar::default()
            .file("a/.wh.gone", b"")
            .file("b/.wh..wh..opq", b"")
            .file("b/new", b"n")
            .file(".wh.replaced", b"")
            .dir("replaced/")
            .file("kept", b"k")
            .file(".wh.kept", b"")
            .file(".wh.parent", b"")
            .file("parent/child", b"c")
            .dir(".wh..wh.plnk/")
            .file(".wh..wh.plnk/1.2", b"x"),
    );
    let gone = fs::symlink_metadata(layer.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |path: &str| xattr(&layer.join(path), OVERLAY_OPAQUE).as_deref() == Some(b"y");
    assert!(opaque("b") && opaque("replaced") && opaque("parent") && !opaque("a"));
    assert_eq!(fs::read(layer.join("kept")).unwrap(), b"k");
    assert_eq!(fs::read(layer.join("parent/child")).unwrap(), b"c");
    assert!(!layer.join(".wh..wh.plnk").exists());
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (_dir, layer) = layer_of(
        Tar::default()
            .file("f", b"long content")
            .file("f", b"short")
            .dir("d/")
            .file("d/in", b"x")
            .file("d", b"now a file")
            .symlink("s", "f")
            .file("s", b"no link")
            .file("e", b"")
            .dir("e/"),
    );
    assert_eq!(fs::read(layer.join("f")).unwrap(), b"short");
    assert_eq!(fs::read(layer.join("d")).unwrap(), b"now a file");
    assert_eq!(fs::read(layer.join("s")).unwrap(), b"no link");
    assert!(layer.join("e").is_dir());
}

#[test]
fn a_link_as_a_parent_leads_beneath_the_layer_at_most() {
    let (_dir, layer) = layer_of(
        Tar::default()
            .dir("real/")
            .symlink("abs", "/real")
            .file("abs/one", b"1")
            .symlink("up", "../../../real")
            .file("up/two", b"2")
            .file("/absolute", b"3")
            .file("x/../four", b"4"),
    );
    for (path, content) in [("real/one", "1"), ("real/two", "2"), ("absolute", "3"), ("four", "4")]
    {
        assert_eq!(fs::read_to_string(layer.join(path)).unwrap(), content);
    }
}

#[test]
fn no_archive_leads_outside_of_the_layer() {
    for (tar, message) in [
        (
            Tar::default().file("../outside", b"x"),
            "archive entry \"../outside\" leads outside of the layer",
        ),
        (
            Tar::default().file("a/../../outside", b"x"),
            "archive entry \"a/../../outside\" leads outside of the layer",
        ),
        (
            Tar::default().dir("..").file("f", b""),
            "archive entry \"..\" leads outside of the layer",
        ),
        (
            Tar::default().hard_link("h", "../outside"),
            "archive entry \"../outside\" leads outside of the layer",
        ),
        (
            Tar::default().hard_link("h", "outside"),
            "unpack \"h\": No such file or directory (os error 2)",
        ),
        (
            Tar::default().symlink("l", "../outside").hard_link("h", "l/x"),
            "unpack \"h\": No such file or directory (os error 2)",
        ),
        (
            Tar::default()
                .symlink("l", "..")
                .file("l/outside", b"x")
                .dir("l")
                .hard_link("h", "m/outside"),
            "unpack \"h\": No such file or directory (os error 2)",
        ),
        (
            Tar::default().symlink("proc", "/proc/self/fd/0").file("proc/x", b""),
            "unpack \"proc/x\": Too many levels of symbolic links (os error 40)",
        ),
        (
            Tar::default().symlink("l", "l").file("l/x", b""),
            "unpack \"l/x\": Too many levels of symbolic links (os error 40)",
        ),
        (
            Tar::default().file("f", b"").file("f/x", b""),
            "unpack \"f/x\": Not a directory (os error 20)",
        ),
        (Tar::default().file(".wh.", b""), "archive entry \".wh.\" is no valid whiteout"),
        (Tar::default().file(".wh...", b""), "archive entry \".wh...\" is no valid whiteout"),
        (Tar::default().file(".wh.x/y", b""), "archive entry \".wh.x/y\" is no valid whiteout"),
        (Tar::default().file(".", b"x"), "archive entry \".\" leads outside of the layer"),
    ] {
        let (_dir, result) = unpacked(&tar.finish());
        assert_eq!(result.unwrap_err().to_string(), in_this_libcs_words(message));
    }
}

/// C libraries word the kernel's errors differently; the number says which one is meant.
fn in_this_libcs_words(message: &str) -> String {
    let number = message.rsplit_once("(os error ").and_then(|(_, rest)| rest.strip_suffix(')'));
    let Some(number) = number.and_then(|number| number.parse().ok()) else { return message.into() };
    let (what, _) = message.rsplit_once(": ").unwrap();
    format!("{what}: {}", std::io::Error::from_raw_os_error(number))
}

#[test]
fn a_layer_cannot_set_the_attributes_of_overlayfs() {
    let (_dir, layer) = layer_of(
        Tar::default()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/outside"),
                ("SCHILY.xattr.trusted.note", b"x"),
            ])
            .dir("d/"),
    );
    assert_eq!(xattr(&layer.join("d"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&layer.join("d"), "trusted.note").as_deref(), Some(&b"x"[..]));
}

#[test]
fn sparse_files_have_their_holes_back() {
    let (_dir, layer) = layer_of(Tar::default().with(b'S', "sparse", b"abcdef", |h| {
        h[386..397].copy_from_slice(b"00000000010");
        h[398..409].copy_from_slice(b"00000000002");
        h[410..421].copy_from_slice(b"00000000100");
        h[422..433].copy_from_slice(b"00000000004");
        h[483..494].copy_from_slice(b"00010000000");
    }));
    let content = fs::read(layer.join("sparse")).unwrap();
    assert_eq!(content.len(), 0o10_000_000);
    assert_eq!((&content[8..10], &content[64..68]), (&b"ab"[..], &b"cdef"[..]));
    assert!(fs::metadata(layer.join("sparse")).unwrap().blocks() < 100);
}

#[test]
fn a_truncated_archive_is_an_error_even_within_a_file() {
    let (_dir, result) = unpacked(&Tar::default().file("f", &[7; 3000]).cut(1000));
    assert_eq!(result.unwrap_err().to_string(), "unpack \"f\": unexpected end of file");
}

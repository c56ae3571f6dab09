//! Tests of the archive reader: what other writers make, and what no honest one does.

use super::*;
use crate::images::testing::Tar;
use proptest::prelude::*;

const LIMITS: Limits = Limits { entries_max: 100, bytes_max: 1 << 20 };

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut reader = Reader::new(archive, LIMITS);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn error_of(archive: &[u8]) -> String {
    read(archive).expect_err("a bad archive").to_string()
}

#[test]
fn entries_come_with_their_data_and_metadata() {
    let archive = Tar::default()
        .dir("a/")
        .file("a/f", b"hello")
        .symlink("a/s", "f")
        .hard_link("a/h", "a/f")
        .with(b'3', "a/null", b"", |h| {
            h[329..336].copy_from_slice(b"0000001");
            h[337..344].copy_from_slice(b"0000003");
        })
        .finish();
    let entries = read(&archive).unwrap();
    let kinds: Vec<Kind> = entries.iter().map(|(e, _)| e.kind).collect();
    use Kind::{CharDevice, Directory, File, HardLink, Symlink};
    assert_eq!(kinds, [Directory, File, Symlink, HardLink, CharDevice]);
    assert_eq!(entries[1].1, b"hello");
    assert_eq!(entries[1].0.mtime.seconds, 1_000_000_000);
    assert_eq!((entries[1].0.mode, entries[1].0.size), (0o644, 5));
    assert_eq!(entries[3].0.link, b"a/f");
    assert_eq!(entries[4].0.device, (1, 3));
}

#[test]
fn pax_records_override_the_header() {
    let long = "d/".repeat(200) + "f";
    let archive = Tar::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"12.5"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.user.a", b"\x00\n=\xff"),
            ("comment", b"ignored"),
        ])
        .file("short", b"x")
        .file("next", b"y")
        .finish();
    let entries = read(&archive).unwrap();
    let (first, second) = (&entries[0].0, &entries[1].0);
    assert_eq!(first.path, long.as_bytes());
    assert_eq!(first.mtime, Timestamp { seconds: 12, nanoseconds: 500_000_000 });
    assert_eq!(first.uid, 3_000_000);
    assert_eq!(first.xattrs, [(b"user.a".to_vec(), b"\x00\n=\xff".to_vec())]);
    assert_eq!((second.path.as_slice(), second.uid, second.xattrs.len()), (&b"next"[..], 0, 0));
}

#[test]
fn gnu_names_and_numbers_are_understood() {
    let long = "x".repeat(300);
    let archive = Tar::default()
        .entry("././@LongLink", b'L', 0o644, "", format!("{long}\0").as_bytes())
        .entry("././@LongLink", b'K', 0o644, "", b"target\0")
        .with(b'2', "short", b"", |h| {
            h[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
        })
        .finish();
    let entries = read(&archive).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!(entries[0].0.link, b"target");
    assert_eq!(entries[0].0.uid, 0x7fff_ffff);
}

#[test]
fn sparse_files_of_both_forms_tell_where_their_data_belongs() {
    let gnu = Tar::default().with(b'S', "sparse", b"abcdef", |h| {
        h[386..397].copy_from_slice(b"00000000010");
        h[398..409].copy_from_slice(b"00000000002");
        h[410..421].copy_from_slice(b"00000000100");
        h[422..433].copy_from_slice(b"00000000004");
        h[483..494].copy_from_slice(b"00000010000");
    });
    let mut map = b"2\n8\n2\n64\n4\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abcdef");
    let pax = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"4096"),
        ])
        .file("GNUSparseFile.0/sparse", &map);
    for archive in [gnu.finish(), pax.finish()] {
        let entries = read(&archive).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!(entry.path, b"sparse");
        assert_eq!(entry.size, 4096);
        assert_eq!(entry.sparse.as_deref(), Some(&[(8, 2), (64, 4)][..]));
        assert_eq!(data, b"abcdef");
    }
}

#[test]
fn hostile_archives_are_refused() {
    let good = || Tar::default().file("f", b"hello");
    for (archive, message) in [
        (
            b"not a tar at all, but long enough to fill".repeat(20),
            "archive/tar: invalid tar header",
        ),
        (b"short".to_vec(), "archive/tar: invalid tar header"),
        (good().cut(510), "unexpected EOF"),
        (
            good().with(b'0', "g", b"", |h| h[124..135].copy_from_slice(b"00000007777")).finish(),
            "unexpected EOF",
        ),
        (
            good()
                .with(b'0', "huge", b"", |h| {
                    h[124..136]
                        .copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255])
                })
                .finish(),
            "archive/tar: size out of bounds in entry \"huge\"",
        ),
        (
            good()
                .with(b'x', "huge", b"", |h| h[124..135].copy_from_slice(b"00077777777"))
                .finish(),
            "archive/tar: extended header size out of bounds in entry \"huge\"",
        ),
        (
            good()
                .with(b'L', "huge", b"", |h| h[124..135].copy_from_slice(b"00077777777"))
                .finish(),
            "archive/tar: path length out of bounds in entry \"huge\"",
        ),
        (
            good().pax(&[("size", b"-1")]).file("f", b"").finish(),
            "archive/tar: extended header out of bounds in entry \"pax\"",
        ),
        (
            good().entry("pax", b'x', 0, "", b"99 path=x\n").finish(),
            "archive/tar: extended header out of bounds in entry \"pax\"",
        ),
        (
            good().pax(&[("path", b"a\0b")]).file("f", b"").finish(),
            "archive/tar: path out of bounds in entry \"a\\0b\"",
        ),
        (
            good().entry("odd", b'V', 0, "", b"").finish(),
            "archive/tar: type out of bounds in entry \"odd\"",
        ),
        (
            (0..17).fold(good(), |t, _| t.pax(&[])).finish(),
            "archive has more than 16 extension headers in a row",
        ),
        (
            (0..101).fold(good(), |t, _| t.file("f", b"")).finish(),
            "archive has more than 100 entries",
        ),
        (good().file("big", &vec![0; 1 << 20]).finish(), "archive has more than 1048576 bytes"),
    ] {
        assert_eq!(error_of(&archive), message);
    }
}

#[test]
fn a_sparse_map_beyond_the_file_is_refused() {
    let archive = Tar::default().with(b'S', "sparse", b"ab", |h| {
        h[386..397].copy_from_slice(b"00000000010");
        h[398..409].copy_from_slice(b"00000000002");
        h[483..494].copy_from_slice(b"00000000005");
    });
    let message = "archive/tar: sparse map out of bounds in entry \"sparse\"";
    assert_eq!(error_of(&archive.finish()), message);
}

#[test]
fn an_archive_may_end_without_its_two_empty_blocks() {
    assert_eq!(read(&Tar::default().file("f", b"hello").cut(0)).unwrap().len(), 1);
    assert!(read(b"").unwrap().is_empty());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        mut noise in proptest::collection::vec(any::<u8>(), 0..2048),
        at in 0usize..512,
    ) {
        read(&noise).ok();
        // A valid header, then a change to it, then noise.
        let mut archive = Tar::default().file("f", b"hello").finish();
        archive[at] ^= noise.first().copied().unwrap_or(1);
        archive.append(&mut noise);
        read(&archive).ok();
    }

    #[test]
    fn pax_records_of_any_content_do_not_panic(
        data in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        read(&Tar::default().entry("p", b'x', 0, "", &data).file("f", b"x").finish()).ok();
    }
}

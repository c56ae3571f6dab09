//! Layers: nothing is written outside the directory they are unpacked into.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;

use engine::images::archive::Limits;
use engine::images::unpack::unpack;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("directory");
    let root = folder.path().join("root");
    std::fs::create_dir(&root).expect("creates");
    let limits = Limits { entries_max: 100, bytes_max: 1 << 20 };
    let opened = File::open(&root).expect("opens");
    let _ = unpack(bytes, opened.as_fd(), limits);
    let beside = std::fs::read_dir(folder.path()).expect("lists").count();
    assert_eq!(beside, 1, "something was written beside the root");
});

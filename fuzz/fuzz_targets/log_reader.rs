//! Logs of containers, whatever a crash or a full disk has left of them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("directory");
    engine::fuzzing::log(folder.path(), bytes);
});

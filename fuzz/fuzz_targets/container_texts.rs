//! Ports, mounts, users, detach keys and the like, as clients write them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| engine::fuzzing::container_texts(text));

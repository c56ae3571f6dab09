//! Frames between nodes, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<Vec<u8>>| rpc::fuzzing::frames(&pieces));

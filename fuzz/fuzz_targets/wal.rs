//! The log on disk after damage: it refuses to open or loses nothing that was acknowledged.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<(u16, u8)>, Option<u16>)| {
    let (batches, damage, cut) = input;
    consensus::fuzzing::damaged_log(batches, &damage, cut);
});

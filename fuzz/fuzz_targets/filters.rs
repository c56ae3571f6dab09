//! The `filters` of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| apiserver::fuzzing::filters(text));

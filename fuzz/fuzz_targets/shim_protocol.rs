//! What daemon and shim say to each other: what is read is written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shim::config::{Config, ExitRecord, StateRecord};
use shim::protocol::{Call, Push};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(call) = serde_json::from_slice::<Call>(bytes) {
        let text = serde_json::to_string(&call).expect("it is written");
        serde_json::from_str::<Call>(&text).expect("and read");
    }
    if let Ok(push) = serde_json::from_slice::<Push>(bytes) {
        let text = serde_json::to_string(&push).expect("it is written");
        serde_json::from_str::<Push>(&text).expect("and read");
    }
    let _ = serde_json::from_slice::<Config>(bytes);
    let _ = serde_json::from_slice::<ExitRecord>(bytes);
    let _ = serde_json::from_slice::<StateRecord>(bytes);
});

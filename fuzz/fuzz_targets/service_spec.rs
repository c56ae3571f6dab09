//! Specs of services and constraints, as clients write them.
#![no_main]

use docker_types::convert::service::{spec_from_api, spec_to_api};
use libfuzzer_sys::fuzz_target;
use planner::constraint::Constraint;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Constraint::parse(text);
    }
    let Ok(spec) = serde_json::from_slice::<docker_types::service::ServiceSpec>(bytes) else { return };
    if let Ok(spec) = spec_from_api(spec, "") {
        let again = spec_from_api(spec_to_api(&spec), "").expect("what we answer with, we take");
        assert_eq!(again, spec);
    }
});

//! Questions for names, as anybody in a container may send them.
#![no_main]

use std::sync::{Arc, RwLock};

use libfuzzer_sys::fuzz_target;
use names::{Host, Names, Reply, Transport, Zone};

fuzz_target!(|bytes: &[u8]| {
    let mut host = Host::default();
    host.add("web", [[10, 0, 1, 9].into(), [10, 0, 1, 10].into()]);
    host.reverse.insert([10, 0, 1, 9].into(), "web.1.blue".into());
    let mut zone = Zone::new("blue");
    zone.set("service", host);
    let names = Names { zones: vec![Arc::new(RwLock::new(zone))], is_internal: true };
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Reply::Answer(answer) = names.answer(bytes, transport, |_| 0) {
            assert!(answer.len() >= 12 && answer[..2] == bytes[..2] && answer[2] & 0x80 != 0);
        }
    }
});

//! How long a question for a name takes to answer in a network of 5,000 services, and one service to change.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and end")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, RwLock};

use criterion::{Criterion, criterion_group, criterion_main};
use names::{Host, Names, Transport, Zone};

const SERVICES: u32 = 5_000;
/// First address of the network's 10.0.0.0/8.
const FIRST: u32 = 0x0a00_0000;
const TASKS: u32 = 3;

fn service(number: u32) -> Host {
    let address = |offset: u32| IpAddr::from(Ipv4Addr::from_bits(FIRST + 8 * number + offset));
    let mut host = Host::default();
    host.add(&format!("service{number}"), [address(1)]);
    host.add(&format!("tasks.service{number}"), (2..2 + TASKS).map(address));
    host.reverse.insert(address(1), format!("service{number}.blue"));
    host
}

fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    question
}

fn answers(criterion: &mut Criterion) {
    let mut zone = Zone::new("blue");
    for number in 0..SERVICES {
        zone.set(&number.to_string(), service(number));
    }
    let zone = Arc::new(RwLock::new(zone));
    let names = Names { zones: vec![zone.clone()], is_internal: false };
    for name in ["service2500", "tasks.service2500", "service2500.blue", "example.org"] {
        let question = question(name);
        criterion.bench_function(&format!("answer {name}"), |bencher| {
            bencher.iter(|| names.answer(black_box(&question), Transport::Udp, |below| below - 1));
        });
    }
    let changed = service(SERVICES);
    criterion.bench_function("change one service", |bencher| {
        bencher.iter(|| zone.write().unwrap().set("2500", black_box(&changed).clone()));
    });
}

criterion_group!(benches, answers);
criterion_main!(benches);

//! How long a node takes to change one service among 5,000 in the tables of its containers. Needs root.

#![allow(unsafe_code, reason = "the benchmark moves itself into a new network namespace")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and end")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use network::{Backends, Config, DATA_PORT, Join, Network, Overlay, Update};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const SERVICES: u32 = 5_000;
const TASKS: u32 = 10;
/// Containers of the node that balance over them.
const CONTAINERS: [u8; 2] = [1, 20];
/// First address of the network's 10.0.0.0/8.
const FIRST: u32 = 0x0a00_0000;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(FIRST + number).into()
}

/// Behind the service, beginning with the backend of that number.
fn backends(service: u32, first: u32) -> Backends {
    let place = |number| address(0x1_0000 + 16 * service + first + number);
    (0..TASKS).map(place).collect()
}

async fn open(directory: &std::path::Path) -> Network {
    let config = Config {
        instance: "bench".into(),
        bridge: "skep0".into(),
        subnet: None,
        run_dir: directory.join("run"),
        state_dir: directory.join("state"),
    };
    let network = Network::open(config).await.unwrap();
    let overlay = Overlay {
        id: "blue".into(),
        vni: 4_097,
        local: None,
        port: DATA_PORT,
        mtu: None,
        way: None,
        is_encrypted: false,
    };
    network.make_overlay(overlay).await.unwrap();
    network
}

async fn join(network: &Network, number: u8) {
    let container = format!("container{number:07}");
    network.isolate(&container).await.unwrap();
    let addresses = vec![format!("10.255.0.{number}/8").parse().unwrap()];
    network.join(&container, Join { overlay: "blue".into(), addresses }).await.unwrap();
}

fn services(criterion: &mut Criterion) {
    // SAFETY: No other thread runs yet.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let network = runtime.block_on(open(directory.path()));
    let all: BTreeMap<_, _> =
        (0..SERVICES).map(|number| (address(number), backends(number, 0))).collect();
    runtime.block_on(network.set_services("blue", Update::Whole(all))).unwrap();
    let mut joined = 0;
    for count in CONTAINERS {
        for number in joined + 1..=count {
            runtime.block_on(join(&network, number));
        }
        joined = count;
        let mut first = 0;
        criterion.bench_function(&format!("change one service, {count} containers"), |bencher| {
            bencher.iter(|| {
                first ^= 1;
                let part = [(address(2_500), Some(backends(2_500, first)))].into();
                runtime.block_on(network.set_services("blue", Update::Part(part))).unwrap();
            });
        });
    }
    runtime.block_on(network.close()).unwrap();
}

criterion_group!(benches, services);
criterion_main!(benches);

//! Rolling updates while everybody asks: by every node's published port, and by the virtual address from every node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use e2e::{Cluster, skep_only, within};

use crate::sleeper;

const REPLICAS: usize = 10;

/// Who asks at once from one place.
const ASKERS: usize = 3;

/// Somewhere to ask from, and what is asked there.
struct Place {
    namespace: PathBuf,
    address: String,
    port: u16,
}

fn request(address: &str, port: u16) -> std::io::Result<()> {
    let address = format!("{address}:{port}").parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("RemoteAddr: ") {
        true => Ok(()),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks everywhere, again and again, while `change` runs; answers with how many were asked, at the least, at any place, and
/// with those that were not answered.
fn under_load(places: &[Place], change: impl FnOnce()) -> (usize, Vec<String>) {
    let is_over = AtomicBool::new(false);
    let asked: Vec<_> = places.iter().map(|_| AtomicUsize::new(0)).collect();
    let failures = std::thread::scope(|scope| {
        let askers = places.iter().zip(&asked).flat_map(|place| [place; ASKERS]);
        let askers: Vec<_> = askers
            .map(|(place, asked)| {
                let is_over = &is_over;
                scope.spawn(move || within(&place.namespace, || ask(place, asked, is_over)))
            })
            .collect();
        change();
        is_over.store(true, Ordering::Relaxed);
        askers.into_iter().flat_map(|asker| asker.join().expect("asks")).collect()
    });
    (asked.iter().map(|asked| asked.load(Ordering::Relaxed)).min().unwrap_or(0), failures)
}

fn ask(place: &Place, asked: &AtomicUsize, is_over: &AtomicBool) -> Vec<String> {
    let Place { address, port, .. } = place;
    let mut failures = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        asked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = request(address, *port) {
            failures.push(format!("{address}:{port}: {error}"));
        }
    }
    failures
}

/// Containers of the service, on all hosts.
fn containers(cluster: &Cluster) -> Vec<String> {
    cluster.hosts().iter().flat_map(|host| host.containers("web")).collect()
}

#[test]
fn an_update_under_load_loses_no_request() {
    skep_only!("stock Docker loses some");
    let cluster = Cluster::swarm(1, 2);
    let (first, client) = (cluster.host(1), cluster.client());
    first.ok(&["network", "create", "-d", "overlay", "blue"]);
    sleeper(first, "client", &["--network", "blue", "--mode", "global"]);
    first.until_running("client", 3);
    for order in ["stop-first", "start-first"] {
        let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
        // A container that is told to stop is dead at once, with whatever it was about to answer.
        let update = ["--update-order", order, "--stop-signal", "SIGKILL"];
        let replicas = ["--update-parallelism", "2", "--replicas", &REPLICAS.to_string()];
        let network = ["--network", "blue", "--publish", "8080:80", "whoami"];
        first.ok(&[&create[..], &update, &replicas, &network].concat());
        first.until_running("web", REPLICAS);
        let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
        let given = first.ok(&["service", "inspect", "web", "--format", format]);
        let virtual_ip = given.split([' ', '/']).find(|it| it.starts_with("10.0."));
        let virtual_ip = virtual_ip.expect("it has one in the network").to_owned();
        let outside = cluster.hosts().iter().map(|host| {
            let address = host.address.clone();
            Place { namespace: client.namespace(), address, port: 8080 }
        });
        let inside = cluster.hosts().iter().map(|host| {
            let namespace = host.namespace_of(&host.containers("client")[0]);
            Place { namespace, address: virtual_ip.clone(), port: 80 }
        });
        let places: Vec<_> = outside.chain(inside).collect();
        for place in &places {
            first.until("it answers", || {
                within(&place.namespace, || request(&place.address, place.port)).is_ok()
            });
        }
        let before: BTreeSet<_> = containers(&cluster).into_iter().collect();
        let (asked, failures) = under_load(&places, || {
            first.ok(&["service", "update", "--detach", "--force", "web"]);
            first.until("all are new", || {
                let now = containers(&cluster);
                now.len() == REPLICAS && now.iter().all(|container| !before.contains(container))
            });
        });
        assert!(asked > 50, "{asked} asked");
        assert_eq!(failures, Vec::<String>::new(), "{order}: {asked} asked at each place");
        first.ok(&["service", "rm", "web"]);
        first.until("nobody answers", || client.ask(&first.address, 8080).is_none());
    }
    cluster.audit();
}

//! Rolling updates while everybody asks: by every node's published port, and by the virtual address from every node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use e2e::{Cluster, Host, skep_only, within};

use crate::sleeper;

const REPLICAS: usize = 10;

/// One load at a time: wrk takes whatever the machine has, and daemons that get nothing of it hear late who has left.
static LOAD: Mutex<()> = Mutex::new(());

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

/// The service's address in its network.
fn virtual_ip(host: &Host) -> String {
    let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let given = host.ok(&["service", "inspect", "web", "--format", format]);
    let virtual_ip = given.split([' ', '/']).find(|it| it.starts_with("10.0."));
    virtual_ip.expect("it has one in the network").to_owned()
}

/// Updates the service until each of its containers is another.
fn replace_all(cluster: &Cluster) {
    let first = cluster.host(1);
    let before: BTreeSet<_> = containers(cluster).into_iter().collect();
    first.ok(&["service", "update", "--detach", "--force", "web"]);
    first.until("all are new", || {
        let now = containers(cluster);
        now.len() == REPLICAS && now.iter().all(|container| !before.contains(container))
    });
}

#[test]
fn an_update_under_load_loses_no_request() {
    skep_only!("stock Docker loses some");
    let _load = LOAD.lock().unwrap_or_else(PoisonError::into_inner);
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
        let virtual_ip = virtual_ip(first);
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
        let (asked, failures) = under_load(&places, || replace_all(&cluster));
        assert!(asked > 50, "{asked} asked");
        assert_eq!(failures, Vec::<String>::new(), "{order}: {asked} asked at each place");
        first.ok(&["service", "rm", "web"]);
        first.until("nobody answers", || client.ask(&first.address, 8080).is_none());
    }
    cluster.audit();
}

/// Asks over and over on connections that are kept, and says what went wrong, while `change` runs.
fn under_wrk(places: &[(&Path, String)], change: impl FnOnce()) -> Vec<String> {
    let begin = |(namespace, url): &(&Path, String)| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display()));
        command.args(["wrk", "-t1", "-c32", "-d600s", url]).stdout(Stdio::piped());
        command.spawn().expect("wrk runs")
    };
    let started: Vec<_> = places.iter().map(begin).collect();
    change();
    let end = |wrk: std::process::Child| {
        let pid = i32::try_from(wrk.id()).ok().and_then(rustix::process::Pid::from_raw);
        let ended =
            rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::INT);
        ended.expect("wrk ends");
        let Output { stdout, .. } = wrk.wait_with_output().expect("wrk says how it went");
        String::from_utf8(stdout).expect("text")
    };
    started.into_iter().map(end).collect()
}

#[test]
fn an_update_loses_no_request_on_connections_that_are_kept() {
    skep_only!("stock Docker loses some");
    let _load = LOAD.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::swarm(1, 2);
    for host in cluster.hosts() {
        host.load_web_images();
    }
    let (first, client) = (cluster.host(1), cluster.client());
    first.ok(&["network", "create", "-d", "overlay", "blue"]);
    sleeper(first, "client", &["--network", "blue"]);
    first.until_running("client", 1);
    for order in ["stop-first", "start-first"] {
        let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
        // nginx parts with a connection after a thousand requests. Told to stop, it cuts what is left.
        let update = ["--update-order", order, "--stop-grace-period", "60s"];
        let replicas = ["--update-parallelism", "3", "--replicas", &REPLICAS.to_string()];
        let network = ["--network", "blue", "--publish", "8080:80", "nginx"];
        first.ok(&[&create[..], &update, &replicas, &network].concat());
        first.until_running("web", REPLICAS);
        let inside = cluster.hosts().iter().find_map(|host| {
            host.containers("client").first().map(|container| host.namespace_of(container))
        });
        let inside = inside.expect("it runs");
        let places = [
            (&*client.namespace(), format!("http://{}:8080/quiet", cluster.host(2).address)),
            (&*inside, format!("http://{}/quiet", virtual_ip(first))),
        ];
        for said in under_wrk(&places, || replace_all(&cluster)) {
            let is_whole = said.contains("requests in");
            let failed = ["Socket errors", "Non-2xx"].iter().any(|it| said.contains(it));
            assert!(is_whole && !failed, "{order}: {said}");
        }
        first.ok(&["service", "rm", "web"]);
        first.until("nobody answers", || client.ask(&first.address, 8080).is_none());
    }
}

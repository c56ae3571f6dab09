//! Sentences about networks of the swarm, each on hosts of its own joined by a wire. Needs root and iproute2.
#![allow(
    unsafe_code,
    reason = "each host is a thread of its own in a network namespace of its own"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use network::{
    Asker, Config, DATA_PORT, Join, LocalNames, NameSockets, Namer, Network, Overlay, Peer,
    Services,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The last part of the service's addresses.
const VIP: u8 = 100;

fn ipv4(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

fn ipv6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into()).into()
}

fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

type Job = Box<dyn FnOnce(&tokio::runtime::Runtime, &Network) + Send>;

/// A host: a thread in its own network namespace that does what it is told.
struct Host {
    number: u8,
    thread: i32,
    jobs: mpsc::SyncSender<Job>,
    _directory: tempfile::TempDir,
}

impl Host {
    fn new(number: u8) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let config = Config {
            instance: format!("ov{number}"),
            bridge: "skep0".into(),
            subnet: None,
            run_dir: directory.path().join("run"),
            state_dir: directory.path().join("state"),
        };
        let (jobs, inbox) = mpsc::sync_channel::<Job>(1);
        let (ready, is_ready) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            // SAFETY: the thread is our own; its namespace ends with it.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
            ip("link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            let network = runtime.block_on(Network::open(config)).expect("opens");
            ready.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("awaited");
            for job in inbox {
                job(&runtime, &network);
            }
            runtime.block_on(network.close()).expect("closes");
        });
        let thread = is_ready.recv().expect("the host is up");
        Self { number, thread, jobs, _directory: directory }
    }

    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&tokio::runtime::Runtime, &Network) -> T + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::sync_channel(1);
        let job = move |runtime: &tokio::runtime::Runtime, network: &Network| {
            let _ = done.send(job(runtime, network));
        };
        self.jobs.send(Box::new(job)).expect("the host is up");
        result.recv().expect("the job is done")
    }

    fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 9, 0, self.number).into()
    }

    fn overlay(&self) -> Overlay {
        Overlay {
            id: "blue".into(),
            vni: 4_097,
            local: Some(self.address()),
            port: DATA_PORT,
            mtu: None,
            way: None,
            is_encrypted: false,
        }
    }

    /// Puts a container into the network.
    fn container(&self, name: &'static str, last: u8) -> std::path::PathBuf {
        let overlay = self.overlay();
        self.run(move |runtime, network| {
            runtime.block_on(async {
                network.make_overlay(overlay).await.expect("makes");
                network.isolate(name).await.expect("isolates");
                let addresses = [format!("{}/24", ipv4(last)), format!("{}/64", ipv6(last))];
                let addresses = addresses.map(|it| it.parse().expect("an address")).to_vec();
                let join = Join { overlay: "blue".into(), addresses };
                network.join(name, join).await.expect("joins");
            });
            network.netns(name)
        })
    }

    fn peers(&self, peers: &[(u8, &Host)]) {
        let peers: BTreeMap<_, _> =
            peers.iter().flat_map(|(last, host)| host.peer(*last)).collect();
        self.run(move |runtime, network| {
            runtime.block_on(network.set_peers("blue", peers)).expect("sets");
        });
    }

    /// A container of this host, as others know it.
    fn peer(&self, last: u8) -> [(IpAddr, Peer); 2] {
        let mac = network::hardware_address([ipv4(last)]).expect("there is one");
        let peer = Peer { node: self.address(), mac };
        [(ipv4(last), peer), (ipv6(last), peer)]
    }

    fn services(&self, backends: &[u8]) {
        let all = |address: fn(u8) -> IpAddr| backends.iter().map(|last| address(*last)).collect();
        let services: Services = [(ipv4(VIP), all(ipv4)), (ipv6(VIP), all(ipv6))].into();
        self.run(move |runtime, network| {
            runtime.block_on(network.set_services("blue", services)).expect("sets");
        });
    }
}

/// Takes questions and answers none.
#[derive(Debug)]
struct Silent;

impl Namer for Silent {
    fn serve(&self, _: Asker<'_>, _: NameSockets) {}

    fn change(&self, _: Asker<'_>) {}

    fn forget(&self, _: &str) {}

    fn tell(&self, _: LocalNames) {}

    fn forget_network(&self, _: &str) {}
}

/// Two hosts with a wire between them.
fn two_hosts() -> (Host, Host) {
    let (one, two) = (Host::new(1), Host::new(2));
    let other = two.thread;
    one.run(move |_, _| {
        ip(&format!("link add wire type veth peer name wire netns {other}"));
        ip("addr add 10.9.0.1/24 dev wire");
        ip("link set wire up");
    });
    two.run(|_, _| {
        ip("addr add 10.9.0.2/24 dev wire");
        ip("link set wire up");
    });
    (one, two)
}

fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(netns).expect("the namespace is there");
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enters");
            work()
        });
        entered.join().expect("the work is done")
    })
}

/// Answers each connection on port 80, of IPv4 and IPv6, with `word` and the caller's address, for as long as the test runs.
fn serve(netns: &Path, word: &'static str) {
    let listener = inside(netns, || TcpListener::bind("[::]:80").expect("binds"));
    std::thread::spawn(move || {
        while let Ok((mut stream, caller)) = listener.accept() {
            let _ = write!(stream, "{word} {}", caller.ip().to_canonical());
        }
    });
}

fn ask(netns: &Path, address: IpAddr) -> Option<String> {
    inside(netns, || {
        let address = SocketAddr::from((address, 80));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

#[test]
fn containers_reach_each_other_across_hosts_under_their_own_addresses() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    serve(&b, "b");
    assert_eq!(ask(&a, ipv4(12)).as_deref(), Some("b 10.1.0.11"));
    assert_eq!(ask(&a, ipv6(12)).as_deref(), Some("b fd00:1::b"));
    one.peers(&[]);
    for address in [ipv4(12), ipv6(12)] {
        assert_eq!(ask(&a, address), None, "a peer that is gone is not reached");
    }
}

#[test]
fn a_virtual_address_leads_to_every_backend_and_to_none_that_left() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    let c = one.container("cccccccccccccccc", 13);
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one), (13, &one)]);
    serve(&b, "b");
    serve(&c, "c");
    one.services(&[12, 13]);
    let seen =
        |address: IpAddr| -> BTreeSet<_> { (0..40).filter_map(|_| ask(&a, address)).collect() };
    assert_eq!(seen(ipv4(VIP)), ["b 10.1.0.11", "c 10.1.0.11"].map(str::to_owned).into());
    assert_eq!(seen(ipv6(VIP)), ["b fd00:1::b", "c fd00:1::b"].map(str::to_owned).into());
    one.services(&[13]);
    assert_eq!(seen(ipv4(VIP)), ["c 10.1.0.11".to_owned()].into());
    assert_eq!(seen(ipv6(VIP)), ["c fd00:1::b".to_owned()].into());
    for (address, own) in [(ipv4(VIP), "c 10.1.0.13"), (ipv6(VIP), "c fd00:1::d")] {
        assert_eq!(ask(&c, address).as_deref(), Some(own), "one that reaches itself");
    }
}

#[test]
fn another_daemon_takes_over_what_is_there() {
    let (one, two) = two_hosts();
    let (a, b) = (one.container("aaaaaaaaaaaaaaaa", 11), two.container("bbbbbbbbbbbbbbbb", 12));
    one.peers(&[(12, &two)]);
    two.peers(&[(11, &one)]);
    serve(&b, "b");
    one.services(&[12]);
    let (overlay, other) = (one.overlay(), two.peer(12));
    let again = one.run(move |runtime, network| {
        let directory = network.netns("x").parent().and_then(Path::parent).map(Path::to_owned);
        let config = Config {
            instance: "ov1".into(),
            bridge: "skep0".into(),
            subnet: None,
            run_dir: directory.clone().expect("a folder"),
            state_dir: directory.expect("a folder").join("../state"),
        };
        runtime.block_on(async {
            let next = Network::open(config).await.expect("opens");
            next.make_overlay(overlay).await.expect("takes over");
            // Nothing changes, so nothing is written: what an earlier daemon wrote is known.
            next.set_peers("blue", other.into()).await.expect("sets");
            next.set_namer(Arc::new(Silent)).await.expect("binds in every container");
            next.joined()
        })
    });
    assert_eq!(again.len(), 1);
    assert_eq!(ask(&a, ipv4(VIP)).as_deref(), Some("b 10.1.0.11"), "connections go on meanwhile");
}

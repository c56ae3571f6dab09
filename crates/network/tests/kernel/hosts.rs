//! Hosts for tests: network namespaces that threads work in, and what there is to ask and to answer in them.
#![allow(unsafe_code, reason = "threads of our own are moved into new network namespaces")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use network::{Config, LocalNetwork, Network};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tempfile::TempDir;

/// The port that [`serve`] answers on.
pub(crate) const PORT: u16 = 80;

/// Runs a program in the namespace of the calling thread; answers with what it wrote.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs iproute2's `ip`.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(work)
}

/// Runs `work` in a container's namespace.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).expect("the namespace is there");
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enters");
            work()
        });
        entered.join().expect("the work is done")
    })
}

/// Answers each connection on [`PORT`], of IPv4 and IPv6, with `word` and the caller's address, for as long as the test
/// runs.
pub(crate) fn serve(netns: &Path, word: &'static str) {
    serve_at(netns, (Ipv6Addr::UNSPECIFIED, PORT), word);
}

/// Does so at another place.
pub(crate) fn serve_at(netns: &Path, place: (impl Into<IpAddr>, u16), word: &'static str) {
    let listener = listen(netns, SocketAddr::new(place.0.into(), place.1));
    std::thread::spawn(move || {
        while let Ok((mut stream, caller)) = listener.accept() {
            let _ = write!(stream, "{word} {}", caller.ip().to_canonical());
        }
    });
}

/// Sends each caller back what he says, to its end.
pub(crate) fn echo_at(netns: &Path, place: (impl Into<IpAddr>, u16)) {
    let listener = listen(netns, SocketAddr::new(place.0.into(), place.1));
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let _ = io::copy(&mut &stream, &mut &stream);
        }
    });
}

fn listen(netns: &Path, place: SocketAddr) -> TcpListener {
    inside(netns, || TcpListener::bind(place).expect("binds"))
}

/// What comes back for these words.
pub(crate) fn say(address: impl Into<IpAddr>, port: u16, words: Vec<u8>) -> Vec<u8> {
    let stream = TcpStream::connect(SocketAddr::new(address.into(), port)).expect("connects");
    let mut speaking = stream.try_clone().expect("cloned");
    let speaker = std::thread::spawn(move || {
        speaking.write_all(&words).expect("heard");
        speaking.shutdown(Shutdown::Write).expect("done");
    });
    let mut answer = Vec::new();
    (&stream).read_to_end(&mut answer).expect("answered");
    speaker.join().expect("said");
    answer
}

/// What [`serve`] answers there.
pub(crate) fn ask(address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// How a daemon with its folders in `directory` is to work.
pub(crate) fn config(instance: &str, directory: &TempDir) -> Config {
    Config {
        instance: instance.into(),
        bridge: "skep0".into(),
        subnet: None,
        run_dir: directory.path().join("run"),
        state_dir: directory.path().join("state"),
    }
}

/// Runs `test` as if on a fresh host.
pub(crate) fn on_a_fresh_host(test: impl AsyncFnOnce(Host) + Send + 'static) {
    let run = move || {
        enter_new_namespace();
        ip("link set lo up");
        let directory = tempfile::tempdir().expect("directory");
        block_on(test(Host { directory }));
    };
    std::thread::spawn(run).join().expect("the test passes");
}

/// The host that the calling thread is on.
pub(crate) struct Host {
    pub(crate) directory: TempDir,
}

impl Host {
    pub(crate) fn config(&self) -> Config {
        config("test", &self.directory)
    }

    pub(crate) async fn network(&self) -> Network {
        Network::open(self.config()).await.expect("opens")
    }
}

/// A neighbour of the host that the calling thread is on: on a wire, with the address 192.0.2.2; the host has 192.0.2.1.
pub(crate) struct Neighbour {
    pub(crate) netns: PathBuf,
    _directory: TempDir,
}

impl Neighbour {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let netns = directory.path().join("neighbour");
        File::create(&netns).expect("creates");
        let target = netns.clone();
        let made = std::thread::spawn(move || {
            enter_new_namespace();
            mount_bind("/proc/thread-self/ns/net", &target).expect("mounts");
        });
        made.join().expect("made");
        ip("link add wire type veth peer name far");
        let file = File::open(&netns).expect("there");
        ip(&format!("link set far netns /proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        ip("addr add 192.0.2.1/24 dev wire");
        ip("link set wire up");
        inside(&netns, || {
            ip("link set lo up");
            ip("addr add 192.0.2.2/24 dev far");
            ip("link set far up");
        });
        Self { netns, _directory: directory }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        unmount(&self.netns, UnmountFlags::DETACH).expect("unmounts");
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// One of several hosts: a network namespace of its own, and the thread that works in it.
pub(crate) struct Machine {
    pub(crate) thread: i32,
    jobs: mpsc::SyncSender<Job>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(1);
        let (ready, is_ready) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            enter_new_namespace();
            ip("link set lo up");
            ready.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("awaited");
            for job in inbox {
                job();
            }
        });
        Self { thread: is_ready.recv().expect("it is up"), jobs }
    }

    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::sync_channel(1);
        let job = move || drop(done.send(job()));
        self.jobs.send(Box::new(job)).expect("it is up");
        result.recv().expect("the job is done")
    }
}

/// A machine with our networks on it.
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) machine: Machine,
    network: Option<Network>,
    config: Config,
    _directory: TempDir,
}

impl Node {
    pub(crate) fn new(number: u8, machine: Machine) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let config = config(&format!("in{number}"), &directory);
        let mut node = Self { number, machine, network: None, config, _directory: directory };
        node.restart();
        node
    }

    /// Begins as a new daemon does.
    pub(crate) fn restart(&mut self) {
        let config = self.config.clone();
        let opened = self.machine.run(move || block_on(Network::open(config)));
        self.network = Some(opened.expect("opens"));
    }

    /// Ends as a daemon that is killed does.
    pub(crate) fn stop(&mut self) {
        self.network = None;
    }

    pub(crate) fn network(&self) -> Network {
        self.network.clone().expect("opened")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(network) = self.network.take() else { return };
        // A test that fails has its own words for it.
        let _ = self.machine.run(move || block_on(network.close()));
    }
}

fn enter_new_namespace() {
    // SAFETY: The calling thread is our own; its namespace ends with it or with what holds it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
}

/// The network 10.8.NUMBER.0/24.
pub(crate) fn local(number: u8) -> LocalNetwork {
    LocalNetwork {
        id: format!("net{number}"),
        name: format!("name{number}"),
        link: format!("br-{number}"),
        subnet: format!("10.8.{number}.0/24").parse().expect("a subnet"),
        range: None,
        gateway: Ipv4Addr::new(10, 8, number, 1),
        ipv6: None,
        reserved: BTreeSet::new(),
        mtu: None,
        is_internal: false,
        is_masqueraded: true,
        is_shared: true,
    }
}

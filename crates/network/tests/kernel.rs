//! Sentences about what the kernel does for us, each in a network namespace of its own. Needs root and iproute2.
#![allow(unsafe_code, reason = "each test moves a thread of its own into a new network namespace")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use network::{Config, Endpoint, Network, Protocol, PublishedPort};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Runs `test` as if on a fresh host.
fn on_a_fresh_host(test: impl AsyncFnOnce(Host) + Send + 'static) {
    let run = move || {
        // SAFETY: the thread is our own; its namespace ends with it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
        ip("link set lo up");
        let directory = tempfile::tempdir().expect("directory");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(test(Host { directory }));
    };
    std::thread::spawn(run).join().expect("the test passes");
}

struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn config(&self) -> Config {
        Config {
            instance: "test".into(),
            bridge: "skep0".into(),
            subnet: None,
            run_dir: self.directory.path().join("run"),
            state_dir: self.directory.path().join("state"),
        }
    }

    async fn network(&self) -> Network {
        Network::open(self.config()).await.expect("opens")
    }
}

fn ip(arguments: &str) -> String {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs `work` in a container's namespace.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).expect("the namespace is there");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enters");
            work()
        });
        thread.join().expect("works")
    })
}

/// A server that tells each client its own name and the client's address.
fn serve(endpoint: &Endpoint, name: &'static str) {
    let listener = inside(&endpoint.netns, || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("nobody has the port")
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{name} {}", peer.ip());
        }
    });
}

fn ask(address: impl Into<IpAddr>, port: u16) -> Result<String, std::io::Error> {
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn tcp(published: u16, backends: &[&Endpoint]) -> PublishedPort {
    PublishedPort {
        protocol: Protocol::Tcp,
        host_ip: None,
        published,
        target: 80,
        backends: backends.iter().map(|endpoint| endpoint.address.into()).collect(),
    }
}

/// Links another namespace to this host, as a client with the address 192.0.2.2 would be.
fn client() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("client");
    File::create(&path).expect("creates");
    let (target, ready) = (path.clone(), std::sync::mpsc::sync_channel(0));
    std::thread::spawn(move || {
        // SAFETY: the thread is our own and ends here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &target).expect("mounts");
        ready.0.send(()).expect("awaited");
    });
    ready.1.recv().expect("made");
    let netns = path.to_str().expect("text");
    ip("link add wire type veth peer name far");
    let file = File::open(netns).expect("there");
    let fd = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    ip(&format!("link set far netns {fd}"));
    ip("addr add 192.0.2.1/24 dev wire");
    ip("link set wire up");
    inside(&path, || {
        ip("link set lo up");
        ip("addr add 192.0.2.2/24 dev far");
        ip("link set far up");
    });
    (directory, path)
}

fn unmount(path: &Path) {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).expect("unmounts");
}

#[test]
fn containers_reach_each_other_and_their_gateway() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let (one, two) =
            (network.connect("aaaa1").await.unwrap(), network.connect("aaaa2").await.unwrap());
        assert_eq!(
            network.connect("aaaa1").await.unwrap(),
            one,
            "connecting again changes nothing"
        );
        serve(&two, "two");
        let (address, from) = (two.address, one.address);
        assert_eq!(inside(&one.netns, || ask(address, 80)).unwrap(), format!("two {from}"));
        let gateway = one.gateway;
        let host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap();
        inside(&one.netns, || TcpStream::connect((gateway, 9000))).expect("the host answers");
        drop(host);
        network.close().await.unwrap();
    });
}

#[test]
fn a_published_port_is_balanced_and_the_container_sees_the_client() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let (one, two) =
            (network.connect("aaaa1").await.unwrap(), network.connect("aaaa2").await.unwrap());
        serve(&one, "one");
        serve(&two, "two");
        network.publish("web", vec![tcp(8080, &[&one, &two])]).await.unwrap();
        let (_directory, client) = client();
        let answers: BTreeSet<_> = (0..60)
            .map(|_| inside(&client, || ask(Ipv4Addr::new(192, 0, 2, 1), 8080)).unwrap())
            .collect();
        let expected = ["one 192.0.2.2", "two 192.0.2.2"].map(String::from);
        assert_eq!(answers, BTreeSet::from(expected));
        network.publish("web", vec![tcp(8080, &[&two])]).await.unwrap();
        for _ in 0..20 {
            let answer = inside(&client, || ask(Ipv4Addr::new(192, 0, 2, 1), 8080)).unwrap();
            assert_eq!(answer, "two 192.0.2.2", "what left the map gets nothing new");
        }
        unmount(&client);
        network.close().await.unwrap();
    });
}

#[test]
fn a_published_port_answers_on_loopback_and_to_containers_themselves() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one, "one");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).unwrap().starts_with("one "));
        assert!(ask(one.gateway, 8080).unwrap().starts_with("one "));
        let gateway = one.gateway;
        let own = inside(&one.netns, || ask(gateway, 8080)).unwrap();
        assert!(own.starts_with("one "), "a container reaches itself by its published port");
        network.publish("web", vec![]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_err(), "withdrawn");
        network.close().await.unwrap();
    });
}

#[test]
fn a_port_on_one_address_answers_on_that_one_only() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one, "one");
        let host_ip = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = PublishedPort { host_ip, ..tcp(8080, &[&one]) };
        network.publish("web", vec![port]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        assert!(ask(one.gateway, 8080).is_err());
        network.close().await.unwrap();
    });
}

#[test]
fn udp_is_published_too() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        let server = inside(&one.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        let port = PublishedPort { protocol: Protocol::Udp, target: 53, ..tcp(5353, &[&one]) };
        network.publish("dns", vec![port]).await.unwrap();
        let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        asker.send_to(b"who?", (Ipv4Addr::LOCALHOST, 5353)).unwrap();
        let mut buffer = [0; 16];
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (length, _) = server.recv_from(&mut buffer).expect("arrives");
        assert_eq!(&buffer[..length], b"who?");
        network.close().await.unwrap();
    });
}

#[test]
fn a_taken_port_is_refused_and_nothing_changes() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one, "one");
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        let process = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).unwrap();
        for (port, text) in [
            (8080, "Bind for 0.0.0.0:8080 failed: port is already allocated"),
            (9090, "listen tcp4 0.0.0.0:9090: bind: address already in use"),
        ] {
            let error =
                network.publish("other", vec![tcp(7070, &[&one]), tcp(port, &[&one])]).await;
            assert_eq!(error.expect_err("taken").to_string(), text);
            let error = network.check_free("other", tcp(port, &[])).await;
            assert_eq!(error.expect_err("taken").to_string(), text);
            assert!(ask(Ipv4Addr::LOCALHOST, 7070).is_err(), "nothing of the refused set is there");
        }
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.check_free("web", tcp(8080, &[])).await.expect("it is its own");
        drop(process);
        // A process that another test is about to start has a copy of the socket until it runs its own program.
        let free = async {
            while network.check_free("other", tcp(9090, &[])).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), free).await.expect("free");
        network.close().await.unwrap();
    });
}

#[test]
fn a_new_daemon_takes_over_containers_and_ports() {
    on_a_fresh_host(async |host| {
        let first = host.network().await;
        let one = first.connect("aaaa1").await.unwrap();
        first.isolate("bbbb1").await.unwrap();
        serve(&one, "one");
        first.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        first.publish("gone", vec![tcp(8081, &[&one])]).await.unwrap();
        drop(first);
        let second = host.network().await;
        assert_eq!(second.endpoint("aaaa1"), Some(one.clone()));
        assert_eq!(second.containers(), ["aaaa1", "bbbb1"]);
        assert!(
            ask(Ipv4Addr::LOCALHOST, 8080).is_ok(),
            "ports answer before anybody published again"
        );
        second.publish("gone", Vec::new()).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8081).is_err());
        let two = second.connect("aaaa2").await.unwrap();
        assert_ne!(two.address, one.address);
        second.close().await.unwrap();
    });
}

#[test]
fn ports_are_kept_as_far_as_they_are_free_and_lead_nowhere() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let any = Ipv4Addr::UNSPECIFIED;
        let process = TcpListener::bind((any, 9090)).unwrap();
        let wanted = || vec![tcp(8080, &[]), tcp(9090, &[])];
        let refused = network.keep_ports("ingress", wanted()).await.unwrap();
        let refused: Vec<_> = refused.iter().map(|(port, _)| port.published).collect();
        assert_eq!(refused, [9090]);
        assert!(TcpListener::bind((any, 8080)).is_err(), "a process cannot have it");
        let asked = ask(Ipv4Addr::LOCALHOST, 8080).expect_err("nobody serves");
        assert_eq!(asked.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(process);
        assert_eq!(network.keep_ports("ingress", wanted()).await.unwrap().len(), 0);
        drop(network);
        let next = host.network().await;
        assert!(TcpListener::bind((any, 9090)).is_err(), "nor from the next daemon");
        next.keep_ports("ingress", vec![]).await.unwrap();
        TcpListener::bind((any, 9090)).expect("it is free");
        next.close().await.unwrap();
    });
}

#[test]
fn hundreds_of_backends_are_one_port() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        serve(&one, "one");
        let many: Vec<_> = std::iter::repeat_n(&one, 700).collect();
        network.publish("web", vec![tcp(8080, &many)]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.publish("web", vec![tcp(8080, &many[..650])]).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok());
        network.close().await.unwrap();
    });
}

#[test]
fn taken_down_nothing_is_left() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        network.isolate("bbbb1").await.unwrap();
        network.publish("web", vec![tcp(8080, &[&one])]).await.unwrap();
        network.close().await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let directory = host.directory.path().to_str().unwrap();
        assert!(!mounts.contains(directory), "no mount is left");
        assert!(!ip("link show").contains("skep0"), "no bridge is left");
        let tables =
            Command::new("nft").args(["list", "tables"]).output().expect("nft is installed");
        assert_eq!(String::from_utf8_lossy(&tables.stdout), "", "no table is left");
    });
}

#[test]
fn operators_can_read_the_table() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        let one = network.connect("aaaa1").await.unwrap();
        network.publish("web", vec![tcp(8080, &[&one, &one])]).await.unwrap();
        let list =
            Command::new("nft").args(["list", "table", "ip", "skep-test"]).output().expect("nft");
        let text = String::from_utf8_lossy(&list.stdout);
        assert!(list.status.success() && text.contains("tcp . 8080 : goto b2"), "{text}");
        network.close().await.unwrap();
    });
}

#[test]
fn a_container_that_starts_again_at_once_takes_the_place_of_its_old_link() {
    on_a_fresh_host(async |host| {
        let network = host.network().await;
        // As if the kernel had not yet taken down what belonged to the namespace of before.
        ip("link add vecccccccccccc type veth peer name other");
        let endpoint = network.connect("cccccccccccccccccccc").await.expect("connects");
        inside(&endpoint.netns, || assert!(ip("addr show dev eth0").contains("172.17.")));
        network.close().await.expect("closes");
    });
}

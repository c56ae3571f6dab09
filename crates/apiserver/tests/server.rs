//! The server's edge: what every answer carries, whatever the route. Needs root: an engine makes a bridge.
#![allow(unsafe_code, reason = "each test moves its own thread into a new network namespace")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::{Answer, ApiError, ApiState, Config, Listen, Server, Swarm};
use docker_types::swarm::{InitRequest, JoinRequest, SwarmInfo};
use engine::Engine;
use manager::Manager;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// A node that is in no swarm.
#[derive(Debug)]
struct Alone;

fn refused() -> ApiError {
    ApiError::conflict("this node stays alone")
}

impl Swarm for Alone {
    fn networks(&self) -> Vec<Arc<types::Network>> {
        Vec::new()
    }

    fn network_members(&self, _: types::NetworkId) -> Option<apiserver::NetworkMembers> {
        None
    }

    fn manager(&self) -> Result<Arc<Manager>, ApiError> {
        Err(refused())
    }

    fn node_id(&self) -> Option<types::NodeId> {
        None
    }

    fn status(&self) -> &'static str {
        "inactive"
    }

    fn info(&self) -> SwarmInfo {
        SwarmInfo::default()
    }

    fn init(self: Arc<Self>, _: InitRequest) -> Answer<'static, types::NodeId> {
        Box::pin(async { Err(refused()) })
    }

    fn join(self: Arc<Self>, _: JoinRequest) -> Answer<'static, ()> {
        Box::pin(async { Err(refused()) })
    }

    fn unlock(self: Arc<Self>, _: String) -> Answer<'static, ()> {
        Box::pin(async { Err(refused()) })
    }

    fn restore(
        self: Arc<Self>,
        _: InitRequest,
        _: [u8; 32],
        _: Box<dyn std::io::Read + Send>,
    ) -> Answer<'static, types::NodeId> {
        Box::pin(async { Err(refused()) })
    }

    fn leave(self: Arc<Self>, _: bool) -> Answer<'static, ()> {
        Box::pin(async { Err(refused()) })
    }
}

/// An empty engine on a host of its own.
async fn state(directory: &Path) -> ApiState {
    // SAFETY: the test's thread is its own; its namespace ends with it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    let path = |name: &str| directory.join(name);
    let config = engine::Config {
        data_root: path("data"),
        exec_root: path("exec"),
        program: path("skep"),
        cgroup_parent: "/skep-edge-test".into(),
        default_runtime: "native".into(),
        default_ulimits: vec![],
        runtimes: std::collections::BTreeMap::new(),
        log: docker_types::container::LogConfig { r#type: "json-file".into(), config: None },
        labels: Vec::new(),
        version: "1.2.3".into(),
        debug: false,
        network: network::Config {
            instance: "edge".into(),
            bridge: "edge0".into(),
            subnet: None,
            run_dir: path("exec/network"),
            state_dir: path("data/network"),
        },
        images: engine::images::Config {
            data_root: path("data"),
            registry: engine::registry::Config::default(),
        },
    };
    for directory in ["data", "exec"] {
        std::fs::create_dir_all(path(directory)).unwrap();
    }
    ApiState { engine: Engine::open(config).await.unwrap(), swarm: Arc::new(Alone) }
}

struct Daemon {
    socket: PathBuf,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listen = vec![Listen::Unix { path: socket.clone(), group: "no-such-group".into() }];
        let state = state(dir.path()).await;
        let config = Config { listen, version: "1.2.3".into() };
        let server = Server::bind(config, state).await.unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { socket, shutdown, serving, _dir: dir }
    }

    /// Sends bytes as they are and returns all that comes back until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn request(&self, line: &str) -> String {
        self.raw(&format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn every_answer_names_the_server_and_its_api() {
    let daemon = Daemon::start().await;
    for (line, status) in [
        ("GET /_ping", "200 OK"),
        ("GET /v1.41/_ping", "200 OK"),
        ("HEAD /_ping", "200 OK"),
        ("OPTIONS /anything", "200 OK"),
        ("GET /nowhere", "404 Not Found"),
        ("DELETE /_ping", "404 Not Found"),
        ("GET /v1.18/_ping", "400 Bad Request"),
    ] {
        let answer = daemon.request(line).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line}: {answer}");
        for header in [
            "server: Docker/1.2.3 (linux)",
            "api-version: 1.51",
            "ostype: linux",
            "docker-experimental: false",
        ] {
            assert!(
                answer.to_ascii_lowercase().contains(&header.to_ascii_lowercase()),
                "{line}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn ping_says_ok_and_head_says_it_without_a_body() {
    let daemon = Daemon::start().await;
    let get = daemon.request("GET /_ping").await;
    assert!(get.ends_with("\r\n\r\nOK"), "{get}");
    assert!(get.contains("swarm: inactive") && get.contains("builder-version: 1"), "{get}");
    let head = daemon.request("HEAD /_ping").await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn unknown_routes_and_old_clients_get_dockers_texts() {
    let daemon = Daemon::start().await;
    let unknown = daemon.request("POST /v1.41/nowhere").await;
    assert!(unknown.ends_with("{\"message\":\"page not found\"}"), "{unknown}");
    let old = daemon.request("GET /v1.12/info").await;
    assert!(
        old.contains("client version 1.12 is too old. Minimum supported API version is 1.24"),
        "{old}"
    );
}

#[tokio::test]
async fn oversized_and_broken_heads_are_refused() {
    let daemon = Daemon::start().await;
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let answer = daemon.raw(&format!("GET /_ping HTTP/1.1\r\nHost: x\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = daemon.raw("\u{1}\u{2}nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(daemon.request("GET /_ping").await.ends_with("OK"));
}

#[tokio::test]
async fn the_socket_is_for_its_group_only_and_replaces_a_stale_one() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start().await;
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    let other = tempfile::tempdir().unwrap();
    let state = state(other.path()).await;
    let bind = async |path: PathBuf| {
        let listen = vec![Listen::Unix { path, group: String::new() }];
        let state = state.clone();
        Server::bind(Config { listen, version: String::new() }, state).await
    };
    let taken = bind(daemon.socket.clone()).await.unwrap_err();
    assert!(taken.to_string().ends_with("is in use by another daemon"));

    daemon.shutdown.cancel();
    daemon.serving.await.unwrap();
    assert!(daemon.socket.exists());
    bind(daemon.socket).await.unwrap();
}

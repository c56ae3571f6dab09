//! The routes of images under the real docker command line, with a `docker-registry` beside.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use engine::db::Db;
use engine::images::Config;
use testbed::DockerRegistry;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::listen::Listen;
use crate::routes::distribution;
use crate::server::{self, Server};

/// `user` with the password `secret`, hashed by bcrypt.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A daemon that knows images only.
struct Daemon {
    images: Images,
    socket: PathBuf,
    shutdown: CancellationToken,
    dir: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let db = Arc::new(Db::open(&dir.path().join("engine.redb")).unwrap());
        let registry = engine::registry::Config::default();
        let config = Config { data_root: dir.path().to_owned(), registry };
        let images = Images::open(&config, db).unwrap();
        let is_running = Arc::new(|id: &str| id.starts_with('r'));
        let state = ImageState { images: images.clone(), is_running };
        let router = Router::new()
            .route("/_ping", get(|| async { "OK" }))
            .merge(routes::<ImageState>())
            .merge(distribution::routes::<ImageState>())
            .fallback(|| async { ApiError::page_not_found() })
            .with_state(state);
        let listen = vec![Listen::Unix { path: socket.clone(), group: "no-such-group".into() }];
        let config = server::Config { listen, version: "1.2.3".into() };
        let server = Server::bind_router(config, router).await.unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(server.serve(shutdown.clone()));
        Self { images, socket, shutdown, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `docker` prints, errors included; blanks at line ends are left out.
    fn docker(&self, arguments: &str) -> String {
        let output = self.run(arguments.split_whitespace());
        let text = [output.stdout, output.stderr].concat();
        // Docker 20.10 words some errors of the daemon in its own way.
        let text =
            String::from_utf8(text).unwrap().replace("Error: No", "Error response from daemon: No");
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n")
    }

    fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        Command::new("docker")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("HOME", self.dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the docker command line is installed")
    }

    /// An archive of a file system with one file of this name.
    fn archive(&self, file: &str) -> PathBuf {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1000);
        header.set_mode(0o644);
        tar.append_data(&mut header, file, [7; 1000].as_slice()).unwrap();
        let path = self.path(&format!("{file}.tar"));
        std::fs::write(&path, tar.into_inner().unwrap()).unwrap();
        path
    }

    fn import(&self, name: &str) -> String {
        let archive = self.archive(&name.replace([':', '/'], "-"));
        let id = self.docker(&format!("import {} {name}", archive.display()));
        assert!(id.starts_with("sha256:"), "{id}");
        id
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_named_shown_and_removed() {
    let daemon = Daemon::start().await;
    let archive = daemon.archive("bin");
    let archive = archive.to_str().unwrap();
    let id = daemon.run([
        "import",
        "-c",
        "CMD [\"/bin/x\"]",
        "-c",
        "LABEL a=b",
        "-m",
        "why",
        archive,
        "app:1",
    ]);
    let id = String::from_utf8(id.stdout).unwrap().trim().to_owned();
    let short = id.strip_prefix("sha256:").unwrap()[..12].to_owned();
    assert_eq!(daemon.docker("tag app:1 localhost:5000/team/app:2"), "");
    let shown = daemon.docker("images --format {{.Repository}}:{{.Tag}}|{{.ID}}|{{.Size}}");
    let mut shown: Vec<&str> = shown.lines().collect();
    shown.sort_unstable();
    let expected = [format!("app:1|{short}|1kB"), format!("localhost:5000/team/app:2|{short}|1kB")];
    assert_eq!(shown, expected);
    assert_eq!(daemon.docker("images -q --filter label=a=c"), "");
    assert_eq!(daemon.docker("images -q app"), short);
    assert_eq!(
        daemon.docker("image inspect -f {{.Config.Cmd}}{{.Config.Labels.a}}{{.RepoTags}} app:1"),
        "[/bin/x]b[app:1 localhost:5000/team/app:2]"
    );
    assert_eq!(daemon.docker("inspect --type image -f {{.Id}} localhost:5000/team/app:2"), id);
    assert_eq!(
        daemon.docker("history --format {{.ID}}|{{.Size}}|{{.Comment}} app:1"),
        format!("{short}|1kB|why")
    );
    assert_eq!(
        daemon.docker(&format!("rmi {short}")),
        format!(
            "Error response from daemon: conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    assert_eq!(daemon.docker("rmi app:1"), "Untagged: app:1");
    let gone = daemon.docker("rmi localhost:5000/team/app:2");
    assert!(
        gone.starts_with(&format!(
            "Untagged: localhost:5000/team/app:2\nDeleted: {id}\nDeleted: sha256:"
        )),
        "{gone}"
    );
    assert_eq!(daemon.docker("images -q"), "");
    assert_eq!(daemon.docker("rmi app:1"), "Error response from daemon: No such image: app:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_stays() {
    let daemon = Daemon::start().await;
    let id = daemon.import("app:1");
    let short = &id["sha256:".len()..][..12];
    let image = daemon.images.find("app:1").unwrap();
    daemon.images.prepare_rootfs("running0123456789", &image).unwrap();
    assert_eq!(
        daemon.docker("rmi app:1"),
        format!(
            "Error response from daemon: conflict: unable to remove repository reference \"app:1\" (must force) - container running01234 is using its referenced image {short}"
        )
    );
    assert_eq!(
        daemon.docker(&format!("rmi -f {short}")),
        format!(
            "Error response from daemon: conflict: unable to delete {short} (cannot be forced) - image is being used by running container running01234"
        )
    );
    assert_eq!(daemon.docker("image prune -af"), "Total reclaimed space: 0B");
    daemon.images.remove_rootfs("running0123456789").unwrap();
    let pruned = daemon.docker("image prune -af");
    assert!(pruned.starts_with("Deleted Images:\nuntagged: app:1\ndeleted: sha256:"), "{pruned}");
    assert!(pruned.ends_with("\nTotal reclaimed space: 1kB"), "{pruned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_archive_loads_elsewhere() {
    let (one, two) = (Daemon::start().await, Daemon::start().await);
    let id = one.import("app:1");
    one.import("other:2");
    let file = one.path("saved.tar").display().to_string();
    assert_eq!(one.docker(&format!("save -o {file} app:1 other:2")), "");
    let loaded = two.docker(&format!("load -i {file}"));
    let mut loaded: Vec<&str> = loaded.lines().collect();
    loaded.sort_unstable();
    assert_eq!(loaded, ["Loaded image: app:1", "Loaded image: other:2"]);
    assert_eq!(two.docker("inspect --type image -f {{.Id}} app:1"), id);
    assert_eq!(
        one.docker(&format!("save -o {file} nothing")),
        "Error response from daemon: reference does not exist"
    );
    std::fs::write(&file, "no archive").unwrap();
    let refused = two.docker(&format!("load -i {file}"));
    assert!(refused.ends_with("archive/tar: invalid tar header"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_through_a_registry() {
    let registry = DockerRegistry::start();
    let (one, two) = (Daemon::start().await, Daemon::start().await);
    let name = format!("{}/team/app", registry.address);
    let id = one.import(&format!("{name}:latest"));
    let pushed = one.docker(&format!("push {name}"));
    let lines: Vec<&str> = pushed.lines().collect();
    assert_eq!(
        lines[..2],
        ["Using default tag: latest", &format!("The push refers to repository [{name}]")]
    );
    assert!(lines.iter().any(|l| l.ends_with(": Pushed")), "{pushed}");
    let digest = lines.last().unwrap().strip_prefix("latest: digest: ").unwrap();
    let (digest, size) = digest.split_once(" size: ").unwrap();
    assert!(size.parse::<u64>().unwrap() > 100);

    let pulled = two.docker(&format!("pull {name}"));
    let lines: Vec<&str> = pulled.lines().collect();
    assert_eq!(lines[..2], ["Using default tag: latest", "latest: Pulling from team/app"]);
    assert_eq!(
        lines[lines.len() - 3..],
        [
            &format!("Digest: {digest}"),
            &format!("Status: Downloaded newer image for {name}:latest"),
            &format!("{name}:latest"),
        ]
    );
    for step in ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"] {
        assert!(lines.iter().any(|l| l.ends_with(step)), "{step}: {pulled}");
    }
    assert_eq!(two.docker("images --digests --format {{.Digest}}"), digest);
    assert_eq!(two.docker(&format!("inspect --type image -f {{{{.Id}}}} {name}@{digest}")), id);
    assert_eq!(two.docker(&format!("pull -q {name}@{digest}")), format!("{name}@{digest}"));
    let again = two.docker(&format!("pull {name}"));
    assert!(again.contains(&format!("Status: Image is up to date for {name}:latest")), "{again}");
    assert_eq!(
        two.docker(&format!("pull {name}:none")),
        format!(
            "Error response from daemon: manifest for {name}:none not found: manifest unknown: manifest unknown"
        )
    );
    assert_eq!(
        two.docker("pull 127.0.0.1:1/x"),
        "Using default tag: latest\nError response from daemon: Get \"http://127.0.0.1:1/v2/x/manifests/latest\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
    assert_eq!(
        two.docker(&format!("push {name}:none")),
        format!("The push refers to repository [{name}]\ntag does not exist: {name}:none")
    );
    let manifest = two.docker(&format!("manifest inspect --insecure {name}"));
    assert!(manifest.contains("schemaVersion"), "{manifest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_opens_a_registry() {
    let registry = DockerRegistry::with_auth(|dir| {
        let file = dir.join("htpasswd");
        std::fs::write(&file, HTPASSWD).unwrap();
        format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display())
    });
    let daemon = Daemon::start().await;
    let address = &registry.address;
    daemon.import(&format!("{address}/app:1"));
    let refused = daemon.docker(&format!("push {address}/app:1"));
    assert!(refused.ends_with("no basic auth credentials"), "{refused}");
    let wrong = daemon.docker(&format!("login -u user -p wrong {address}"));
    assert!(wrong.ends_with(&format!("Error response from daemon: login attempt to http://{address}/v2/ failed with status: 401 Unauthorized")), "{wrong}");
    let right = daemon.docker(&format!("login -u user -p secret {address}"));
    assert!(right.contains("Login Succeeded"), "{right}");
    let pushed = daemon.docker(&format!("push {address}/app:1"));
    assert!(pushed.contains("1: digest: sha256:"), "{pushed}");
    daemon.docker(&format!("rmi {address}/app:1"));
    let pulled = daemon.docker(&format!("pull {address}/app:1"));
    assert!(pulled.contains("Status: Downloaded newer image"), "{pulled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_dockers_words() {
    let daemon = Daemon::start().await;
    daemon.import("app:1");
    for (arguments, message) in [
        ("tag none new", "Error response from daemon: No such image: none:latest"),
        (
            "tag app:1 sha256:x",
            "Error response from daemon: refusing to create an ambiguous tag using digest algorithm as name",
        ),
        ("history none", "Error response from daemon: No such image: none:latest"),
        ("images --filter colour=red", "Error response from daemon: invalid filter 'colour'"),
        (
            "images --filter dangling=maybe",
            "Error response from daemon: invalid filter 'dangling=[maybe]'",
        ),
        (
            "image prune -f --filter until=never",
            "Error response from daemon: invalid filter 'until=[never]'",
        ),
        (
            "import -c RUN -m x /dev/null y",
            "Error response from daemon: RUN is not a valid change command",
        ),
        ("search x", "Error response from daemon: searching Docker Hub is not supported"),
    ] {
        assert_eq!(daemon.docker(arguments), message, "{arguments}");
    }
    let missing = daemon.docker("image inspect none");
    assert!(
        missing.starts_with("[]\nError response from daemon: No such image: none"),
        "{missing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_reaches_a_client_that_is_still_sending() {
    let daemon = Daemon::start().await;
    let file = daemon.path("noise");
    std::fs::write(&file, vec![7u8; 64 << 20]).unwrap();
    let refused = daemon.docker(&format!("load -i {}", file.display()));
    assert!(refused.ends_with("archive/tar: invalid tar header"), "{refused}");
    let refused = daemon.docker(&format!("import {} x:1", file.display()));
    assert!(refused.ends_with("archive/tar: invalid tar header"), "{refused}");
}

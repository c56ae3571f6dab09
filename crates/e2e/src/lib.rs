//! Hosts for end-to-end tests: network namespaces, each with a daemon of its own, driven by the real docker command.
//!
//! The same tests run against stock Docker: `cargo xtask e2e --against docker`. What only we have is asked for with
//! [`Host::is_skep`].
#![expect(
    clippy::disallowed_methods,
    reason = "the suite is told by its environment which daemon to test"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up. Generous: machines under load are no failure.
const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at a state that is waited for.
const POLL: Duration = Duration::from_millis(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One host with its daemon. Dropping it ends both and removes what they made.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    directory: tempfile::TempDir,
    daemon: Option<Child>,
    program: PathBuf,
    docker: String,
}

/// What a command printed.
#[derive(Clone, Debug)]
pub struct Printed {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

fn environment(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value
        .unwrap_or_else(|| panic!("{name} is not set: run the suite with `cargo xtask e2e`"))
        .into()
}

impl Host {
    /// A host with a running daemon, not in a swarm.
    pub fn new() -> Self {
        Self::with_docker("docker")
    }

    /// As [`Host::new`], driven by another docker command.
    pub fn with_docker(docker: &str) -> Self {
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("skep-e2e-").tempdir().expect("directory");
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", "wire"]);
        ip(&["-n", &name, "addr", "add", "10.99.0.1/24", "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "link", "set", "wire", "up"]);
        let program = environment("SKEP_E2E_DAEMON");
        let mut host = Self { name, directory, daemon: None, program, docker: docker.to_owned() };
        host.start();
        host
    }

    /// A host that is the manager of a swarm of its own and has the images `busybox` and `whoami`.
    pub fn in_swarm() -> Self {
        let host = Self::new();
        host.load_images();
        host.ok(&["swarm", "init", "--advertise-addr", "10.99.0.1"]);
        host
    }

    /// Whether this is our daemon, and not stock Docker.
    pub fn is_skep(&self) -> bool {
        self.program.file_name().is_some_and(|name| name == "skep")
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with more flags.
    pub fn start_with(&mut self, flags: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log"));
        let log = log.expect("the log opens");
        let mut command = self.in_namespace();
        command.arg(&self.program);
        if self.is_skep() {
            command.arg("daemon");
        }
        command.args(["-H", &self.address(), "--pidfile"]).arg(self.path("pid"));
        command.arg("--data-root").arg(self.path("data")).arg("--exec-root").arg(self.path("exec"));
        command.args(["--cgroup-parent", &format!("/{}", self.name)]).args(flags);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("clones")).stderr(log);
        self.daemon = Some(command.spawn().expect("the daemon starts"));
        self.until("the daemon answers", || self.docker(&["version"]).code == 0);
    }

    /// A command in the host's network namespace. `ip netns exec` would hide the control groups behind a new `/sys`.
    fn in_namespace(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--");
        command
    }

    /// Ends the daemon as an operator does.
    pub fn stop(&mut self) {
        self.signal("-TERM");
    }

    /// Ends the daemon as a crash does.
    pub fn kill(&mut self) {
        self.signal("-KILL");
    }

    fn signal(&mut self, signal: &str) {
        let Some(mut daemon) = self.daemon.take() else { return };
        // `nsenter` becomes the daemon, so the child's number is the daemon's.
        let sent = Command::new("kill").args([signal, &daemon.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "the daemon was there to be signalled");
        daemon.wait().expect("the daemon ends");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The daemon's process number.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// What `DOCKER_HOST` would be.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command.env("DOCKER_CONFIG", self.path("config")).env_remove("DOCKER_CONTEXT");
        command.args(["-H", &self.address()]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs docker and answers with whatever comes.
    pub fn docker(&self, arguments: &[&str]) -> Printed {
        printed(self.command(arguments).output().expect("docker runs"))
    }

    /// Runs docker, which must succeed; answers with its output without the last line feed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let printed = self.docker(arguments);
        let log = || std::fs::read_to_string(self.path("log")).unwrap_or_default();
        assert_eq!(printed.code, 0, "docker {arguments:?}: {printed:?}\n--- log\n{}", tail(&log()));
        printed.stdout.trim_end().to_owned()
    }

    /// Runs docker, which must fail; answers with what it complained of.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let printed = self.docker(arguments);
        assert_ne!(printed.code, 0, "docker {arguments:?} should have failed: {printed:?}");
        printed.stderr.trim_end().to_owned()
    }

    /// Runs a command on the host.
    pub fn exec(&self, arguments: &[&str]) -> Printed {
        let mut command = Command::new("ip");
        printed(
            command.args(["netns", "exec", &self.name]).args(arguments).output().expect("ip runs"),
        )
    }

    /// One API request as `curl` sends it; answers with status and body.
    pub fn curl(&self, arguments: &[&str], path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "60", "-w", "\n%{http_code}", "--unix-socket"]);
        command.arg(self.path("docker.sock")).args(arguments).arg(format!("http://docker{path}"));
        let printed = printed(command.output().expect("curl runs"));
        let (body, status) = printed.stdout.rsplit_once('\n').unwrap_or(("", &printed.stdout));
        (status.trim().parse().unwrap_or(0), body.to_owned())
    }

    /// A GET whose answer is JSON.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.curl(&[], path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("the answer is JSON")
    }

    /// What a published port answers on one of the host's addresses.
    pub fn ask(&self, address: &str, port: u16) -> Option<String> {
        let url = format!("http://{address}:{port}/");
        let answer = self.exec(&["curl", "-sS", "-m", "10", &url]);
        (answer.code == 0).then_some(answer.stdout)
    }

    /// Waits until `test` holds.
    pub fn until(&self, what: &str, test: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !test() {
            if Instant::now() > end {
                let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
                panic!("{what}: not within {PATIENCE:?}\n--- log\n{}", tail(&log));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until this many tasks of a service run.
    pub fn until_running(&self, service: &str, count: usize) {
        self.until(&format!("{count} tasks of {service} run"), || {
            self.running(service).len() == count
        });
    }

    /// Container identifiers of the running tasks of a service.
    pub fn running(&self, service: &str) -> Vec<String> {
        let filters = format!(r#"{{"service":["{service}"],"desired-state":["running"]}}"#);
        let tasks = self.get(&format!("/v1.41/tasks?filters={}", encoded(&filters)));
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let running = tasks.iter().filter(|task| task["Status"]["State"] == "running");
        running
            .filter_map(|task| task["Status"]["ContainerStatus"]["ContainerID"].as_str())
            .map(str::to_owned)
            .collect()
    }

    /// Imports the images `busybox:latest` and `whoami:latest`.
    pub fn load_images(&self) {
        let busybox = busybox_archive(&self.path("busybox.tar"));
        self.ok(&["import", "--change", "CMD [\"sh\"]", &busybox, "busybox:latest"]);
        let whoami = environment("SKEP_E2E_WHOAMI");
        let archive = self.path("whoami.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(whoami.parent().expect("in a folder"))
            .arg("-cf")
            .arg(&archive)
            .arg("whoami"));
        self.ok(&[
            "import",
            "--change",
            "CMD [\"/whoami\"]",
            archive.to_str().expect("text"),
            "whoami:latest",
        ]);
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            if self.is_skep() {
                let _ = Command::new("kill").args(["-KILL", &daemon.id().to_string()]).status();
            } else {
                for container in self.docker(&["ps", "-aq"]).stdout.split_whitespace() {
                    self.docker(&["rm", "-f", container]);
                }
                let _ = Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status();
            }
            let _ = daemon.wait();
        }
        if self.is_skep() {
            let mut purge = self.in_namespace();
            purge.arg(&self.program).arg("purge");
            purge
                .arg("--data-root")
                .arg(self.path("data"))
                .arg("--exec-root")
                .arg(self.path("exec"));
            let _ = purge.args(["--cgroup-parent", &format!("/{}", self.name)]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn printed(output: Output) -> Printed {
    Printed {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs iproute2's `ip`.
pub fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// A text as it stands in a query.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// A root file system of Debian's static busybox.
fn busybox_archive(archive: &Path) -> String {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path();
    for name in ["bin", "etc", "tmp", "home", "root", "var", "usr"] {
        std::fs::create_dir(root.join(name)).expect("creates");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&applets.stdout).split_whitespace() {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n",
    )
    .expect("writes");
    std::fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n").expect("writes");
    run(Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(archive)
        .arg("."));
    archive.to_str().expect("text").to_owned()
}

//! One host: a network namespace with a link, a folder, a daemon, and the docker command that drives it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::Daemon as Place;

use crate::daemon::{self, Daemon};
use crate::middle::Middle;
use crate::{Follow, encoded, images, ip, printed, program, reboot, run, told};

/// How long anything may take before a test gives up. Generous: machines under load are no failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at a state that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// The address of a host that is joined to no other.
const ALONE: &str = "10.99.0.1";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One host with its daemon. Dropping it ends both and removes what they made.
#[derive(Debug)]
pub struct Host {
    /// Of the network namespace.
    pub name: String,
    /// What other hosts reach it by.
    pub address: String,
    machine: testbed::Host,
    place: Place,
    directory: tempfile::TempDir,
    daemon: Option<Daemon>,
    /// Keeps the host's mount namespace, where it has its own.
    mounts: Option<Child>,
    program: PathBuf,
    docker: PathBuf,
}

/// What a command printed.
#[derive(Clone, Debug)]
pub struct Printed {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Host {
    /// A host with a running daemon, not in a swarm.
    pub fn new() -> Self {
        Self::with_flags(&[])
    }

    /// A host whose daemon is given more flags.
    pub fn with_flags(flags: &[&str]) -> Self {
        let mut host = Self::without_daemon();
        host.start_with(flags);
        host
    }

    /// A host on which nothing runs yet.
    pub fn without_daemon() -> Self {
        let machine = machine(&next_name(), "host1");
        let name = &machine.namespace;
        ip(&["-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "wire"]);
        ip(&["-n", name, "addr", "add", &format!("{ALONE}/24"), "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "link", "set", "wire", "up"]);
        let group = machine.namespace.clone();
        Self::at(machine, group, ALONE.to_owned())
    }

    /// A host with a cable to what joins the hosts, on which nothing runs yet.
    pub(crate) fn on(middle: &Middle, number: u8) -> Self {
        let hostname = format!("host{number}");
        let machine = machine(&next_name(), &hostname);
        middle.connect(&hostname, &machine.namespace, number).expect("the cable is laid");
        let group = machine.namespace.clone();
        Self::at(machine, group, middle.address(number))
    }

    /// Another folder for another daemon in the network namespace of `other`, which has to live longer.
    pub fn beside(other: &Self) -> Self {
        Self::at(other.machine.clone(), next_name(), ALONE.to_owned())
    }

    fn at(machine: testbed::Host, group: String, address: String) -> Self {
        let directory = tempfile::Builder::new().prefix("skep-e2e-").tempdir().expect("directory");
        let place = Place::beneath(directory.path(), &group);
        let name = machine.namespace.clone();
        let docker = told("SKEP_E2E_DOCKER");
        let (daemon, mounts, program) = (None, None, program());
        Self { name, address, machine, place, directory, daemon, mounts, program, docker }
    }

    /// From now on there is nothing but version 2 of control groups on the host, with what the machine has left of it.
    pub fn use_cgroup2(&mut self) {
        let mut holder = self.machine.command("unshare");
        holder.args(["--mount", "--propagation", "private", "--", "sh", "-c"]);
        holder.arg("mount -t cgroup2 cgroup2 /sys/fs/cgroup && echo && exec sleep infinity");
        let mut holder = holder.stdout(Stdio::piped()).spawn().expect("unshare runs");
        self.machine.mounts = Some(format!("/proc/{}/ns/mnt", holder.id()).into());
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line);
        self.mounts = Some(holder);
        assert_eq!(said.expect("reads"), 1, "version 2 is mounted");
    }

    /// What the host is called.
    pub fn hostname(&self) -> &str {
        &self.machine.hostname
    }

    /// The daemon's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A host that is the manager of a swarm of its own and has the images `busybox` and `whoami`.
    pub fn in_swarm() -> Self {
        let host = Self::new();
        host.load_images();
        host.init();
        host
    }

    /// Makes this host the manager of a swarm of its own.
    pub fn init(&self) {
        self.ok(&["swarm", "init", "--advertise-addr", &self.address]);
    }

    /// The token that lets nodes join the swarm in this role.
    pub fn token(&self, role: &str) -> String {
        self.ok(&["swarm", "join-token", "-q", role])
    }

    /// The identifier of this host's node in its swarm.
    pub fn node(&self) -> String {
        self.ok(&["info", "--format", "{{.Swarm.NodeID}}"])
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with more flags.
    pub fn start_with(&mut self, flags: &[&str]) {
        self.start_as(&self.program.clone(), flags);
    }

    /// Starts the daemon by another of its names.
    pub fn start_as(&mut self, program: &Path, flags: &[&str]) {
        self.daemon = Some(Daemon::start(self.launch(program, flags), &self.path("log")));
        self.until("the daemon answers", || self.docker(&["version"]).code == 0);
    }

    /// Starts a daemon that must not come up; answers with what it complained of.
    pub fn daemon_fails(&self, flags: &[&str]) -> Printed {
        let mut command = Command::new("timeout");
        let launch = self.launch(&self.program, flags);
        command.arg("60").arg(launch.get_program()).args(launch.get_args()).stdin(Stdio::null());
        printed(command.output().expect("timeout runs"))
    }

    fn launch(&self, program: &Path, flags: &[&str]) -> Command {
        daemon::launch(&self.machine, &self.place, program, flags)
    }

    /// Ends the daemon as an operator does.
    pub fn stop(&mut self) {
        self.daemon.take().expect("the daemon runs").end("-TERM");
    }

    /// Ends the daemon as a crash does.
    pub fn kill(&mut self) {
        self.daemon.take().expect("the daemon runs").end("-KILL");
        daemon::forget(&self.place);
    }

    /// Ends all that runs on the host and takes away what does not outlive a reboot: mounts, what lies under the run
    /// directory, the network namespace. Ours only. No daemon runs after that.
    pub(crate) fn reboot(&mut self, middle: &Middle, number: u8) {
        self.daemon.take().expect("the daemon runs").end("-KILL");
        reboot::end_all(self.directory.path(), &self.place.group);
        reboot::unmount_all(self.directory.path());
        std::fs::remove_dir_all(&self.place.exec_root).expect("removes");
        self.machine.remove().expect("the namespace is let go of");
        middle.disconnect(self.hostname()).expect("the cable is taken out");
        self.machine.create().expect("the namespace is made");
        let laid = middle.connect(self.hostname(), &self.machine.namespace, number);
        laid.expect("the cable is laid");
    }

    /// Stops the daemon in its tracks.
    pub fn freeze(&self) {
        signal("-STOP", self.daemon_pid());
    }

    /// Lets a frozen daemon go on.
    pub fn thaw(&self) {
        signal("-CONT", self.daemon_pid());
    }

    /// Gives the daemon that is to be started a small disk of its own for its data.
    pub fn use_small_disk(&self, size: &str) {
        std::fs::create_dir_all(&self.place.data_root).expect("creates");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        run(mount.arg(&self.place.data_root));
    }

    /// A path in the host's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The daemon's process number.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").pid()
    }

    /// Whether the docker command is Debian's of 2022 (20.10), and not one of today.
    pub fn has_old_docker(&self) -> bool {
        self.ok(&["version", "--format", "{{.Client.Version}}"]).starts_with("20.")
    }

    /// A docker command for this host's daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command.env("DOCKER_CONFIG", self.path("config")).env_remove("DOCKER_CONTEXT");
        command.args(["-H", &self.place.address()]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `skep VERB` on this host's daemon.
    pub fn skep(&self, verb: &str, arguments: &[&str]) -> Printed {
        let socket = format!("unix://{}", self.path("docker.sock").display());
        let mut command = Command::new(&self.program);
        printed(command.args([verb, "-H", &socket]).args(arguments).output().expect("skep runs"))
    }

    /// Runs `skep doctor` on the host itself.
    pub fn doctor(&self, arguments: &[&str]) -> Printed {
        let socket = format!("unix://{}", self.path("docker.sock").display());
        let mut command = self.machine.command(&self.program);
        printed(command.args(["doctor", "-H", &socket]).args(arguments).output().expect("runs"))
    }

    /// How the kernel of this host differs from what its daemon was told.
    pub fn differences(&self) -> Vec<String> {
        let told = self.get("/skep/audit")["differences"].clone();
        serde_json::from_value(told).expect("a list of sentences")
    }

    /// Runs docker and answers with whatever comes.
    pub fn docker(&self, arguments: &[&str]) -> Printed {
        printed(self.command(arguments).output().expect("docker runs"))
    }

    /// Runs docker, which must succeed; answers with its output without the last line feed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let printed = self.docker(arguments);
        assert_eq!(printed.code, 0, "docker {arguments:?}: {printed:?}{}", self.log());
        printed.stdout.trim_end().to_owned()
    }

    /// Runs docker, which must fail; answers with what it complained of.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let printed = self.docker(arguments);
        assert_ne!(printed.code, 0, "docker {arguments:?} should have failed: {printed:?}");
        printed.stderr.trim_end().to_owned()
    }

    /// Runs a docker command that goes on, and reads it line by line.
    pub fn follow(&self, arguments: &[&str]) -> Follow {
        Follow::new(self.command(arguments))
    }

    /// Runs docker with `input` on its standard input, which is no terminal.
    pub fn on_stdin(&self, arguments: &[&str], input: &str) -> Printed {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker runs");
        // A command that refuses at once does not read.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        printed(child.wait_with_output().expect("ends"))
    }

    /// Runs docker on a terminal, with `input` typed into it.
    pub fn on_terminal(&self, arguments: &[&str], input: &str) -> Printed {
        let command = self.command(arguments);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let quoted: Vec<_> = words
            .map(|word| format!("'{}'", word.to_str().expect("text").replace('\'', r"'\''")))
            .collect();
        let mut script = Command::new("script");
        script.args(["-qec", &quoted.join(" "), "/dev/null"]);
        script.env("DOCKER_CONFIG", self.path("config")).env("TERM", "xterm");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().expect("script runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("typed");
        // The end of input would be typed as an end of file: it is kept open until the command has ended.
        let output = child.wait_with_output().expect("ends");
        drop(stdin);
        printed(output)
    }

    /// Runs a command on the host.
    pub fn exec(&self, arguments: &[&str]) -> Printed {
        let mut command = self.machine.command(arguments[0]);
        printed(command.args(&arguments[1..]).output().expect("nsenter runs"))
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

    /// One API request with a JSON body.
    pub fn post(&self, body: &str, path: &str) -> (u16, String) {
        self.curl(&["-H", "Content-Type: application/json", "-d", body], path)
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
            assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until this many tasks of a service run.
    pub fn until_running(&self, service: &str, count: usize) {
        self.until(&format!("{count} tasks of {service} run"), || {
            self.running(service).len() == count
        });
    }

    /// Waits until this many containers of a service run on this host, whatever the managers say.
    pub fn until_containers(&self, service: &str, count: usize) {
        self.until(&format!("{count} containers of {service} run here"), || {
            self.containers(service).len() == count
        });
    }

    /// The service's containers that run on this host, whatever the managers say.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let listed = self.docker(&["ps", "-q", "--no-trunc", "--filter", &filter]).stdout;
        listed.lines().map(str::to_owned).collect()
    }

    /// The network namespace of a container that runs here.
    pub fn namespace_of(&self, container: &str) -> PathBuf {
        let pid = self.ok(&["inspect", container, "--format", "{{.State.Pid}}"]);
        PathBuf::from(format!("/proc/{pid}/ns/net"))
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
        images::load(self);
    }

    /// Imports the images `nginx:latest` and `redis:latest`.
    pub fn load_web_images(&self) {
        images::load_nginx(self);
        images::load_redis(self);
    }

    /// Imports the image `registry:latest`, whose containers are registries on port 5000.
    pub fn load_registry(&self) {
        images::load_registry(self);
    }

    /// The last lines of the daemon's log, for a failure's message.
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("\n--- log\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.make_end();
        }
        daemon::clean(&self.machine, &self.place, &self.program);
        if let Some(mut mounts) = self.mounts.take() {
            let _ = mounts.kill();
            let _ = mounts.wait();
        }
        // A small disk, if there is one.
        let mut unmount = Command::new("umount");
        let _ = unmount.args(["--lazy", "--quiet"]).arg(&self.place.data_root).output();
        // The namespace is its first host's.
        if self.name == self.place.group {
            let _ = self.machine.remove();
        }
    }
}

fn signal(signal: &str, pid: u32) {
    run(Command::new("kill").args([signal, &pid.to_string()]));
}

fn machine(namespace: &str, hostname: &str) -> testbed::Host {
    let (namespace, hostname) = (namespace.to_owned(), hostname.to_owned());
    let machine = testbed::Host { namespace, hostname, mounts: None };
    machine.create().expect("the namespace is made");
    machine
}

pub(crate) fn next_name() -> String {
    format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

//! Bundles made of Debian's static busybox, and containers run in them by a real shim.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use runtime::defaults;
use runtime::spec::{
    Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Rlimit, Root, Spec, User,
};
use shim::client::{Attachment, Client, End, ExecStdio, Launcher};
use shim::config::{CONFIG_FILE, Config, ExitRecord, RuntimeChoice, SPEC_FILE, write_json};

/// The shim as the tests run it.
pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_skep-shim");

/// Which runtime a test runs its container with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    Native,
    Runc,
}

/// The binary of a runtime the tests compare with.
pub(crate) fn find(program: &str, package: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is missing: apt-get install {package}"))
}

/// A container to be, in a directory of its own. Everything goes with it.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    pub(crate) spec: Spec,
    pub(crate) config: Config,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Bundle {
    /// A container confined as Docker does it by default, that runs a shell script.
    pub(crate) fn new(script: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests make containers: run as root");
        let directory = tempfile::Builder::new().prefix("skep-shim-test").tempdir().unwrap();
        make_rootfs(&directory.path().join("rootfs"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("skep-test-{}-{number}", std::process::id());
        let spec = default_spec(&id, script);
        let config = Config { id, ..Config::default() };
        Self { directory, spec, config }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Shows a path of the host in the container.
    pub(crate) fn bind(&mut self, source: &str, destination: &str, options: &[&str]) {
        self.spec.mounts.push(Mount {
            destination: destination.to_owned(),
            kind: "bind".to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|it| (*it).to_owned()).collect(),
        });
    }

    /// Chooses the runtime.
    pub(crate) fn under(mut self, under: Under) -> Self {
        self.config.runtime = match under {
            Under::Native => RuntimeChoice::Native,
            Under::Runc => RuntimeChoice::External {
                program: find("runc", "runc"),
                root: self.path().join("runc-state"),
            },
        };
        self
    }

    /// Writes the files and launches the shim; the container is not started yet.
    pub(crate) async fn launch(&self) -> Client {
        write_json(&self.path().join(SPEC_FILE), &self.spec).unwrap();
        write_json(&self.path().join(CONFIG_FILE), &self.config).unwrap();
        Launcher::new(Path::new(SHIM)).launch(self.path()).await.unwrap()
    }

    /// Runs the container to its end: output, errors, and how it ended.
    pub(crate) async fn run(&self) -> Output {
        let client = self.launch().await;
        let (attachment, reader) = Reader::attach();
        client.attach(attachment).await.unwrap();
        let started = client.start().await;
        let end = client.wait().await;
        let (stdout, stderr) = reader.read().await;
        let error = started.err().map(|error| error.to_string());
        let End::Exited(exit) = end else { panic!("shim died; {error:?}") };
        Output { stdout, stderr, exit, error }
    }
}

/// What a container left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: ExitRecord,
    pub(crate) error: Option<String>,
}

impl Output {
    /// The output of a container that must have ended well.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.exit.exit_code, 0, "{self:?}");
        self.stdout
    }
}

/// The test's ends of a container's output.
pub(crate) struct Reader {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Reader {
    pub(crate) fn attach() -> (Attachment, Self) {
        let (stdout, far_stdout) = pipe();
        let (stderr, far_stderr) = pipe();
        let attachment = Attachment {
            stdout: Some(far_stdout),
            stderr: Some(far_stderr),
            ..Attachment::default()
        };
        (attachment, Self { stdout, stderr })
    }

    pub(crate) async fn read(self) -> (String, String) {
        let stdout = tokio::task::spawn_blocking(move || read_all(self.stdout));
        let stderr = tokio::task::spawn_blocking(move || read_all(self.stderr));
        (stdout.await.unwrap(), stderr.await.unwrap())
    }
}

/// A container that waits for the end of its input, ready for exec.
pub(crate) async fn waiting(bundle: &mut Bundle) -> (Client, OwnedFd) {
    bundle.config.open_stdin = true;
    bundle.config.stdin_once = true;
    bundle.spec.process.args = ["/bin/sh", "-c", "echo up; cat"].map(str::to_owned).to_vec();
    let client = bundle.launch().await;
    let (far, input) = pipe();
    let (output, far_output) = pipe();
    let attachment =
        Attachment { stdin: Some(far), stdout: Some(far_output), ..Attachment::default() };
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    io::Read::read_exact(&mut fs::File::from(output), &mut [0; 3]).unwrap();
    (client, input)
}

/// Read end, write end.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub(crate) fn read_all(fd: OwnedFd) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    // A terminal ends with EIO when the last program leaves it.
    let _ = fs::File::from(fd).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a command in a running container: output with errors, exit code.
pub(crate) async fn exec(client: &Client, process: &Process) -> (String, i32) {
    static NEXT_EXEC: AtomicU32 = AtomicU32::new(0);
    let id = format!("exec{}", NEXT_EXEC.fetch_add(1, Ordering::Relaxed));
    let (near, far) = pipe();
    let stdio = ExecStdio::Streams {
        stdin: fs::File::open("/dev/null").unwrap().into(),
        stderr: far.try_clone().unwrap(),
        stdout: far,
    };
    let execution = client.exec(&id, process, stdio).await.unwrap();
    let output = tokio::task::spawn_blocking(move || read_all(near)).await.unwrap();
    (output, execution.exit.await.unwrap())
}

/// A shell script as a process of the default container.
pub(crate) fn shell(script: &str) -> Process {
    Process {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![format!("PATH={}", defaults::PATH)],
        ..Process::default()
    }
}

/// What Docker sets for a container that asks for nothing.
pub(crate) fn default_spec(id: &str, script: &str) -> Spec {
    let capabilities = defaults::capabilities();
    let namespaces = [
        NamespaceKind::Mount,
        NamespaceKind::Network,
        NamespaceKind::Uts,
        NamespaceKind::Pid,
        NamespaceKind::Ipc,
    ];
    let mut linux = Linux {
        cgroups_path: format!("/{id}"),
        namespaces: namespaces.map(|kind| Namespace { kind, path: None }).to_vec(),
        seccomp: Some(defaults::seccomp(&capabilities)),
        masked_paths: defaults::MASKED_PATHS.map(str::to_owned).to_vec(),
        readonly_paths: defaults::READONLY_PATHS.map(str::to_owned).to_vec(),
        ..Linux::default()
    };
    linux.resources.devices = defaults::device_rules();
    linux.resources.memory.limit = Some(64 * 1024 * 1024);
    linux.resources.memory.swap = Some(64 * 1024 * 1024);
    linux.resources.cpu.shares = Some(512);
    linux.resources.cpu.period = Some(100_000);
    linux.resources.cpu.quota = Some(50_000);
    linux.resources.pids.limit = Some(64);
    let process = Process {
        user: User::default(),
        capabilities: Some(Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
            ..Capabilities::default()
        }),
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: 1024, hard: 4096 }],
        ..shell(script)
    };
    Spec {
        process,
        root: Root { path: "rootfs".into(), readonly: false },
        hostname: "skephost".to_owned(),
        mounts: defaults::mounts(defaults::SHM_BYTES),
        linux,
        ..Spec::default()
    }
}

fn make_rootfs(root: &Path) {
    let busybox = find("busybox", "busybox-static");
    for name in ["bin", "etc", "tmp", "root", "var", "sbin"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(&busybox, root.join("bin/busybox")).unwrap();
    let listed = std::process::Command::new(&busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(listed.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\n").unwrap();
}

//! A daemon on a host: ours, or stock Docker's, which is given walls of its own so that nothing of it stays.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long stock Docker may take to end by itself.
const END: Duration = Duration::from_secs(60);

/// A daemon that runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pid: u32,
}

/// A command in a network namespace. `ip netns exec` would hide the control groups behind a new `/sys`.
pub(crate) fn in_namespace(name: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{name}")).arg("--");
    command
}

/// How to start `program` in the network namespace `name`, its state beneath `directory`.
pub(crate) fn launch(
    name: &str,
    group: &str,
    program: &Path,
    directory: &Path,
    flags: &[&str],
) -> Command {
    let mut command = in_namespace(name);
    if !crate::is_skep() {
        // Mounts and processes end with the daemon: stock Docker has no way to be taken down whole.
        command.args(["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--"]);
    }
    command.arg(program);
    if program.file_name().is_some_and(|name| name == "skep") {
        command.arg("daemon");
    }
    command.args(own_flags(group, directory)).args(flags).stdin(Stdio::null());
    command
}

impl Daemon {
    /// Starts what [`launch`] tells.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log opens");
        command.stdout(log.try_clone().expect("clones")).stderr(log);
        let child = command.spawn().expect("the daemon starts");
        // `nsenter` becomes what it is told to run.
        let pid = if crate::is_skep() { child.id() } else { only_child(child.id()) };
        Self { child, pid }
    }

    /// The daemon's process number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal that ends the daemon, and waits for its end.
    pub(crate) fn end(mut self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid.to_string()]).status();
        assert!(sent.expect("kill runs").success(), "the daemon was there to be signalled");
        self.child.wait().expect("the daemon ends");
    }
}

fn own_flags(group: &str, directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let flags = [
        ("-H", format!("unix://{}", path("docker.sock"))),
        ("--pidfile", path("pid")),
        ("--data-root", path("data")),
        ("--exec-root", path("exec")),
        ("--cgroup-parent", format!("/{group}")),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// The process that `parent` forks.
fn only_child(parent: u32) -> u32 {
    let end = Instant::now() + END;
    let path = format!("/proc/{parent}/task/{parent}/children");
    loop {
        let children = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            return pid;
        }
        assert!(Instant::now() < end, "unshare forks");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what a host's ended daemon has made outside its folder.
pub(crate) fn clean(name: &str, group: &str, program: &Path, directory: &Path) {
    if crate::is_skep() {
        let mut purge = in_namespace(name);
        purge.arg(program).arg("purge").arg("--data-root").arg(directory.join("data"));
        purge.arg("--exec-root").arg(directory.join("exec"));
        let _ = purge.args(["--cgroup-parent", &format!("/{group}")]).status();
        return;
    }
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    let hierarchies = hierarchies.filter_map(Result::ok).map(|entry| entry.path());
    for hierarchy in hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        remove_group(&hierarchy.join(group));
    }
}

/// Removes a control group with those beneath it. The kernel needs a moment to forget ended processes.
fn remove_group(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        remove_group(&entry.path());
    }
    let end = Instant::now() + END;
    while std::fs::remove_dir(group).is_err() && group.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

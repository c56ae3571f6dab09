//! A daemon on a host: ours, or stock Docker's, which is given walls of its own so that nothing of it stays.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testbed::{Daemon as Place, Host};

/// How long stock Docker may take to end by itself.
const END: Duration = Duration::from_secs(60);

/// A daemon that runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pid: u32,
}

/// How to start `program` on `host`, its things where `place` says.
pub(crate) fn launch(host: &Host, place: &Place, program: &Path, flags: &[&str]) -> Command {
    let mut command = if crate::is_skep() {
        host.command(program)
    } else {
        // Mounts and processes end with the daemon: stock Docker has no way to be taken down whole.
        let mut command = host.command("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--"]).arg(program);
        command
    };
    if program.file_name().is_some_and(|name| name == "skep") {
        command.arg("daemon");
    }
    command.args(place.flags()).args(flags).stdin(Stdio::null());
    command
}

impl Daemon {
    /// Starts what [`launch`] tells.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log opens");
        command.stdout(log.try_clone().expect("clones")).stderr(log);
        let child = command.spawn().expect("the daemon starts");
        // What the host is told to run is what was spawned.
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

    /// Ends the daemon, if it still runs.
    pub(crate) fn make_end(mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        let _ = self.child.wait();
    }
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

/// Removes what a killed daemon leaves that tells the next one not to start. Stock Docker has its own process numbers,
/// which are always taken.
pub(crate) fn forget(place: &Place) {
    if !crate::is_skep() {
        let _ = std::fs::remove_file(&place.pidfile);
        let _ = std::fs::remove_file(place.exec_root.join("containerd/containerd.pid"));
    }
}

/// Removes what a host's ended daemon has made outside its folder.
pub(crate) fn clean(host: &Host, place: &Place, program: &Path) {
    if crate::is_skep() {
        let mut purge = host.command(program);
        let _ = purge.arg("purge").args(place.roots()).status();
        return;
    }
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    let hierarchies = hierarchies.filter_map(Result::ok).map(|entry| entry.path());
    for hierarchy in hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        remove_group(&hierarchy.join(&place.group));
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

//! What cgroup version 2 does without any controller, on the kernel: device rules, freezing,
//! killing. Every kernel has the tree, also one that uses version 1 for its controllers.

#![allow(clippy::unwrap_used, reason = "a helper of a test may end it")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use runtime::cgroup::{Cgroup, Layout};
use runtime::defaults;
use runtime::spec::Resources;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A group in a tree mounted for the test.
struct Tree {
    directory: tempfile::TempDir,
    group: Cgroup,
}

impl Tree {
    fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests make cgroups: run as root");
        let directory = tempfile::tempdir().unwrap();
        mount("cgroup2", directory.path(), "cgroup2", MountFlags::empty(), None).unwrap();
        let path = format!("/skep-test-{name}-{}", std::process::id());
        let layout = Layout::V2(directory.path().to_owned());
        let group = Cgroup::within(layout, &path).unwrap();
        group.create().unwrap();
        Self { directory, group }
    }

    fn procs(&self) -> PathBuf {
        self.group.directories()[0].join("cgroup.procs")
    }

    /// A shell in the group, which first says so.
    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        let enter = format!("echo $$ > {}; {script}", self.procs().display());
        command.arg("-c").arg(enter).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, script: &str) -> Output {
        self.shell(script).output().unwrap()
    }

    /// A process that stays in the group, already there.
    fn stayer(&self) -> Child {
        let mut child = self.shell("echo in; exec sleep 1000").spawn().unwrap();
        let mut said = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        child
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.group.kill_and_remove();
        let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn device_rules_are_what_the_kernel_enforces() {
    let tree = Tree::new("devices");
    let resources = Resources { devices: defaults::device_rules(), ..Resources::default() };
    tree.group.rule_devices(&resources).unwrap();
    let made = tree.directory.path().with_extension("node");
    let path = made.display();
    let script = format!(
        "head -c 1 /dev/zero | wc -c; mknod {path} c 1 1; head -c 1 {path}; rm {path}; \
         echo x > /dev/null && echo wrote"
    );
    let output = tree.run(&script);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\nwrote\n", "{stderr}");
    assert_eq!(stderr.matches("Operation not permitted").count(), 1, "{stderr}");
}

#[test]
fn a_frozen_group_says_so_and_thaws() {
    let tree = Tree::new("freeze");
    let mut child = tree.stayer();
    tree.group.freeze(true).unwrap();
    let events = fs::read_to_string(tree.procs().with_file_name("cgroup.events")).unwrap();
    assert!(events.contains("frozen 1"), "{events}");
    tree.group.freeze(false).unwrap();
    tree.group.kill_and_remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_frozen_group_is_killed_and_removed_with_the_groups_beneath_it() {
    let tree = Tree::new("kill");
    let beneath = tree.group.directories()[0].join("beneath");
    fs::create_dir(&beneath).unwrap();
    let mut child = tree.stayer();
    let id = i32::try_from(child.id()).unwrap();
    fs::write(beneath.join("cgroup.procs"), id.to_string()).unwrap();
    assert_eq!(tree.group.pids(), [id]);
    tree.group.freeze(true).unwrap();
    tree.group.kill_and_remove().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!beneath.exists());
}

#[test]
fn counters_that_are_not_there_read_as_nothing() {
    let tree = Tree::new("stats");
    let stats = tree.group.stats();
    assert!(stats.v2);
    assert_eq!((stats.pids_limit, stats.oom_kills), (0, 0));
}

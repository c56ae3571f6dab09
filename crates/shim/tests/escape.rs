//! Ways out of a container that have worked somewhere, tried on the built-in runtime.
//!
//! The first three are defects seen in another runtime library: a writable cgroup mount, exec'd
//! processes without a filter, and `noNewPrivileges: false` taken for true.

#![allow(clippy::unwrap_used, reason = "a helper of a test may end it")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::{Bundle, Under, exec, shell, waiting};
use rustix::fs::{StatVfsMountFlags, statvfs};
use shim::client::{Client, End, state_record};
use shim::config::SPEC_FILE;

/// Shows the tool that makes raw system calls as `/raw-call`.
fn with_raw_call(bundle: &mut Bundle) {
    bundle.bind(env!("CARGO_BIN_EXE_raw-call"), "/raw-call", &["bind", "ro"]);
    bundle.bind("/lib", "/lib", &["rbind", "ro"]);
    bundle.bind("/lib64", "/lib64", &["rbind", "ro"]);
}

#[tokio::test]
async fn root_in_the_container_cannot_raise_its_own_limits() {
    let script = "cd /sys/fs/cgroup; \
        echo 1073741824 > memory/memory.limit_in_bytes; echo max > pids/pids.max; \
        echo a > devices/devices.allow; mkdir memory/more; echo 1 > cpu/cpu.cfs_quota_us; \
        mount -o remount,rw /sys/fs/cgroup/memory; mount -t cgroup -o memory none /mnt; \
        echo /x > memory/release_agent; \
        cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us";
    let output = Bundle::new(script).run().await;
    assert_eq!(output.stdout, "67108864\n64\n50000\n", "{}", output.stderr);
    assert!(output.stderr.contains("Read-only file system"), "{}", output.stderr);
}

#[tokio::test]
async fn an_execd_process_has_the_filter_of_its_container() {
    let mut bundle = Bundle::new("");
    let (client, input) = waiting(&mut bundle).await;
    let (output, _) =
        exec(&client, &shell("grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp")).await;
    assert!(output.starts_with("Seccomp:\t2\n"), "{output}");
    assert!(output.contains("permission denied"), "{output}");
    drop(input);
    client.wait().await;
}

#[tokio::test]
async fn no_new_privileges_false_means_false_and_the_container_starts() {
    let bundle = Bundle::new("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status");
    let client = bundle.launch().await;
    let mut spec = serde_json::to_value(&bundle.spec).unwrap();
    spec["process"]["noNewPrivileges"] = serde_json::Value::Bool(false);
    fs::write(bundle.path().join(SPEC_FILE), spec.to_string()).unwrap();
    let (attachment, reader) = common::Reader::attach();
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    assert_eq!(reader.read().await.0, "NoNewPrivs:\t0\nSeccomp:\t2\n");
    client.wait().await;
}

#[tokio::test]
async fn a_link_in_place_of_proc_or_sys_is_refused() {
    for (name, kind) in [("proc", "proc"), ("sys", "sysfs")] {
        let bundle = Bundle::new("true");
        symlink("etc", bundle.rootfs().join(name)).unwrap();
        let output = bundle.run().await;
        let expected = format!("filesystem {kind:?} must be mounted on ordinary directory");
        assert!(output.exit.error.contains(&expected), "{output:?}");
        assert_eq!(output.exit.exit_code, 128);
    }
}

/// A directory of the host, and a relative path to it that climbs out of any root.
fn target_outside() -> (tempfile::TempDir, String) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "host").unwrap();
    let climb =
        format!("{}{}", "../".repeat(20), outside.path().strip_prefix("/").unwrap().display());
    (outside, climb)
}

fn untouched(outside: &tempfile::TempDir) {
    let names: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "host");
}

#[tokio::test]
async fn links_of_the_image_lead_no_mount_and_no_device_to_the_host() {
    let (outside, climb) = target_outside();
    let absolute = outside.path().to_string_lossy().into_owned();
    for target in [climb, absolute.clone()] {
        let mut bundle = Bundle::new("echo inner > /data/made; ls /dev/null /data /logs");
        symlink(format!("{target}/devices"), bundle.rootfs().join("dev")).unwrap();
        symlink(&target, bundle.rootfs().join("data")).unwrap();
        symlink(format!("{target}/deeper"), bundle.rootfs().join("logs")).unwrap();
        let shown = bundle.path().join("shown");
        fs::create_dir(&shown).unwrap();
        bundle.bind(&shown.to_string_lossy(), "/data/sub", &["rbind"]);
        bundle.bind("/etc/hostname", "/logs/name", &["bind", "ro"]);
        let output = bundle.run().await;
        assert_eq!(output.exit.exit_code, 0, "{output:?}");
        untouched(&outside);
        assert!(bundle.rootfs().join(&absolute[1..]).join("made").exists());
    }
}

#[tokio::test]
async fn masked_and_read_only_paths_follow_no_link_to_the_host() {
    let (outside, climb) = target_outside();
    let mut bundle = Bundle::new("true");
    symlink(&climb, bundle.rootfs().join("hidden")).unwrap();
    symlink(format!("{climb}/file"), bundle.rootfs().join("hidden-file")).unwrap();
    bundle.spec.linux.masked_paths.extend(["/hidden".to_owned(), "/hidden-file".to_owned()]);
    bundle.spec.linux.readonly_paths.push("/hidden".to_owned());
    bundle.run().await.ok();
    untouched(&outside);
}

#[tokio::test]
async fn a_forged_null_device_masks_nothing_with_something_else() {
    let mut bundle =
        Bundle::new("stat -c '%F %t:%T' /proc/keys; (echo x > /proc/keys) && cat /proc/keys");
    let dev = bundle.path().join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    bundle.spec.mounts.retain(|it| !it.destination.starts_with("/dev"));
    bundle.bind(&dev.to_string_lossy(), "/dev", &["rbind"]);
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let output = bundle.run().await;
    assert_eq!(output.ok(), "character special file 1:3\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

#[tokio::test]
async fn nothing_of_the_hosts_devices_can_be_changed_through_a_mask() {
    let before = fs::metadata("/dev/null").unwrap();
    let script = "chmod 0 /proc/keys; chown 33 /proc/keys; rm -f /dev/null; true";
    Bundle::new(script).run().await.ok();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
}

#[tokio::test]
async fn the_binary_of_the_shim_cannot_be_written_from_a_container() {
    let mut bundle = Bundle::new("");
    bundle.config.init = Some(common::SHIM.into());
    bundle.bind("/lib", "/lib", &["rbind", "ro"]);
    bundle.bind("/lib64", "/lib64", &["rbind", "ro"]);
    let (client, input) = waiting(&mut bundle).await;
    // A running binary cannot be opened for writing on any mount, so its mode is tried instead.
    let script = "exec 3</proc/1/exe; \
                  chmod 700 /proc/1/exe /sbin/docker-init /proc/self/fd/3 2>&1";
    let (output, _) = exec(&client, &shell(script)).await;
    assert_eq!(output.matches("Read-only file system").count(), 3, "{output}");
    drop(input);
    client.wait().await;
}

#[tokio::test]
async fn a_shim_runs_from_a_mount_that_cannot_be_written_even_if_launched_plainly() {
    let mut bundle = Bundle::new("");
    let (client, input) = waiting(&mut bundle).await;
    let shim = state_record(bundle.path()).unwrap().unwrap().shim_pid;
    let is_sealed = |pid: i32| {
        let at = statvfs(format!("/proc/{pid}/exe")).unwrap();
        at.f_flag.contains(StatVfsMountFlags::RDONLY)
    };
    assert!(is_sealed(shim));
    drop(input);
    client.wait().await;
    // Without a launcher that prepares the mount.
    let mut bundle = Bundle::new("cat");
    bundle.config.open_stdin = true;
    drop(bundle.launch().await);
    let (own, other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut command = std::process::Command::new(common::SHIM);
    command.arg("shim").arg(bundle.path()).stdin(other);
    assert!(command.status().unwrap().success());
    drop(command);
    let again = Client::connect(bundle.path()).await.unwrap();
    drop(own);
    again.start().await.unwrap();
    assert!(is_sealed(state_record(bundle.path()).unwrap().unwrap().shim_pid));
    again.close_stdin().await.unwrap();
    assert!(matches!(again.wait().await, End::Exited(exit) if exit.exit_code == 0));
}

#[tokio::test]
async fn running_the_shims_own_binary_as_the_command_gives_nothing_to_write_to() {
    let mut bundle = Bundle::new("");
    bundle.spec.process.args = vec!["/proc/self/exe".to_owned(), "x".to_owned()];
    let before = fs::metadata(common::SHIM).unwrap();
    bundle.run().await;
    let after = fs::metadata(common::SHIM).unwrap();
    assert_eq!((before.len(), before.mtime_nsec()), (after.len(), after.mtime_nsec()));
}

#[tokio::test]
async fn no_descriptor_of_the_host_reaches_a_container() {
    let mut bundle = Bundle::new("");
    let (client, input) = waiting(&mut bundle).await;
    let (output, _) = exec(&client, &shell("ls /proc/1/fd; echo; cd /proc/self/fd; echo *")).await;
    // The shell holds the directory it lists open.
    assert_eq!(output, "0\n1\n2\n\n0 1 2 3\n");
    drop(input);
    client.wait().await;
}

#[tokio::test]
async fn a_working_directory_by_descriptor_is_refused() {
    for number in 0..16 {
        let mut bundle = Bundle::new("ls");
        bundle.spec.process.cwd = format!("/proc/self/fd/{number}");
        let output = bundle.run().await;
        assert_eq!(output.exit.exit_code, 128, "{number} {output:?}");
        assert!(!output.exit.error.is_empty());
    }
}

#[tokio::test]
async fn a_working_directory_by_descriptor_is_refused_for_an_exec() {
    let mut bundle = Bundle::new("");
    let (client, input) = waiting(&mut bundle).await;
    for number in 0..16 {
        let mut process = shell("ls");
        process.cwd = format!("/proc/self/fd/{number}");
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let stdio = shim::client::ExecStdio::Streams {
            stdin: null().into(),
            stdout: null().into(),
            stderr: null().into(),
        };
        let result = client.exec("cwd", &process, stdio).await;
        assert!(result.is_err(), "{number}");
    }
    drop(input);
    client.wait().await;
}

#[tokio::test]
async fn devices_can_be_made_but_not_used() {
    let script = "mknod /tmp/mem c 1 1 && mknod /tmp/disk b 254 0 && mknod /tmp/kmsg c 1 11 && \
                  for it in mem disk kmsg; do head -c 1 /tmp/$it; done; head -c 1 /dev/zero | wc -c";
    let output = Bundle::new(script).run().await;
    assert_eq!(output.stderr.matches("Operation not permitted").count(), 3, "{output:?}");
    assert_eq!(output.stdout, "1\n");
}

#[tokio::test]
async fn kernel_settings_cannot_be_written() {
    let paths = "/proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger \
                 /proc/irq/default_smp_affinity /sys/power/state /sys/kernel/mm/ksm/run \
                 /sys/kernel/uevent_helper /proc/sys/vm/drop_caches /proc/sys/fs/binfmt_misc/register";
    let script =
        format!("for it in {paths}; do (echo 1 > $it) 2>/dev/null && echo wrote $it; done; true");
    let output = Bundle::new(&script).run().await;
    assert_eq!(output.ok(), "");
}

#[tokio::test]
async fn processes_of_the_host_can_be_neither_seen_nor_signalled() {
    let own = std::process::id();
    // The list goes into a file: in a pipe its reader may be among the listed, or not be there yet.
    let script = format!(
        "kill -9 {own}; ls -d /proc/{own}; ps -o pid > /tmp/list; wc -l < /tmp/list; ls /proc/1/root/bin/busybox"
    );
    let output = Bundle::new(&script).run().await;
    assert_eq!(output.stdout, "3\n/proc/1/root/bin/busybox\n", "{output:?}");
}

#[tokio::test]
async fn the_parents_of_the_root_are_the_root() {
    let script = "stat -c %i / /.. /../../..; chroot /../.. stat -c %i /; \
                  mkdir -p /tmp/x; chroot /tmp/x true; cd /tmp; ls ../../../../bin/busybox";
    let output = Bundle::new(script).run().await;
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.pop(), Some("../../../../bin/busybox"));
    lines.dedup();
    assert_eq!(lines.len(), 1, "{output:?}");
}

/// Calls a default container may not make: name, number on x86-64, arguments, errno.
#[cfg(target_arch = "x86_64")]
const REFUSED: [(&str, &str, i32); 28] = [
    ("mount", "165 s:none s:/tmp s:tmpfs 0 0", 1),
    ("umount2", "166 s:/proc 2", 1),
    ("pivot_root", "155 s:/ s:/", 1),
    ("unshare of a user namespace", "272 268435456", 1),
    ("clone of a user namespace", "56 268435473", 1),
    ("clone3", "435 0 0", 38),
    ("setns", "308 0 0", 1),
    ("open_tree", "428 -100 s:/ 1", 1),
    ("move_mount", "429 -100 s:/ -100 s:/tmp 0", 1),
    ("fsopen", "430 s:tmpfs 0", 1),
    ("open_by_handle_at", "304 -100 s:xxxxxxxx 0", 1),
    ("keyctl", "250 0 -3 0", 1),
    ("add_key", "248 s:user s:x s:y 1 -3", 1),
    ("request_key", "249 s:user s:x 0 -3", 1),
    ("bpf", "321 0 0 0", 1),
    ("perf_event_open", "298 0 0 0 0 0", 1),
    ("userfaultfd", "323 0", 1),
    ("io_uring_setup", "425 1 0", 1),
    ("init_module", "175 0 0 s:", 1),
    ("finit_module", "313 0 s: 0", 1),
    ("kexec_load", "246 0 0 0 0", 1),
    ("reboot", "169 -18751827 672274793 0", 1),
    ("swapon", "167 s:/tmp/x 0", 1),
    ("settimeofday", "164 0 0", 1),
    ("iopl", "172 3", 1),
    ("acct", "163 0", 1),
    ("socket of the crypto API", "41 38 5 0", 1),
    ("socket to the hypervisor", "41 40 1 0", 1),
];

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_that_reach_past_the_container_are_refused() {
    let calls: Vec<String> =
        REFUSED.iter().map(|(_, words, _)| format!("/raw-call {words}")).collect();
    let mut bundle = Bundle::new(&calls.join("; "));
    with_raw_call(&mut bundle);
    let output = bundle.run().await;
    let results: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(results.len(), REFUSED.len(), "{output:?}");
    for ((name, _, errno), result) in REFUSED.iter().zip(results) {
        assert_eq!(result, errno.to_string(), "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_are_refused_in_an_exec_too() {
    let mut bundle = Bundle::new("");
    with_raw_call(&mut bundle);
    let (client, input) = waiting(&mut bundle).await;
    let calls: Vec<String> =
        REFUSED.iter().map(|(_, words, _)| format!("/raw-call {words}")).collect();
    let (output, _) = exec(&client, &shell(&calls.join("; "))).await;
    let expected: Vec<String> = REFUSED.iter().map(|(_, _, errno)| errno.to_string()).collect();
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
    drop(input);
    client.wait().await;
}

#[tokio::test]
async fn a_fifo_in_place_of_the_password_file_holds_nothing_up() {
    let bundle = Bundle::new("echo $HOME");
    let passwd = bundle.rootfs().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, fifo, 0o644.into(), 0).unwrap();
    assert_eq!(bundle.run().await.ok(), "/\n");
}

#[tokio::test]
async fn a_mount_over_procfs_is_refused() {
    for destination in ["/proc", "/proc/sys", "/proc/self/attr", "/x/../proc/1"] {
        let mut bundle = Bundle::new("true").under(Under::Native);
        bundle.bind("/tmp", destination, &["rbind"]);
        let output = bundle.run().await;
        assert_eq!(output.exit.exit_code, 128, "{destination} {output:?}");
    }
}

#[tokio::test]
async fn a_fork_bomb_ends_at_the_limit_of_tasks() {
    let script = "for i in $(seq 200); do sleep 5 & done 2>/dev/null; \
                  ls -d /proc/[0-9]* | wc -l; kill -9 -1";
    let mut bundle = Bundle::new(script);
    bundle.spec.linux.resources.pids.limit = Some(20);
    let output = bundle.run().await;
    let count: u32 = output.stdout.trim().parse().unwrap_or(0);
    assert!(count <= 21, "{output:?}");
}

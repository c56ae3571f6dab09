//! The same specification under the built-in runtime and under Debian's runc: what a process in the
//! container can see of its confinement must be the same, for the first process and for exec'd ones.

#![allow(clippy::unwrap_used, reason = "a helper of a test may end it")]

mod common;

use std::fs;

use common::{Bundle, Under, exec, shell, waiting};
use runtime::spec::{Namespace, NamespaceKind, Process, Rlimit, User};
use shim::client::End;

/// What a process can say of itself, one finding per line.
const PROBE: &str = r#"
grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups|Threads|Speculation)' /proc/self/status
sed 's/^/limit /' /proc/self/limits
sed 's/^/cgroup /' /proc/self/cgroup
echo "host $(hostname) domain $(cat /proc/sys/kernel/domainname)"
echo "id $(id) umask $(umask) cwd $(pwd) home $HOME oom $(cat /proc/self/oom_score_adj)"
env | sort | sed 's/^/env /'
for n in /proc/self/ns/*; do echo "namespace $n $(readlink $n)"; done
ls -ln /dev /dev/pts /dev/shm /dev/mqueue | sed 's/ [A-Z][a-z][a-z] .*:[0-9][0-9]//; s/^/dev /' | grep -v total
ls /sys/fs/cgroup | sed 's/^/cgroups /'
for c in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.shares \
  cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max cpuset/cpuset.cpus cpuset/cpuset.mems; do
  echo "value $c $(cat /sys/fs/cgroup/$c 2>&1)"
done
sort /sys/fs/cgroup/devices/devices.list | sed 's/^/device rule /'
for p in /proc/kcore /proc/keys /proc/timer_list /proc/scsi /proc/acpi /sys/firmware; do
  echo "masked $p $(stat -c %F $p 2>&1) $(ls -A $p 2>/dev/null | wc -l) $(head -c 1 $p 2>/dev/null | wc -c)"
done
for p in /proc/sys/kernel/shmmax /proc/sysrq-trigger /sys/kernel/uevent_seqnum /proc/irq/default_smp_affinity; do
  (echo 1 > $p) 2>/dev/null && echo "write $p works" || echo "write $p refused"
done
echo "fds $(ls /proc/self/fd | tr '\n' ' ')"
echo "signals $(grep SigBlk /proc/self/status)"
echo "modes $(stat -c '%a %u %g' /tmp /run /dev /dev/shm /sys/fs/cgroup / | tr '\n' ' ')"
echo "session $(cut -d ' ' -f 5,6,7 /proc/self/stat | wc -w)"
sysctl -n net.ipv4.ip_unprivileged_port_start 2>/dev/null | sed 's/^/port /'
ip link 2>/dev/null | grep -o '^[0-9]*: [a-z0-9]*' | sed 's/^/link /'
cat /proc/self/mountinfo | sed 's/^/mount /'
"#;

/// Takes out what differs between any two containers.
fn normal(text: &str, bundle: &Bundle) -> Vec<String> {
    let host: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .iter()
        .map(|name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let temporary = bundle.path().to_string_lossy().into_owned();
    let mut lines: Vec<String> = text
        .replace(&bundle.config.id, "ID")
        .replace(&temporary, "BUNDLE")
        .lines()
        // runc joins the version 2 tree of a hybrid host too; nothing is controlled by it.
        .filter(|line| !line.starts_with("cgroup 0::"))
        .map(|line| match line.strip_prefix("mount ") {
            Some(mount) => normal_mount(mount),
            None if line.starts_with("namespace ") => normal_namespace(line, &host),
            None => line.to_owned(),
        })
        .collect();
    lines.sort();
    lines
}

fn normal_namespace(line: &str, host: &[String]) -> String {
    let mut words = line.rsplitn(2, ' ');
    let (link, rest) = (words.next().unwrap(), words.next().unwrap());
    let whose = if host.iter().any(|it| it == link) { "the host's" } else { "its own" };
    format!("{rest} {whose}")
}

/// Mount point, options, type, source and superblock options, without numbers.
fn normal_mount(line: &str) -> String {
    let (left, right) = line.split_once(" - ").unwrap();
    let left: Vec<&str> = left.split(' ').collect();
    let propagation = left[6..].iter().map(|it| it.split(':').next().unwrap_or_default());
    let propagation: Vec<&str> = propagation.collect();
    // Memory of a tmpfs is given in its options as the kernel found it.
    format!("mount {} {} {} {propagation:?} {right}", left[4], left[3], left[5])
}

async fn probe_init(mut bundle: Bundle, under: Under) -> Vec<String> {
    bundle = bundle.under(under);
    bundle.spec.process.args = ["/bin/sh", "-c", PROBE].map(str::to_owned).to_vec();
    let output = bundle.run().await;
    assert_eq!(output.exit.exit_code, 0, "{under:?} {output:?}");
    normal(&output.stdout, &bundle)
}

async fn probe_exec(mut bundle: Bundle, under: Under, process: Process) -> Vec<String> {
    bundle = bundle.under(under);
    let (client, input) = waiting(&mut bundle).await;
    let (output, code) = exec(&client, &process).await;
    assert_eq!(code, 0, "{under:?} {output}");
    drop(input);
    assert!(matches!(client.wait().await, End::Exited(_)));
    normal(&output, &bundle)
}

fn compare(native: &[String], runc: &[String], allowed: &[&str]) {
    let is_allowed = |line: &&String| allowed.iter().any(|part| line.contains(part));
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|line| !b.contains(line)).filter(|it| !is_allowed(it)).cloned().collect()
    };
    let (ours, theirs) = (only(native, runc), only(runc, native));
    assert!(
        ours.is_empty() && theirs.is_empty(),
        "only native:\n{}\nonly runc:\n{}",
        ours.join("\n"),
        theirs.join("\n")
    );
    assert!(native.len() > 60, "the probe said next to nothing: {native:?}");
}

/// Differences that are right: a reason for each.
const ALLOWED: [&str; 5] = [
    // runc makes the message queues of a user namespace with its root's user id, but not its group.
    " 40 mqueue",
    // runc's own language runtime raises the soft limit again in an exec'd process, until 1.1.10.
    "limit Max open files",
    // runc changes the mode of a tmpfs after it is mounted, so the mount does not show it.
    "mount /tmp / rw,noexec,relatime [] tmpfs tmpfs rw",
    // runc before 1.2 lets every container open the TUN device; Docker with a newer one does not.
    "device rule c 10:200 rwm",
    // runc leaves the directory above the read-only hierarchies writable; it need not be.
    "mount /sys/fs/cgroup / ",
];

async fn compare_init(make: impl Fn() -> Bundle) {
    let native = probe_init(make(), Under::Native).await;
    let runc = probe_init(make(), Under::Runc).await;
    compare(&native, &runc, &ALLOWED);
}

async fn compare_exec(make: impl Fn() -> Bundle, process: Process) {
    let native = probe_exec(make(), Under::Native, process.clone()).await;
    let runc = probe_exec(make(), Under::Runc, process).await;
    compare(&native, &runc, &ALLOWED);
}

#[tokio::test]
async fn a_default_container_is_confined_as_under_runc() {
    compare_init(|| Bundle::new("")).await;
}

#[tokio::test]
async fn an_exec_is_confined_as_under_runc() {
    compare_exec(|| Bundle::new(""), shell(PROBE)).await;
}

#[tokio::test]
async fn an_exec_of_another_user_is_confined_as_under_runc() {
    let mut process = shell(PROBE);
    process.user = User { uid: 33, gid: 33, additional_gids: vec![7, 8], umask: None };
    process.cwd = "/var".to_owned();
    compare_exec(|| Bundle::new(""), process).await;
}

#[tokio::test]
async fn a_container_of_another_user_is_confined_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let user = User { uid: 33, gid: 33, additional_gids: vec![5], umask: Some(0o027) };
        bundle.spec.process.user = user;
        bundle.spec.process.cwd = "/tmp".to_owned();
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_container_without_capabilities_and_new_privileges_is_confined_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        bundle.spec.process.no_new_privileges = true;
        bundle.spec.process.capabilities = Some(runtime::spec::Capabilities::default());
        bundle.spec.root.readonly = true;
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_container_with_ambient_capabilities_is_confined_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let all = runtime::defaults::capabilities();
        bundle.spec.process.user.uid = 33;
        bundle.spec.process.capabilities = Some(runtime::spec::Capabilities {
            bounding: all.clone(),
            effective: all.clone(),
            permitted: all.clone(),
            inheritable: all,
            ambient: vec!["CAP_NET_BIND_SERVICE".to_owned()],
        });
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_privileged_container_is_as_free_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        // Whoever runs the tests cannot give what they do not have.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = own.lines().find_map(|it| it.strip_prefix("CapEff:")).unwrap();
        let mask = u64::from_str_radix(line.trim(), 16).unwrap();
        let all: Vec<String> = runtime::capability::NAMES
            .iter()
            .enumerate()
            .filter(|(bit, name)| mask & 1 << bit != 0 && **name != "CHECKPOINT_RESTORE")
            .map(|(_, name)| format!("CAP_{name}"))
            .collect();
        bundle.spec.process.capabilities = Some(runtime::spec::Capabilities {
            bounding: all.clone(),
            effective: all.clone(),
            permitted: all,
            ..runtime::spec::Capabilities::default()
        });
        let linux = &mut bundle.spec.linux;
        linux.seccomp = None;
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
        linux.resources.devices = vec![runtime::spec::DeviceRule {
            allow: true,
            access: "rwm".to_owned(),
            ..runtime::spec::DeviceRule::default()
        }];
        for mount in &mut bundle.spec.mounts {
            mount.options.retain(|option| option != "ro");
            if mount.kind == "cgroup" {
                mount.options.push("rw".to_owned());
            }
        }
        bundle
    })
    .await;
}

#[tokio::test]
async fn mounts_devices_and_sysctls_are_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let shown = bundle.path().join("shown");
        fs::create_dir_all(shown.join("inner")).unwrap();
        fs::write(shown.join("file"), "text").unwrap();
        let directory = shown.to_string_lossy().into_owned();
        let file = shown.join("file").to_string_lossy().into_owned();
        bundle.bind(&directory, "/made/deep/directory", &["rbind", "rprivate"]);
        bundle.bind(&directory, "/made/read-only", &["rbind", "ro", "rprivate"]);
        bundle.bind(&file, "/made/file", &["bind", "ro", "nosuid", "rprivate"]);
        bundle.bind(&directory, "/made/slave", &["rbind", "rslave"]);
        let tmpfs = |destination: &str, options: &[&str]| runtime::spec::Mount {
            destination: destination.to_owned(),
            kind: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            options: options.iter().map(|it| (*it).to_owned()).collect(),
        };
        bundle.spec.mounts.push(tmpfs("/run", &["nosuid", "nodev", "size=1m", "mode=700"]));
        bundle.spec.mounts.push(tmpfs("/tmp", &["noexec"]));
        bundle.spec.linux.devices.push(runtime::spec::Device {
            path: "/dev/extra/full".to_owned(),
            kind: "c".to_owned(),
            major: 1,
            minor: 7,
            file_mode: Some(0o640),
            uid: Some(33),
            gid: Some(5),
        });
        let sysctl = &mut bundle.spec.linux.sysctl;
        sysctl.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        sysctl.insert("kernel.shmmax".to_owned(), "123456".to_owned());
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_joined_network_namespace_is_the_same_as_under_runc() {
    let namespace = NamedNetwork::new();
    compare_init(|| {
        let mut bundle = Bundle::new("");
        bundle.spec.linux.namespaces.retain(|it| it.kind != NamespaceKind::Network);
        let path = Some(namespace.path.clone());
        bundle.spec.linux.namespaces.push(Namespace { kind: NamespaceKind::Network, path });
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_container_that_shares_the_hosts_namespaces_is_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let kept = [NamespaceKind::Mount, NamespaceKind::Pid];
        bundle.spec.linux.namespaces.retain(|it| kept.contains(&it.kind));
        bundle.spec.hostname.clear();
        // Both need a namespace that is not the host's.
        bundle.spec.mounts.retain(|it| it.kind != "mqueue");
        bundle
    })
    .await;
}

#[tokio::test]
async fn a_private_cgroup_namespace_is_the_same_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let kind = NamespaceKind::Cgroup;
        bundle.spec.linux.namespaces.push(Namespace { kind, path: None });
        bundle
    })
    .await;
}

/// Ids 0 to 65535 inside are 100000 and up outside; the rootfs belongs to them.
fn in_user_namespace() -> Bundle {
    let mut bundle = Bundle::new("");
    let mapping = runtime::spec::IdMapping { container_id: 0, host_id: 100_000, size: 65_536 };
    let linux = &mut bundle.spec.linux;
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
    linux.uid_mappings = vec![mapping];
    linux.gid_mappings = vec![mapping];
    // Whoever starts a container for another user lets them reach it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bundle.path(), open).unwrap();
    let mut chown = std::process::Command::new("chown");
    chown.args(["-hR", "100000:100000"]).arg(bundle.rootfs());
    assert!(chown.status().unwrap().success());
    bundle
}

#[tokio::test]
async fn a_container_in_a_user_namespace_is_confined_as_under_runc() {
    compare_init(in_user_namespace).await;
}

#[tokio::test]
async fn an_exec_into_a_user_namespace_is_confined_as_under_runc() {
    compare_exec(in_user_namespace, shell(PROBE)).await;
}

#[tokio::test]
async fn limits_of_every_kind_are_set_as_under_runc() {
    compare_init(|| {
        let mut bundle = Bundle::new("");
        let limits = [
            ("AS", 1 << 34, u64::MAX),
            ("CORE", 0, 1 << 22),
            ("FSIZE", 1 << 22, 1 << 23),
            ("MEMLOCK", 1 << 15, 1 << 16),
            ("NPROC", 500, 600),
            ("STACK", 1 << 22, 1 << 23),
        ];
        bundle.spec.process.rlimits = limits
            .map(|(name, soft, hard)| Rlimit { kind: format!("RLIMIT_{name}"), soft, hard })
            .to_vec();
        bundle.spec.process.oom_score_adj = Some(500);
        bundle.spec.linux.resources.cpu.cpus = "0".to_owned();
        bundle.spec.linux.resources.cpu.mems = "0".to_owned();
        bundle.spec.linux.resources.memory.reservation = Some(32 * 1024 * 1024);
        bundle
    })
    .await;
}

#[tokio::test]
async fn an_exec_has_the_limits_of_its_container() {
    let (output, bundle) = (shell("ulimit -n; ulimit -Hn"), Bundle::new(""));
    let lines = probe_exec(bundle, Under::Native, output).await;
    assert_eq!(lines, ["1024", "4096"]);
}

#[tokio::test]
async fn a_fresh_program_finds_no_signal_ignored_or_blocked() {
    let output = Bundle::new("exec grep -E '^Sig(Ign|Blk)' /proc/self/status").run().await;
    let zeros = "0000000000000000";
    assert_eq!(output.ok(), format!("SigBlk:\t{zeros}\nSigIgn:\t{zeros}\n"));
}

/// A network namespace with a name, as a daemon prepares them.
struct NamedNetwork {
    name: String,
    path: std::path::PathBuf,
}

impl NamedNetwork {
    fn new() -> Self {
        let name = format!("skep-test-{}", std::process::id());
        let ip = common::find("ip", "iproute2");
        let status = std::process::Command::new(ip).args(["netns", "add", &name]).status();
        assert!(status.unwrap().success());
        let path = format!("/run/netns/{name}").into();
        Self { name, path }
    }
}

impl Drop for NamedNetwork {
    fn drop(&mut self) {
        let ip = common::find("ip", "iproute2");
        let _ = std::process::Command::new(ip).args(["netns", "delete", &self.name]).status();
    }
}

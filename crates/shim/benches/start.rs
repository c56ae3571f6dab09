//! How long a container takes from spawn to the first byte it writes: the shim with its built-in
//! runtime against Debian's runc and crun, interleaved on one bundle.
//!
//! `cargo bench -p shim --features client --bench start [--target x86_64-unknown-linux-musl]`, as
//! root. Processor time is that of all processes involved, the container's included.

#![allow(unsafe_code, reason = "a mount namespace of its own is made before any thread exists")]
#![allow(clippy::unwrap_used, reason = "the helpers are those of the tests")]
#![allow(clippy::zombie_processes, reason = "`run` waits for every child there is")]
#![allow(clippy::print_stdout, reason = "printing figures is the purpose")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use rustix::thread::UnshareFlags;
use shim::config::{CONFIG_FILE, EXIT_FILE, SPEC_FILE, write_json};

const ROUNDS: usize = 50;

/// Starts the container of a bundle with this output. Returns its output where that is another, and
/// what must be kept open until it has ended.
type Start = Box<dyn Fn(&Path, usize, Stdio) -> Vec<OwnedFd>>;

/// One way to start the bundle's container.
struct Contender {
    name: &'static str,
    start: Start,
    times: Vec<Duration>,
    processor: Duration,
}

fn main() {
    leave_hybrid_layout();
    set_child_subreaper(Some(getpid())).expect("a subreaper needs no right");
    let mut bundle = common::Bundle::new("");
    bundle.spec.process.args = ["/bin/echo", "x"].map(str::to_owned).to_vec();
    write_json(&bundle.path().join(SPEC_FILE), &bundle.spec).expect("the directory is ours");
    write_json(&bundle.path().join(CONFIG_FILE), &bundle.config).expect("the directory is ours");
    let mut contenders = contenders();
    for round in 0..=ROUNDS {
        for contender in &mut contenders {
            let (time, processor) = run(contender, bundle.path(), round);
            // The first round only warms the caches.
            if round > 0 {
                contender.times.push(time);
                contender.processor += processor;
            }
        }
    }
    report(&mut contenders);
}

/// Debian's crun refuses a host that has version 2 mounted beside version 1, so the benchmark runs
/// in a mount namespace without the former.
fn leave_hybrid_layout() {
    // SAFETY: Nothing shares this process's mounts, it has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.expect("run as root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("the namespace is ours");
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    // A host without it needs no change.
    if unmount(UNIFIED, UnmountFlags::DETACH).is_ok() {
        // The others write there all the same; what they leave goes with this namespace.
        mount("tmpfs", UNIFIED, "tmpfs", MountFlags::empty(), None).expect("the namespace is ours");
    }
}

fn contenders() -> Vec<Contender> {
    let contender =
        |name, start| Contender { name, start, times: Vec::new(), processor: Duration::ZERO };
    vec![
        contender("skep shim", Box::new(|bundle, _, stdout| start_shim(bundle, stdout))),
        contender("runc", oci(common::find("runc", "runc"))),
        contender("crun", oci(common::find("crun", "crun"))),
    ]
}

fn oci(program: std::path::PathBuf) -> Start {
    Box::new(move |bundle, round, stdout| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(bundle.join("state")).arg("run").arg("--bundle").arg(bundle);
        command.arg(format!("skep-bench-{}-{round}", std::process::id()));
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::inherit());
        command.spawn().expect("the runtime is installed");
        Vec::new()
    })
}

/// The requests are sent before the shim runs: it finds them when it gets there.
fn start_shim(bundle: &Path, stdout: Stdio) -> Vec<OwnedFd> {
    let (own, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("sockets are to be had");
    let (output, far_output) = common::pipe();
    send(&own, br#"{"id":1,"request":{"kind":"attach","stdout":true}}"#, &[far_output.as_fd()]);
    send(&own, br#"{"id":2,"request":{"kind":"start"}}"#, &[]);
    let mut command = Command::new(common::SHIM);
    command.arg("shim").arg(bundle).stdin(Stdio::from(other)).stdout(Stdio::null());
    command.spawn().expect("the shim is built");
    drop(stdout);
    vec![output, own]
}

fn send(socket: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::empty())
        .expect("the socket has room");
}

/// Time to the first byte, and processor time until everything is gone.
fn run(contender: &Contender, bundle: &Path, round: usize) -> (Duration, Duration) {
    let _ = std::fs::remove_file(bundle.join(EXIT_FILE));
    let before = processor_time();
    let (output, far) = common::pipe();
    let begin = Instant::now();
    let mut kept = (contender.start)(bundle, round, Stdio::from(far));
    let mut output = if kept.is_empty() { File::from(output) } else { File::from(kept.remove(0)) };
    let mut byte = [0];
    output.read_exact(&mut byte).expect("the container writes");
    let time = begin.elapsed();
    while let Ok(_) | Err(Errno::INTR) = wait(WaitOptions::empty()) {}
    drop(kept);
    (time, processor_time() - before)
}

/// Processor time of all children that have ended.
fn processor_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: The structure is the kernel's, and zeroed before.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| {
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
            Duration::from_secs(seconds) + Duration::from_micros(microseconds)
        })
        .sum()
}

fn report(contenders: &mut [Contender]) {
    println!("{ROUNDS} rounds, interleaved; spawn to first byte, and processor time per run");
    println!(
        "{:<10} {:>9} {:>9} {:>9} {:>9}  median against ours",
        "", "median", "p90", "best", "cpu"
    );
    let mut ours = None;
    for contender in contenders {
        contender.times.sort();
        let at = |share: usize| contender.times[(contender.times.len() - 1) * share / 100];
        let milliseconds = |it: Duration| format!("{:.2} ms", it.as_secs_f64() * 1000.0);
        let median = at(50);
        let ours = *ours.get_or_insert(median);
        println!(
            "{:<10} {:>9} {:>9} {:>9} {:>9}  {:.2}x",
            contender.name,
            milliseconds(median),
            milliseconds(at(90)),
            milliseconds(at(0)),
            milliseconds(contender.processor / u32::try_from(ROUNDS).expect("few rounds")),
            median.as_secs_f64() / ours.as_secs_f64(),
        );
    }
}

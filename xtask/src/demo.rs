//! A swarm on this machine in one command, and its removal in another.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;

use crate::{dist, host};

/// Where the example answers.
const PORT: u16 = 8080;
const REPLICAS: usize = 3;

/// What the demo does: up, unless told otherwise.
#[derive(Clone, Copy, Debug, Default, Subcommand)]
pub(crate) enum Step {
    /// Build, start, deploy (the default)
    #[default]
    Up,
    /// Take everything down again and leave nothing behind
    Down,
}

pub(crate) fn run(step: Step) -> anyhow::Result<()> {
    host::must_be_root("the demo")?;
    match step {
        Step::Up => up(),
        Step::Down => down(),
    }
}

fn state() -> PathBuf {
    host::root().join("target/demo")
}

fn exec_root() -> &'static Path {
    Path::new("/run/skep-demo")
}

fn socket() -> String {
    format!("unix://{}/docker.sock", exec_root().display())
}

fn roots() -> [std::ffi::OsString; 4] {
    ["--data-root".into(), state().join("data").into(), "--exec-root".into(), exec_root().into()]
}

fn docker(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").args(["-H", &socket()]).args(arguments);
    command
}

fn up() -> anyhow::Result<()> {
    ensure!(
        !exec_root().exists(),
        "a demo is there already; take it down with: cargo xtask demo down"
    );
    host::install(host::DEMO_PACKAGES)?;
    let skep = dist::build()?;
    std::fs::create_dir_all(state()).context("create target/demo")?;
    std::fs::copy(&skep, state().join("skep")).context("copy the binary")?;
    start_daemon()?;
    println!("== making a swarm");
    host::run(&mut docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]))?;
    println!("== loading the example's image");
    load_image(&skep.with_file_name("whoami"))?;
    println!("== deploying {REPLICAS} replicas");
    let (replicas, publish) = (REPLICAS.to_string(), format!("{PORT}:80"));
    host::run(&mut docker(&[
        "service",
        "create",
        "--name",
        "whoami",
        "--replicas",
        &replicas,
        "--publish",
        &publish,
        "whoami",
    ]))?;
    show_answers()?;
    println!();
    println!("The service answers at http://127.0.0.1:{PORT}/, each time from another replica.");
    println!("Point docker at the swarm:   export DOCKER_HOST={}", socket());
    println!("       or with a context:    docker context create skep --docker host={}", socket());
    println!("Then, for example:           docker service scale whoami=5");
    println!("Take everything down again:  cargo xtask demo down");
    Ok(())
}

fn start_daemon() -> anyhow::Result<()> {
    println!("== starting a node");
    let log_path = state().join("daemon.log");
    let log = std::fs::File::create(&log_path).context("create the daemon's log")?;
    let mut daemon = Command::new(state().join("skep"));
    daemon.arg("daemon").args(roots()).args(["--cgroup-parent", "/skep-demo", "--pidfile"]);
    daemon
        .arg(state().join("daemon.pid"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // A session of its own: the daemon goes on when this terminal is closed.
    let mut child = daemon.process_group(0).spawn().context("start the daemon")?;
    let end = Instant::now() + Duration::from_secs(30);
    while !docker(&["version"]).output().is_ok_and(|output| output.status.success()) {
        if let Some(status) = child.try_wait()? {
            bail!("the daemon ended with {status}; its log is {}", log_path.display());
        }
        ensure!(
            Instant::now() < end,
            "the daemon does not answer; its log is {}",
            log_path.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// An image of one static binary: a layer of one file, and the command that runs it.
fn load_image(whoami: &Path) -> anyhow::Result<()> {
    let directory = whoami.parent().context("the binary has a folder")?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(directory).args(["--owner=0", "--group=0", "-cf", "-", "whoami"]);
    let mut archive = tar.stdout(Stdio::piped()).spawn().context("run tar")?;
    let stdout = archive.stdout.take().context("tar's output")?;
    let mut import = docker(&[
        "import",
        "--change",
        "CMD [\"/whoami\"]",
        "--change",
        "EXPOSE 80",
        "-",
        "whoami:latest",
    ]);
    host::run(import.stdin(stdout))?;
    ensure!(archive.wait()?.success(), "tar failed");
    Ok(())
}

fn show_answers() -> anyhow::Result<()> {
    println!("== asking http://127.0.0.1:{PORT}/");
    let mut names = BTreeSet::new();
    for _ in 0..100 {
        let url = format!("http://127.0.0.1:{PORT}/");
        let output =
            Command::new("curl").args(["-sS", "-m", "5", &url]).output().context("run curl")?;
        ensure!(output.status.success(), "no answer: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let name = text.lines().next().unwrap_or_default().to_owned();
        if names.insert(name.clone()) {
            println!("{name}");
            std::io::stdout().flush()?;
        }
        if names.len() == REPLICAS {
            return Ok(());
        }
    }
    bail!("only {} of {REPLICAS} replicas answered", names.len())
}

fn down() -> anyhow::Result<()> {
    let pid = std::fs::read_to_string(state().join("daemon.pid")).ok();
    if let Some(pid) =
        pid.and_then(|pid| pid.trim().parse().ok()).and_then(rustix::process::Pid::from_raw)
    {
        stop_daemon(pid)?;
    }
    let skep = state().join("skep");
    if skep.exists() {
        let mut purge = Command::new(&skep);
        purge.arg("purge").args(roots()).args(["--cgroup-parent", "/skep-demo"]);
        host::run(&mut purge)?;
    }
    match std::fs::remove_dir_all(state()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove target/demo")
        }
        _ => Ok(()),
    }
}

/// The daemon is known by its pid file and by its name, so that nobody else's process is ended.
fn stop_daemon(pid: rustix::process::Pid) -> anyhow::Result<()> {
    let number = pid.as_raw_nonzero();
    let is_ours = || {
        let program = std::fs::read_link(format!("/proc/{number}/exe"));
        program.is_ok_and(|program| program.starts_with(state()))
    };
    if !is_ours() {
        return Ok(());
    }
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("stop the daemon")?;
    let end = Instant::now() + Duration::from_secs(30);
    while is_ours() {
        ensure!(Instant::now() < end, "the daemon (process {number}) does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

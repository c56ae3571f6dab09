//! A swarm of several hosts on this machine in one command, what can happen to a host in one command each, and its removal.

mod host;
mod network;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use testbed::Switch;

use crate::{dist, host as machine};
pub(crate) use host::Host;

/// Of the switch's namespace, of the machine's link to it, and what the names of all else begin with.
const NAME: &str = "skep-cluster";

/// Hosts that fit in the subnet beside the machine.
const HOSTS_MAX: u8 = 200;

/// How long the nodes may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a state that is waited for.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// What `cargo xtask cluster` is asked for.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// How many hosts
    #[arg(default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(HOSTS_MAX)))]
    hosts: u8,
    /// How many of them are managers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    managers: u8,
    #[command(subcommand)]
    step: Option<Step>,
}

/// What can happen to one host, or to all.
#[derive(Debug, Subcommand)]
enum Step {
    /// Start the daemon of a host again
    Start { host: String },
    /// Stop the daemon of a host in good order; its containers go on
    Stop { host: String },
    /// End the daemon of a host as a crash does (SIGKILL); its containers go on
    Kill { host: String },
    /// Stop the daemon of a host in its tracks (SIGSTOP)
    Freeze { host: String },
    /// Let a frozen daemon go on
    Thaw { host: String },
    /// Cut a host off from all others
    Partition { host: String },
    /// Connect a host again
    Heal { host: String },
    /// Show the hosts
    Status,
    /// Take everything down and leave nothing behind
    Down,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    machine::must_be_root("a cluster")?;
    let Some(step) = &options.step else {
        let hosts = up(options.hosts, options.managers)?;
        println!("{}", usage(&hosts)?);
        return Ok(());
    };
    match step {
        Step::Start { host } => find(host)?.start(),
        Step::Stop { host } => find(host)?.stop(),
        Step::Kill { host } => find(host)?.kill(),
        Step::Freeze { host } => find(host)?.freeze(),
        Step::Thaw { host } => find(host)?.thaw(),
        Step::Partition { host } => Ok(switch().cut(&find(host)?.name)?),
        Step::Heal { host } => Ok(switch().heal(&find(host)?.name)?),
        Step::Status => {
            println!("{}", status()?);
            Ok(())
        }
        Step::Down => down(),
    }
}

/// What is kept on the disk.
fn state() -> PathBuf {
    machine::root().join("target/cluster")
}

/// What goes with a restart of the machine.
fn run_directory() -> &'static Path {
    Path::new("/run/skep-cluster")
}

fn program() -> PathBuf {
    state().join("skep")
}

fn switch() -> Switch {
    Switch::named(NAME)
}

/// Builds Skep, starts the hosts, and makes them a swarm.
pub(crate) fn up(count: u8, managers: u8) -> anyhow::Result<Vec<Host>> {
    ensure!(
        !run_directory().exists() && !switch().exists(),
        "a cluster is there already; take it down with: cargo xtask cluster down"
    );
    machine::install(machine::DEMO_PACKAGES)?;
    let skep = dist::build()?;
    std::fs::create_dir_all(state()).context("create target/cluster")?;
    std::fs::copy(&skep, program()).context("copy the binary")?;
    println!("== starting {count} hosts");
    let subnet = network::free_subnet()?;
    switch().create()?;
    switch().connect_machine("machine", NAME, &subnet.machine())?;
    for number in 1..=count {
        Host::create(&format!("host{number}"), &subnet.host(number))?;
    }
    let hosts = hosts()?;
    for host in &hosts {
        host.spawn()?;
    }
    for host in &hosts {
        host.wait()?;
    }
    println!("== making a swarm");
    make_swarm(&hosts, usize::from(managers))?;
    Ok(hosts)
}

/// The hosts that are there, in order.
fn hosts() -> anyhow::Result<Vec<Host>> {
    let entries = std::fs::read_dir(run_directory());
    let Ok(entries) = entries else { return Ok(Vec::new()) };
    let mut hosts = Vec::new();
    for entry in entries {
        hosts.push(Host::load(&entry?.file_name().to_string_lossy())?);
    }
    hosts.sort_by_key(|host| (host.name.len(), host.name.clone()));
    Ok(hosts)
}

fn find(name: &str) -> anyhow::Result<Host> {
    let hosts = hosts()?;
    let names: Vec<_> = hosts.iter().map(|host| host.name.clone()).collect();
    let found = hosts.into_iter().find(|host| host.name == name);
    found.with_context(|| match names.len() {
        0 => "there is no cluster; start one with: cargo xtask cluster".to_owned(),
        _ => format!("there is no host {name}, but {}", names.join(", ")),
    })
}

fn make_swarm(hosts: &[Host], managers: usize) -> anyhow::Result<()> {
    let [first, others @ ..] = hosts else { bail!("a swarm needs a host") };
    let mut init = first.docker(&["swarm", "init", "--advertise-addr", &first.address]);
    machine::run(init.stdout(Stdio::null()))?;
    let token = |role| first.answer(&["swarm", "join-token", "-q", role]);
    let (manager, worker) = (token("manager")?, token("worker")?);
    let remote = format!("{}:2377", first.address);
    // All at once: the swarm takes them as they come.
    let mut joins = Vec::new();
    for (index, host) in others.iter().enumerate() {
        let token = if index + 1 < managers { &manager } else { &worker };
        let join = ["swarm", "join", "--token", token, "--advertise-addr", &host.address, &remote];
        let joining = host.docker(&join).stdout(Stdio::null()).spawn().context("run docker")?;
        joins.push((host, joining));
    }
    for (host, mut joining) in joins {
        let status = joining.wait()?;
        ensure!(status.success(), "{} did not join; its log is {}", host.name, host.log.display());
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let states = first.answer(&["node", "ls", "--format", "{{.Status}}"])?;
        if states.lines().filter(|state| *state == "Ready").count() == hosts.len() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not all nodes are ready: {states}");
        std::thread::sleep(POLL);
    }
}

/// How to go on from here.
pub(crate) fn usage(hosts: &[Host]) -> anyhow::Result<String> {
    let first = hosts.first().context("a cluster has hosts")?;
    let mut text = format!("\n{}\n", table(hosts));
    let address = first.place.address();
    write!(
        text,
        "Point docker at a host:      docker -H {address} node ls
             or for good:    export DOCKER_HOST={address}
See what a failure does:     cargo xtask cluster kill|freeze|partition HOST, stop HOST
              and after:     cargo xtask cluster start|thaw|heal HOST, status
Take everything down again:  cargo xtask cluster down"
    )?;
    Ok(text)
}

fn status() -> anyhow::Result<String> {
    let hosts = hosts()?;
    ensure!(!hosts.is_empty(), "there is no cluster; start one with: cargo xtask cluster");
    Ok(table(&hosts))
}

fn table(hosts: &[Host]) -> String {
    let mut text =
        format!("{:8} {:12} {:8} {:5} DOCKER_HOST\n", "HOST", "ADDRESS", "DAEMON", "LINK");
    for host in hosts {
        let link = if network::is_cut(&host.name) { "cut" } else { "up" };
        let (name, address, place) = (&host.name, &host.address, host.place.address());
        let line = format!("{name:8} {address:12} {:8} {link:5} {place}\n", host.daemon().word());
        text += &line;
    }
    text
}

/// Removes all hosts; what one does not let go of does not keep the others.
pub(crate) fn down() -> anyhow::Result<()> {
    let mut failure = None;
    for host in hosts()? {
        if let Err(error) = host.remove() {
            failure = failure.or(Some(error.context(format!("take {} down", host.name))));
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if switch().exists() {
        switch().remove()?;
    }
    for directory in [run_directory(), &state()] {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The docker command, for the daemon at `address`.
fn docker(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").args(["-H", address]).args(arguments);
    command
}

//! One host of the cluster: its folders, its namespace, and its daemon, which is known by its pid file and its program.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{NAME, PATIENCE, POLL, docker, program, run_directory, state, switch};
use crate::host as machine;

/// A host of the cluster.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(super) place: testbed::Daemon,
    pub(super) log: PathBuf,
    machine: testbed::Host,
}

/// What a host's daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    Running(Pid),
    Frozen(Pid),
    Stopped,
}

impl Daemon {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Running(_) => "running",
            Self::Frozen(_) => "frozen",
            Self::Stopped => "stopped",
        }
    }

    fn pid(self) -> Option<Pid> {
        match self {
            Self::Running(pid) | Self::Frozen(pid) => Some(pid),
            Self::Stopped => None,
        }
    }
}

impl Host {
    /// Makes the host, on which nothing runs yet; `address` has its prefix length.
    pub(super) fn create(name: &str, address: &str) -> anyhow::Result<()> {
        let directory = run_directory().join(name);
        std::fs::create_dir_all(&directory).context("create the run directory")?;
        std::fs::create_dir_all(state().join(name)).context("create the state directory")?;
        let bare = address.split('/').next().unwrap_or(address);
        std::fs::write(directory.join("address"), bare).context("write down the address")?;
        let host = Self::load(name)?;
        host.machine.create()?;
        Ok(switch().connect(name, &host.machine.namespace, address)?)
    }

    /// The host of this name.
    pub(super) fn load(name: &str) -> anyhow::Result<Self> {
        let (directory, state) = (run_directory().join(name), state().join(name));
        let address = std::fs::read_to_string(directory.join("address"));
        Ok(Self {
            name: name.to_owned(),
            address: address.context("read the host's address")?,
            place: testbed::Daemon {
                data_root: state.join("data"),
                exec_root: directory.join("exec"),
                socket: directory.join("docker.sock"),
                pidfile: directory.join("pid"),
                group: format!("{NAME}-{name}"),
            },
            log: state.join("log"),
            machine: testbed::Host {
                namespace: format!("{NAME}-{name}"),
                hostname: name.to_owned(),
                mounts: None,
            },
        })
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Command {
        docker(&self.place.address(), arguments)
    }

    /// What docker prints, without the last line feed.
    pub(crate) fn answer(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.docker(arguments).output().context("run docker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What the daemon does now. Nobody else's process is taken for it.
    pub(super) fn daemon(&self) -> Daemon {
        let text = std::fs::read_to_string(&self.place.pidfile).unwrap_or_default();
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
            return Daemon::Stopped;
        };
        let program = std::fs::read_link(folder(pid).join("exe"));
        let is_ours = program.is_ok_and(|program| program.starts_with(state()));
        match letter(pid) {
            _ if !is_ours => Daemon::Stopped,
            Some('T') => Daemon::Frozen(pid),
            Some('Z') | None => Daemon::Stopped,
            Some(_) => Daemon::Running(pid),
        }
    }

    pub(super) fn start(&self) -> anyhow::Result<()> {
        ensure!(self.daemon() == Daemon::Stopped, "the daemon of {} runs already", self.name);
        self.spawn()?;
        self.wait()
    }

    /// Starts the daemon, which may take a moment to answer.
    pub(super) fn spawn(&self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log);
        let log = log.context("open the daemon's log")?;
        let mut daemon = self.machine.command(program());
        daemon.arg("daemon").args(self.place.flags()).stdin(Stdio::null());
        daemon.stdout(log.try_clone()?).stderr(log);
        // A process group of its own: the daemon goes on when this terminal is closed.
        daemon.process_group(0).spawn().context("start the daemon")?;
        Ok(())
    }

    /// Waits until the daemon answers.
    pub(super) fn wait(&self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.answer(&["version"]).is_err() {
            let (name, log) = (&self.name, self.log.display());
            ensure!(Instant::now() < end, "the daemon of {name} does not answer; its log is {log}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    pub(super) fn stop(&self) -> anyhow::Result<()> {
        let pid = self.running()?;
        kill_process(pid, Signal::TERM).context("stop the daemon")?;
        kill_process(pid, Signal::CONT).context("wake the daemon")?;
        self.wait_for_end(pid)
    }

    pub(super) fn kill(&self) -> anyhow::Result<()> {
        let pid = self.running()?;
        kill_process(pid, Signal::KILL).context("kill the daemon")?;
        self.wait_for_end(pid)
    }

    pub(super) fn freeze(&self) -> anyhow::Result<()> {
        kill_process(self.running()?, Signal::STOP).context("freeze the daemon")
    }

    pub(super) fn thaw(&self) -> anyhow::Result<()> {
        kill_process(self.running()?, Signal::CONT).context("thaw the daemon")
    }

    fn running(&self) -> anyhow::Result<Pid> {
        let pid = self.daemon().pid();
        pid.with_context(|| format!("the daemon of {} does not run", self.name))
    }

    fn wait_for_end(&self, pid: Pid) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !has_ended(pid) {
            ensure!(Instant::now() < end, "the daemon of {} does not end", self.name);
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Ends whatever runs on the host and removes what it made.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        if self.daemon() != Daemon::Stopped {
            self.kill()?;
        }
        if self.machine.exists() {
            if program().exists() {
                let mut purge = self.machine.command(program());
                machine::run(purge.arg("purge").args(self.place.roots()))?;
            }
            self.machine.remove()?;
        }
        std::fs::remove_dir_all(run_directory().join(&self.name)).context("remove its run folder")
    }
}

fn folder(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

/// The letter of the process' state; nothing when there is no such process.
fn letter(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(folder(pid).join("stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// Whether the process has let go of all it had. One that is killed loses its program first, and its files, with the
/// lock on its data, only with its last thread.
fn has_ended(pid: Pid) -> bool {
    let threads = std::fs::read_dir(folder(pid).join("task"));
    let is_last = threads.is_ok_and(|threads| threads.count() <= 1);
    letter(pid).is_none_or(|letter| letter == 'Z' && is_last)
}

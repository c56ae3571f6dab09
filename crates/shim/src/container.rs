//! The container behind one interface, whichever runtime runs it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use runtime::cgroup::Cgroup;
use runtime::external::External;
use runtime::native::{self, Exec, Stdio};
use runtime::spec::{Mount, Process, Resources, Spec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recvmsg, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::config::{Config, RuntimeChoice, SPEC_FILE};

/// Where a container finds its process 1 when the shim provides it.
const INIT_PATH: &str = "/sbin/docker-init";
/// Socket an external runtime sends a terminal to; relative to the bundle.
const CONSOLE_FILE: &str = "console.sock";

/// A process that has just been started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) notes: Vec<String>,
}

/// One container and how it is run.
#[derive(Debug)]
pub(crate) struct Container {
    bundle: PathBuf,
    init: Option<PathBuf>,
    external: Option<External>,
}

/// What the rest of the shim needs to know of a specification.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) terminal: bool,
    pub(crate) group: Cgroup,
}

impl Container {
    pub(crate) fn new(bundle: &Path, config: &Config) -> Self {
        let external = match &config.runtime {
            RuntimeChoice::Native => None,
            RuntimeChoice::External { program, root } => Some(External {
                program: program.clone(),
                root: root.clone(),
                id: config.id.clone(),
            }),
        };
        Self { bundle: bundle.to_owned(), init: config.init.clone(), external }
    }

    /// Reads the specification. It is not kept: a shim lives long and shall be small.
    pub(crate) fn read_spec(&self) -> Result<Spec, runtime::Error> {
        let path = self.bundle.join(SPEC_FILE);
        let text = fs::read(&path)
            .map_err(|source| runtime::Error::ReadSpec { path: path.clone(), source })?;
        let mut spec: Spec = serde_json::from_slice(&text)
            .map_err(|source| runtime::Error::ParseSpec { path, source })?;
        if let Some(init) = &self.init {
            add_init(&mut spec, init);
        }
        Ok(spec)
    }

    pub(crate) fn summary(spec: &Spec) -> Result<Summary, runtime::Error> {
        let group = Cgroup::new(&spec.linux.cgroups_path)?;
        Ok(Summary { terminal: spec.process.terminal, group })
    }

    pub(crate) fn start(&self, spec: &Spec, stdio: Stdio) -> Result<Launched, runtime::Error> {
        let Some(external) = &self.external else {
            return native::start(spec, &self.bundle, stdio).map(launched);
        };
        if self.init.is_some() {
            // The runtime reads the file, so the added process 1 must stand in it.
            let path = self.bundle.join(SPEC_FILE);
            crate::config::write_json(&path, spec)
                .map_err(|source| runtime::Error::ReadSpec { path, source })?;
        }
        with_console(stdio, |stdio, console| external.start(&self.bundle, stdio, console))
    }

    pub(crate) fn exec(
        &self,
        init_pid: i32,
        exec_id: &str,
        process: &Process,
        stdio: Stdio,
    ) -> Result<Launched, runtime::Error> {
        let spec = self.read_spec()?;
        let Some(external) = &self.external else {
            return native::exec(&Exec { spec: &spec, init_pid, process }, stdio).map(launched);
        };
        let process = native::confine(&spec, process);
        with_console(stdio, |stdio, console| {
            external.exec(&self.bundle, exec_id, &process, stdio, console)
        })
    }

    pub(crate) fn pause(&self, group: &Cgroup, paused: bool) -> Result<(), runtime::Error> {
        match (&self.external, paused) {
            (None, _) => group.freeze(paused),
            (Some(external), true) => external.pause(),
            (Some(external), false) => external.resume(),
        }
    }

    pub(crate) fn update(
        &self,
        group: &Cgroup,
        resources: &Resources,
    ) -> Result<(), runtime::Error> {
        match &self.external {
            None => group.limit(resources).map(drop),
            Some(external) => external.update(&self.bundle, resources),
        }
    }

    /// Sends a signal to every process of the container.
    pub(crate) fn signal_all(&self, group: &Cgroup, signal: i32) -> Result<(), runtime::Error> {
        match (&self.external, Signal::from_named_raw(signal)) {
            (Some(external), _) => external.kill(signal, true),
            (None, Some(signal)) => group.signal_all(signal),
            (None, None) => Err(runtime::Error::InvalidSpec { reason: format!("signal {signal}") }),
        }
    }

    /// Ends what is left and removes the cgroup.
    pub(crate) fn remove(&self, group: &Cgroup) -> Result<(), runtime::Error> {
        if let Some(external) = &self.external {
            // It may have been deleted by hand; the group below is what counts.
            let _ = external.delete();
        }
        group.kill_and_remove()
    }
}

fn launched(started: native::Started) -> Launched {
    Launched { pid: started.pid, console: started.console, notes: started.notes }
}

/// Puts our process 1 in front of the command.
fn add_init(spec: &mut Spec, init: &Path) {
    if spec.process.args.first().is_some_and(|first| first == INIT_PATH) {
        return;
    }
    spec.mounts.push(Mount {
        destination: INIT_PATH.to_owned(),
        kind: "bind".to_owned(),
        source: init.to_string_lossy().into_owned(),
        options: ["bind", "ro", "rprivate"].map(str::to_owned).to_vec(),
    });
    spec.process.args.splice(0..0, [INIT_PATH.to_owned(), "--".to_owned()]);
}

/// Runs an external runtime, receiving the terminal it makes.
fn with_console(
    stdio: Stdio,
    run: impl FnOnce(Stdio, Option<&Path>) -> Result<i32, runtime::Error>,
) -> Result<Launched, runtime::Error> {
    if !matches!(stdio, Stdio::Terminal) {
        let pid = run(stdio, None)?;
        return Ok(Launched { pid, console: None, notes: Vec::new() });
    }
    let fault = |errno| runtime::Error::Step { step: "receive terminal".to_owned(), errno };
    let path = Path::new(CONSOLE_FILE);
    let _ = fs::remove_file(path);
    let listener = listen_at(path).map_err(fault)?;
    let pid = run(stdio, Some(path))?;
    let console = receive_console(&listener).map_err(fault)?;
    let _ = fs::remove_file(path);
    Ok(Launched { pid, console: Some(console), notes: Vec::new() })
}

fn listen_at(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    listen(&listener, 1)?;
    Ok(listener)
}

fn receive_console(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use std::mem::MaybeUninit;
    let connection = accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&connection, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let console = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    console.ok_or(rustix::io::Errno::BADMSG)
}

/// A descriptor that refers to exactly this process.
pub(crate) fn pidfd_of(pid: i32) -> Option<OwnedFd> {
    Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
}

/// When a process started, in clock ticks since boot; zero when it is gone.
pub(crate) fn start_ticks(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; the start time is the 20th field after it.
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

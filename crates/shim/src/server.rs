//! The shim's one loop: signals, the container's streams, the daemons' requests.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use runtime::native::Stdio;
use runtime::process;
use runtime::spec::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, WaitOptions, getpid, set_child_subreaper, set_dumpable_behavior, setsid,
    wait,
};

use crate::config::{
    CONFIG_FILE, Config, EXIT_FILE, ExitRecord, SOCKET_FILE, STATE_FILE, StateRecord, read_json,
    write_json,
};
use crate::connection::{Connection, Incoming};
use crate::container::{Container, Summary, pidfd_of, start_ticks};
use crate::log::Log;
use crate::protocol::{Answer, Fault, Push, Request, Started, State, Status, VERSION};
use crate::streams::{self, Streams, Token};
use crate::sys;
use crate::time::now_ns;

/// Daemons connected at a time.
const CONNECTIONS_MAX: usize = 16;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 8;
/// Processes brought in by exec at a time.
const EXECS_MAX: usize = 1024;
/// How long output of a container that has ended is waited for when some process outside keeps
/// its streams open, in nanoseconds.
const DRAIN_NS: u64 = 2_000_000_000;
/// How long clients may take to read the last output, in nanoseconds.
const LINGER_NS: u64 = 10_000_000_000;

type Outcome = Result<(Answer, Option<OwnedFd>), Fault>;

/// A process brought in by exec.
#[derive(Debug)]
struct Exec {
    id: String,
    pid: i32,
    pidfd: Option<OwnedFd>,
}

/// A container that runs.
#[derive(Debug)]
struct Running {
    pid: i32,
    pidfd: Option<OwnedFd>,
    started_at_ns: u64,
    notes: Vec<String>,
    summary: Summary,
}

/// The container has ended; its last output is being read.
#[derive(Debug)]
struct Ending {
    exit_code: i32,
    exited_at_ns: u64,
    until_ns: u64,
}

#[derive(Debug)]
struct Server {
    container: Container,
    config: Config,
    status: Status,
    running: Option<Running>,
    ending: Option<Ending>,
    exit: Option<ExitRecord>,
    execs: Vec<Exec>,
    streams: Streams,
    /// None once the end is told: whoever comes then shall find the exit record, and the next shim
    /// of this bundle makes a socket of its own.
    listener: Option<OwnedFd>,
    signals: OwnedFd,
    connections: Vec<Connection>,
    next_connection: u64,
    linger_until_ns: u64,
    /// Whether the pages that only the start needed are given back.
    is_settled: bool,
}

/// What a ready descriptor is.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Signals,
    Listener,
    Connection(u64, PollFlags),
    Stream(Token),
}

/// Runs the shim of the bundle directory; returns at the end of its life.
pub(crate) fn run(bundle: &Path) -> Result<(), runtime::Error> {
    let step = |step: &str, errno| runtime::Error::Step { step: step.to_owned(), errno };
    let io = |step_text: String| {
        move |error: std::io::Error| runtime::Error::Step {
            step: step_text,
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }
    };
    let bundle =
        fs::canonicalize(bundle).map_err(io(format!("open bundle {}", bundle.display())))?;
    rustix::process::chdir(&bundle).map_err(|errno| step("enter bundle", errno))?;
    let config: Config = read_json(Path::new(CONFIG_FILE))
        .map_err(io(format!("read {CONFIG_FILE}")))?
        .unwrap_or_default();
    let log =
        Log::open(&config.log).map_err(io(format!("open log {}", config.log.path.display())))?;
    let listener = listen_at(SOCKET_FILE).map_err(|errno| step("listen", errno))?;
    // From here on the daemon's wait for this process is over and the socket is there.
    if process::fork().map_err(|errno| step("fork", errno))? != 0 {
        process::exit_now(0);
    }
    let signals = detach(&config).map_err(|errno| step("detach from daemon", errno))?;
    let first = take_first_connection().map_err(|errno| step("take connection", errno))?;
    let mut server = Server {
        container: Container::new(&bundle, &config),
        status: Status::Created,
        running: None,
        ending: None,
        exit: None,
        execs: Vec::new(),
        streams: Streams::new(log, config.stdin_once),
        listener: Some(listener),
        signals,
        connections: Vec::new(),
        next_connection: 1,
        linger_until_ns: 0,
        is_settled: false,
        config,
    };
    if let Some(first) = first {
        server.add_connection(first);
    }
    while !server.is_over() {
        server.turn().map_err(|errno| step("wait for events", errno))?;
    }
    server.close_socket();
    Ok(())
}

fn listen_at(path: &str) -> rustix::io::Result<OwnedFd> {
    let _ = fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Whoever can speak to a shim owns the container.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = bind(&listener, &SocketAddrUnix::new(path)?);
    rustix::process::umask(mask);
    bound?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Cuts every tie to the daemon: session, signals, and what a container could look into.
fn detach(config: &Config) -> rustix::io::Result<OwnedFd> {
    setsid()?;
    set_child_subreaper(Some(getpid()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"skep-shim")?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
        process::ignore(signal);
    }
    if let Some(score) = config.oom_score_adj {
        // A wish: some hosts do not grant it.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    sys::signal_fd(&[libc::SIGCHLD])
}

/// The socket given as standard input. All three streams then become the null device, so that the
/// daemon, who reads our errors until here, sees their end.
fn take_first_connection() -> rustix::io::Result<Option<OwnedFd>> {
    let stdin = rustix::stdio::stdin();
    let is_socket = rustix::net::sockopt::socket_type(stdin) == Ok(SocketType::SEQPACKET);
    let first = if is_socket { Some(rustix::io::fcntl_dupfd_cloexec(stdin, 3)?) } else { None };
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, 0.into())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(first)
}

impl Server {
    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        match self.status {
            // Nobody is left who could start it.
            Status::Created => self.connections.is_empty(),
            Status::Running | Status::Paused => false,
            Status::Exited => {
                let done = !self.streams.has_backlog()
                    && !self.connections.iter().any(Connection::has_outbox);
                done || now_ns() >= self.linger_until_ns
            }
        }
    }

    /// Waits for something to happen and does what it asks for.
    fn turn(&mut self) -> rustix::io::Result<()> {
        for ready in self.wait()? {
            match ready {
                Ready::Signals => self.reap(),
                Ready::Listener => self.accept(),
                Ready::Connection(id, events) => self.serve(id, events),
                Ready::Stream(token) => self.streams.handle(token),
            }
        }
        for attachment in self.streams.take_dropped() {
            self.push_all(&Push::AttachmentDropped { attachment });
        }
        self.connections.retain(|connection| !connection.closed);
        self.advance();
        if self.status == Status::Running && !std::mem::replace(&mut self.is_settled, true) {
            // The daemon has its answer; from here on the shim mostly waits.
            crate::pages::let_go_of_program();
        }
        Ok(())
    }

    fn wait(&self) -> rustix::io::Result<Vec<Ready>> {
        let mut tokens = vec![Ready::Signals];
        let mut set = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(listener) = &self.listener {
            tokens.push(Ready::Listener);
            set.push(PollFd::new(listener, PollFlags::IN));
        }
        for connection in &self.connections {
            let out = if connection.has_outbox() { PollFlags::OUT } else { PollFlags::empty() };
            tokens.push(Ready::Connection(connection.id, PollFlags::empty()));
            set.push(PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN | out));
        }
        self.streams.poll_set(&mut |token, fd| {
            tokens.push(Ready::Stream(token));
            set.push(fd);
        });
        match poll(&mut set, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = tokens.into_iter().zip(&set).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready
            .map(|(token, fd)| match token {
                Ready::Connection(id, _) => Ready::Connection(id, fd.revents()),
                other => other,
            })
            .collect())
    }

    /// Only the end of a life has deadlines.
    fn timeout(&self) -> Option<Timespec> {
        let until = match (&self.ending, self.status) {
            (Some(ending), _) => ending.until_ns,
            (None, Status::Exited) => self.linger_until_ns,
            _ => return None,
        };
        let left = until.saturating_sub(now_ns());
        let seconds = i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX);
        let nanoseconds = i64::try_from(left % 1_000_000_000).unwrap_or(0);
        Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut sockets = Vec::new();
        if let Some(listener) = &self.listener {
            while let Ok(socket) = accept_with(listener, flags) {
                sockets.push(socket);
            }
        }
        sockets.into_iter().for_each(|socket| self.add_connection(socket));
    }

    fn close_socket(&mut self) {
        if self.listener.take().is_some() {
            let _ = fs::remove_file(SOCKET_FILE);
        }
    }

    fn add_connection(&mut self, socket: OwnedFd) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        if let Ok(connection) = Connection::new(self.next_connection, socket) {
            self.next_connection += 1;
            self.connections.push(connection);
        }
    }

    fn serve(&mut self, id: u64, events: PollFlags) {
        let Some(at) = self.connections.iter().position(|it| it.id == id) else { return };
        if events.contains(PollFlags::OUT) {
            self.connections[at].flush();
        }
        if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        while let Some(incoming) = self.connections[at].receive() {
            let (id, outcome) = match incoming {
                Incoming::Call(call, fds) => (call.id, self.answer(call.request, fds)),
                Incoming::Bad(Some(id), fault) => (id, Err(fault)),
                Incoming::Bad(None, _) => continue,
            };
            let (answer, fd) = match outcome {
                Ok((answer, fd)) => (Ok(answer), fd),
                Err(fault) => (Err(fault), None),
            };
            self.connections[at].push(&Push::Answer { id, answer }, fd);
        }
    }

    fn push_all(&mut self, push: &Push) {
        for connection in &mut self.connections {
            connection.push(push, None);
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Outcome {
        let done = |result: Result<(), Fault>| result.map(|()| (Answer::Done, None));
        match request {
            Request::Start => self.start().map(|started| (Answer::Started(started), None)),
            Request::State => Ok((Answer::State(self.state()), None)),
            Request::Kill { signal, all } => done(self.kill(signal, all)),
            Request::Exec { exec_id, process } => self.exec(exec_id, &process, fds),
            Request::KillExec { exec_id, signal } => done(self.kill_exec(&exec_id, signal)),
            Request::Resize { height, width } => done(self.resize(height, width)),
            Request::Attach { stdin, stdout, stderr, when_full } => {
                let mut fds = fds.into_iter();
                let mut take = |wanted: bool| if wanted { fds.next() } else { None };
                let client = streams::Client {
                    stdin: take(stdin),
                    stdout: take(stdout),
                    stderr: take(stderr),
                    when_full,
                };
                match self.streams.attach(client) {
                    Some(attachment) => Ok((Answer::Attached { attachment }, None)),
                    None => Err(refused("too many attached clients")),
                }
            }
            Request::CloseStdin => {
                self.streams.close_stdin();
                Ok((Answer::Done, None))
            }
            Request::Pause => done(self.pause(true)),
            Request::Resume => done(self.pause(false)),
            Request::Update { resources } => {
                let running = self.running()?;
                let updated = self.container.update(&running.summary.group, &resources);
                done(updated.map_err(|error| fault(&error)))
            }
            Request::Delete => done(self.delete()),
        }
    }

    fn running(&self) -> Result<&Running, Fault> {
        let alive = matches!(self.status, Status::Running | Status::Paused);
        self.running
            .as_ref()
            .filter(|_| alive && self.ending.is_none())
            .ok_or(Fault::WrongStatus { status: self.status })
    }

    fn start(&mut self) -> Result<Started, Fault> {
        if self.status != Status::Created {
            return Err(Fault::WrongStatus { status: self.status });
        }
        let started = self.start_container().map_err(|error| {
            let exit = ExitRecord {
                exit_code: error.exit_code(),
                exited_at_ns: now_ns(),
                error: error.text(),
                ..ExitRecord::default()
            };
            self.streams.finish();
            self.record_exit(exit);
            fault(&error)
        })?;
        self.status = Status::Running;
        self.write_state();
        self.leave_daemons_group();
        Ok(started)
    }

    fn start_container(&mut self) -> Result<Started, runtime::Error> {
        let spec = self.container.read_spec()?;
        let summary = Container::summary(&spec)?;
        let step = |errno| runtime::Error::Step { step: "make pipes".to_owned(), errno };
        let (stdio, near) = if summary.terminal {
            (Stdio::Terminal, None)
        } else {
            let (stdio, near) = pipes(self.config.open_stdin).map_err(step)?;
            (stdio, Some(near))
        };
        let launched = self.container.start(&spec, stdio)?;
        let started_at_ns = now_ns();
        let taken = match (near, launched.console) {
            (Some((stdin, stdout, stderr)), _) => self.streams.take_pipes(stdin, stdout, stderr),
            (None, Some(master)) => self.streams.take_terminal(master, self.config.open_stdin),
            (None, None) => Err(Errno::NOTTY),
        };
        if let Err(errno) = taken {
            let _ = self.container.remove(&summary.group);
            return Err(runtime::Error::Step { step: "take streams".to_owned(), errno });
        }
        let started = Started { pid: launched.pid, started_at_ns, notes: launched.notes.clone() };
        self.running = Some(Running {
            pid: launched.pid,
            pidfd: pidfd_of(launched.pid),
            started_at_ns,
            notes: launched.notes,
            summary,
        });
        Ok(started)
    }

    /// Moves the shim where whoever stops the daemon does not look. After the start, since the
    /// container need not wait for it.
    fn leave_daemons_group(&self) {
        let directory = self.config.shim_cgroup.as_deref();
        let Some(directory) = directory.and_then(runtime::cgroup::tracking_directory) else {
            return;
        };
        // A wish: the host may not let us, and then the shim stays with the daemon.
        let _ = fs::create_dir_all(&directory);
        let _ = fs::write(directory.join("cgroup.procs"), "0");
    }

    fn write_state(&self) {
        let Some(running) = &self.running else { return };
        let record = StateRecord {
            pid: running.pid,
            pid_start_ticks: start_ticks(running.pid),
            shim_pid: getpid().as_raw_nonzero().get(),
            started_at_ns: running.started_at_ns,
            paused: self.status == Status::Paused,
            notes: running.notes.clone(),
        };
        // The socket tells the same; the file is for people and for a shim that was killed.
        let _ = write_json(Path::new(STATE_FILE), &record);
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            status: self.status,
            pid: self.running.as_ref().map_or(0, |running| running.pid),
            started_at_ns: self.running.as_ref().map_or(0, |running| running.started_at_ns),
            execs: self.execs.iter().map(|exec| exec.id.clone()).collect(),
            exit: self.exit.clone(),
        }
    }

    fn kill(&self, signal: i32, all: bool) -> Result<(), Fault> {
        let running = self.running()?;
        if all {
            let group = &running.summary.group;
            return self.container.signal_all(group, signal).map_err(|error| fault(&error));
        }
        signal_one(running.pidfd.as_ref(), signal)
    }

    fn kill_exec(&self, exec_id: &str, signal: i32) -> Result<(), Fault> {
        let exec = self.execs.iter().find(|exec| exec.id == exec_id);
        let exec = exec.ok_or_else(|| Fault::NoExec { exec_id: exec_id.to_owned() })?;
        signal_one(exec.pidfd.as_ref(), signal)
    }

    fn exec(&mut self, exec_id: String, process: &Process, fds: Vec<OwnedFd>) -> Outcome {
        let init_pid = self.running()?.pid;
        if self.status == Status::Paused {
            return Err(Fault::WrongStatus { status: self.status });
        }
        if self.execs.len() >= EXECS_MAX || self.execs.iter().any(|exec| exec.id == exec_id) {
            return Err(refused("too many execs, or one of this name runs"));
        }
        if exec_id.is_empty() || exec_id.contains('/') {
            return Err(refused("name of exec is empty or has a slash"));
        }
        let stdio = match (process.terminal, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => Stdio::Terminal,
            (false, Ok([stdin, stdout, stderr])) => Stdio::Streams { stdin, stdout, stderr },
            (false, Err(_)) => return Err(refused("exec without its three streams")),
        };
        let launched = self
            .container
            .exec(init_pid, &exec_id, process, stdio)
            .map_err(|error| fault(&error))?;
        let (pid, notes) = (launched.pid, launched.notes);
        self.execs.push(Exec { id: exec_id, pid, pidfd: pidfd_of(pid) });
        Ok((Answer::Execed { pid, notes }, launched.console))
    }

    fn resize(&self, height: u16, width: u16) -> Result<(), Fault> {
        let Some(master) = self.streams.terminal() else {
            return Err(refused("container has no terminal"));
        };
        runtime::native::resize(master, height, width).map_err(|error| fault(&error))
    }

    fn pause(&mut self, paused: bool) -> Result<(), Fault> {
        let before = if paused { Status::Running } else { Status::Paused };
        let running = self.running()?;
        if self.status != before {
            return Err(Fault::WrongStatus { status: self.status });
        }
        self.container.pause(&running.summary.group, paused).map_err(|error| fault(&error))?;
        self.status = if paused { Status::Paused } else { Status::Running };
        self.write_state();
        Ok(())
    }

    /// Ends the container at once; the usual end then follows.
    fn delete(&mut self) -> Result<(), Fault> {
        match &self.running {
            Some(running) if self.status != Status::Exited => {
                self.container.remove(&running.summary.group).map_err(|error| fault(&error))
            }
            _ => {
                self.close_socket();
                self.linger_until_ns = 0;
                self.status = Status::Exited;
                Ok(())
            }
        }
    }

    /// Takes note of every process that has ended.
    fn reap(&mut self) {
        let mut discarded = [0; 1024];
        while rustix::io::read(&self.signals, &mut discarded).is_ok() {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.reaped(pid, crate::exit_code(status));
        }
    }

    fn reaped(&mut self, pid: Pid, exit_code: i32) {
        let pid = pid.as_raw_nonzero().get();
        if self.running.as_ref().is_some_and(|running| running.pid == pid) {
            let exited_at_ns = now_ns();
            let until_ns = exited_at_ns + DRAIN_NS;
            self.ending = Some(Ending { exit_code, exited_at_ns, until_ns });
        } else if let Some(at) = self.execs.iter().position(|exec| exec.pid == pid) {
            let exec = self.execs.swap_remove(at);
            self.push_all(&Push::ExecExited { exec_id: exec.id, exit_code });
        }
    }

    /// Brings a life that is ending to its end, as far as it goes without waiting.
    fn advance(&mut self) {
        if self.status == Status::Exited {
            self.streams.close_idle();
            return;
        }
        let Some(ending) = self.ending.take() else { return };
        let Some(running) = &self.running else { return };
        let group = &running.summary.group;
        self.streams.drain();
        if !self.streams.is_read() && now_ns() < ending.until_ns {
            // Without process ids of its own a container may leave processes behind.
            if group.pids().is_empty() {
                self.ending = Some(ending);
                return;
            }
            let _ = group.signal_all(rustix::process::Signal::KILL);
            self.ending = Some(ending);
            return;
        }
        let exit = ExitRecord {
            exit_code: ending.exit_code,
            oom_killed: group.oom_kills() > 0,
            exited_at_ns: ending.exited_at_ns,
            error: String::new(),
            pid: running.pid,
            started_at_ns: running.started_at_ns,
        };
        self.streams.finish();
        // Before the end is told: the container may be started again right then, in this very
        // group. A group that stays is found by the daemon's own cleaning.
        let _ = self.container.remove(group);
        // Processes brought in by exec have ended with the container.
        self.reap();
        self.record_exit(exit);
    }

    /// Writes the end down, then tells everyone.
    fn record_exit(&mut self, exit: ExitRecord) {
        self.status = Status::Exited;
        self.linger_until_ns = now_ns() + LINGER_NS;
        // If the disk is full the daemons that are connected still hear of it.
        let _ = write_json(Path::new(EXIT_FILE), &exit);
        self.close_socket();
        self.push_all(&Push::Exited { exit: exit.clone() });
        self.exit = Some(exit);
    }
}

type NearEnds = (Option<OwnedFd>, OwnedFd, OwnedFd);

/// Pipes for the three streams: the container's ends, and ours.
fn pipes(open_stdin: bool) -> rustix::io::Result<(Stdio, NearEnds)> {
    let (stdin, near_stdin) = if open_stdin {
        let (far, near) = pipe_with(PipeFlags::CLOEXEC)?;
        (far, Some(near))
    } else {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        (rustix::fs::open("/dev/null", flags, 0.into())?, None)
    };
    let (near_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (near_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let far = Stdio::Streams { stdin, stdout, stderr };
    Ok((far, (near_stdin, near_stdout, near_stderr)))
}

fn signal_one(pidfd: Option<&OwnedFd>, signal: i32) -> Result<(), Fault> {
    let errno = match pidfd.map(|pidfd| sys::kill_pidfd(pidfd, signal)) {
        Some(Ok(())) => return Ok(()),
        Some(Err(errno)) => errno,
        None => Errno::SRCH,
    };
    let step = format!("send signal {signal}");
    Err(fault(&runtime::Error::Step { step, errno }))
}

fn refused(text: &str) -> Fault {
    Fault::Refused { text: text.to_owned() }
}

fn fault(error: &runtime::Error) -> Fault {
    Fault::Runtime { text: error.text(), exit_code: error.exit_code() }
}

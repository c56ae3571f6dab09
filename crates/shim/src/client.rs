//! The daemon's side: launches shims, finds them again, talks to them, hears of every end.
//!
//! A [`Client`] is one connection. Ends are pushed, nothing polls. A daemon that comes back calls
//! [`Client::connect`] for each bundle directory; where nobody listens any more, [`exit_record`]
//! tells how the container ended, and without a record the shim itself was killed:
//! [`clean_up_lost`] then ends what it left.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use runtime::spec::{Process, Resources};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::config::{
    EXIT_FILE, ExitRecord, SOCKET_FILE, SPEC_FILE, STATE_FILE, StateRecord, read_json,
};
use crate::packet;
use crate::protocol::{Answer, Call, Fault, Push, Request, Started, State, WhenFull};

/// Most requests without an answer on one connection. Requests are few and answered in
/// milliseconds; more means that the shim hangs.
const PENDING_MAX: usize = 1024;

/// A request to a shim that did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim cannot be run.
    #[error("run shim {program}")]
    Launch {
        /// The binary.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens: the shim has ended.
    #[error("connect to shim in {bundle}")]
    Connect {
        /// Its directory.
        bundle: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A packet cannot be sent.
    #[error("send to shim")]
    Send {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim ended before it answered.
    #[error("shim ended before it answered")]
    Ended,
    /// Too many requests wait for their answers.
    #[error("shim has {PENDING_MAX} requests to answer already")]
    Busy,
    /// The shim refused.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// The shim's answer does not fit the question.
    #[error("shim answered {answer} to another question")]
    WrongAnswer {
        /// What it said.
        answer: String,
    },
    /// A file of the bundle cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The exit code Docker reports when this is why a container or an exec did not start.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Refused(Fault::Runtime { exit_code, .. }) => *exit_code,
            _ => runtime::EXIT_NOT_STARTED,
        }
    }
}

/// How a container's life ended, as far as this connection knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It ended, and the shim said how.
    Exited(ExitRecord),
    /// The connection ended first. [`exit_record`] may know more.
    Lost,
}

/// The binary that becomes a shim.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    /// A read-only mount of the binary: what a container could reach of it by `/proc/<pid>/exe`
    /// cannot be written through. Absent on kernels before 5.12, where the shim sees to it itself.
    sealed: Option<OwnedFd>,
}

impl Launcher {
    /// Prepares `program`, which acts as a shim when its first argument is `shim`.
    pub fn new(program: &Path) -> Self {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let sealed = open_tree(rustix::fs::CWD, program, flags)
            .and_then(|tree| runtime::native::make_read_only(&tree).map(|()| tree))
            .ok();
        Self { program: program.to_owned(), sealed }
    }

    /// Starts a shim for the bundle directory, which holds `config.json` and `shim.json`. The
    /// container itself waits for [`Client::start`]. A shim whose connection ends before that
    /// goes away.
    ///
    /// # Errors
    /// [`Error::Launch`].
    pub async fn launch(&self, bundle: &Path) -> Result<Client, Error> {
        let fault = |source| Error::Launch { program: self.program.clone(), source };
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| fault(errno.into()))?;
        let path = match &self.sealed {
            Some(tree) => PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd())),
            None => self.program.clone(),
        };
        let mut command = Command::new(path);
        command.arg("shim").arg(bundle).env_clear();
        command.stdin(Stdio::from(other)).stdout(Stdio::null()).stderr(Stdio::piped());
        // The process forks at once and its first half ends, so this is short.
        let run = tokio::task::spawn_blocking(move || command.output());
        let output = run.await.map_err(|error| fault(io::Error::other(error)))?.map_err(fault)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(fault(io::Error::other(text)));
        }
        Client::over(own).map_err(fault)
    }
}

/// One connection to one shim. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Arc<Connection>,
}

/// Ends the listening task with the last client, and with it the socket.
#[derive(Debug)]
struct Connection {
    shared: Arc<Shared>,
    listener: tokio::task::AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    waiting: Mutex<Waiting>,
    end: watch::Sender<Option<End>>,
}

type Reply = (Result<Answer, Fault>, Vec<OwnedFd>);

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Reply>>,
    execs: HashMap<String, oneshot::Sender<i32>>,
    /// No packet will come any more.
    over: bool,
}

/// Standard streams of a process brought in by exec.
#[derive(Debug)]
pub enum ExecStdio {
    /// Read end of its input, write ends of its output and errors.
    Streams {
        /// Input.
        stdin: OwnedFd,
        /// Output.
        stdout: OwnedFd,
        /// Errors.
        stderr: OwnedFd,
    },
    /// A terminal, whose controlling end comes back in [`Execution::terminal`].
    Terminal,
}

/// A process brought in by exec.
#[derive(Debug)]
pub struct Execution {
    /// Process id on the host.
    pub pid: i32,
    /// What the host did not grant.
    pub notes: Vec<String>,
    /// Controlling end of its terminal: read, write and resize it here. Dropping it hangs up.
    pub terminal: Option<OwnedFd>,
    /// Its exit code, once it has ended; an error when the shim ended first.
    pub exit: oneshot::Receiver<i32>,
}

/// Streams of a client that attaches. The shim reads from `stdin` and writes to the others.
#[derive(Debug, Default)]
pub struct Attachment {
    /// What the container reads.
    pub stdin: Option<OwnedFd>,
    /// Gets its output.
    pub stdout: Option<OwnedFd>,
    /// Gets its errors; nothing under a terminal.
    pub stderr: Option<OwnedFd>,
    /// What happens when the client does not read.
    pub when_full: WhenFull,
}

impl Client {
    /// Connects to the shim of a bundle directory.
    ///
    /// # Errors
    /// [`Error::Connect`] when no shim listens there.
    pub async fn connect(bundle: &Path) -> Result<Self, Error> {
        let fault = |source| Error::Connect { bundle: bundle.to_owned(), source };
        let open = || -> rustix::io::Result<OwnedFd> {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
            let directory = rustix::fs::open(bundle, flags, 0.into())?;
            // Paths of sockets are short; this one is, however long the directory's is.
            let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd());
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        Self::over(open().map_err(|errno| fault(errno.into()))?).map_err(fault)
    }

    fn over(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let shared = Arc::new(Shared {
            socket: crate::sys::async_fd(socket)?,
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
            end: watch::Sender::new(None),
        });
        let listener = tokio::spawn(listen(Arc::clone(&shared))).abort_handle();
        Ok(Self { connection: Arc::new(Connection { shared, listener }) })
    }

    /// Starts the container. Attachments made before miss nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the step that did not work; the shim has then written the exit
    /// record and ended.
    pub async fn start(&self) -> Result<Started, Error> {
        match self.ask(Request::Start, &[]).await? {
            (Answer::Started(started), _) => Ok(started),
            (answer, _) => Err(wrong(&answer)),
        }
    }

    /// Asks how the container is.
    ///
    /// # Errors
    /// [`Error::Ended`] when the shim has ended.
    pub async fn state(&self) -> Result<State, Error> {
        match self.ask(Request::State, &[]).await? {
            (Answer::State(state), _) => Ok(state),
            (answer, _) => Err(wrong(&answer)),
        }
    }

    /// Sends a signal by its number, to the first process or to all.
    ///
    /// # Errors
    /// [`Fault::WrongStatus`] when the container does not run.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        self.ask(Request::Kill { signal, all }, &[]).await.map(drop)
    }

    /// Runs a process in the container.
    ///
    /// # Errors
    /// [`Fault::Runtime`] with the step that did not work; see [`Error::exit_code`].
    pub async fn exec(
        &self,
        exec_id: &str,
        process: &Process,
        stdio: ExecStdio,
    ) -> Result<Execution, Error> {
        let exit = self.watch_exec(exec_id);
        let mut process = Box::new(process.clone());
        process.terminal = matches!(stdio, ExecStdio::Terminal);
        let request = Request::Exec { exec_id: exec_id.to_owned(), process };
        let asked = match &stdio {
            ExecStdio::Streams { stdin, stdout, stderr } => {
                self.ask(request, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).await
            }
            ExecStdio::Terminal => self.ask(request, &[]).await,
        };
        match asked {
            Ok((Answer::Execed { pid, notes }, mut fds)) => {
                Ok(Execution { pid, notes, terminal: fds.pop(), exit })
            }
            Ok((answer, _)) => Err(wrong(&answer)),
            Err(error) => {
                self.waiting().execs.remove(exec_id);
                Err(error)
            }
        }
    }

    /// The exit code of an exec that was started over an earlier connection, once it has ended.
    /// [`State::execs`] names those that run; ask for it after this call, or an end may be missed.
    pub fn watch_exec(&self, exec_id: &str) -> oneshot::Receiver<i32> {
        let (tx, rx) = oneshot::channel();
        let mut waiting = self.waiting();
        if !waiting.over {
            waiting.execs.insert(exec_id.to_owned(), tx);
        }
        rx
    }

    /// Sends a signal to a process brought in by exec.
    ///
    /// # Errors
    /// [`Fault::NoExec`] when it has ended.
    pub async fn kill_exec(&self, exec_id: &str, signal: i32) -> Result<(), Error> {
        let request = Request::KillExec { exec_id: exec_id.to_owned(), signal };
        self.ask(request, &[]).await.map(drop)
    }

    /// Sets the size of the container's terminal in character cells.
    ///
    /// # Errors
    /// [`Fault::Refused`] when it has none.
    pub async fn resize(&self, height: u16, width: u16) -> Result<(), Error> {
        self.ask(Request::Resize { height, width }, &[]).await.map(drop)
    }

    /// Gives a client the container's streams until it or the container closes them. Returns the
    /// attachment's number.
    ///
    /// # Errors
    /// [`Fault::Refused`] when the shim serves as many clients as it can.
    pub async fn attach(&self, attachment: Attachment) -> Result<u64, Error> {
        let Attachment { stdin, stdout, stderr, when_full } = attachment;
        let request = Request::Attach {
            stdin: stdin.is_some(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            when_full,
        };
        let fds: Vec<BorrowedFd<'_>> =
            [&stdin, &stdout, &stderr].into_iter().flatten().map(AsFd::as_fd).collect();
        match self.ask(request, &fds).await? {
            (Answer::Attached { attachment }, _) => Ok(attachment),
            (answer, _) => Err(wrong(&answer)),
        }
    }

    /// Ends the container's input.
    ///
    /// # Errors
    /// [`Error::Ended`] when the shim has ended.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.ask(Request::CloseStdin, &[]).await.map(drop)
    }

    /// Stops all processes of the container.
    ///
    /// # Errors
    /// [`Fault::WrongStatus`] when it does not run.
    pub async fn pause(&self) -> Result<(), Error> {
        self.ask(Request::Pause, &[]).await.map(drop)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Fault::WrongStatus`] when it is not paused.
    pub async fn resume(&self) -> Result<(), Error> {
        self.ask(Request::Resume, &[]).await.map(drop)
    }

    /// Changes limits; those that are absent stay.
    ///
    /// # Errors
    /// [`Fault::Runtime`] naming the limit.
    pub async fn update(&self, resources: &Resources) -> Result<(), Error> {
        let request = Request::Update { resources: Box::new(resources.clone()) };
        self.ask(request, &[]).await.map(drop)
    }

    /// Kills what is left, removes the cgroup and ends the shim. One that has ended is deleted.
    ///
    /// # Errors
    /// [`Fault::Runtime`] when the cgroup stays.
    pub async fn delete(&self) -> Result<(), Error> {
        match self.ask(Request::Delete, &[]).await {
            Ok(_) | Err(Error::Ended) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the container's end.
    pub async fn wait(&self) -> End {
        let mut end = self.connection.shared.end.subscribe();
        let end = end.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone()).unwrap_or(End::Lost)
    }

    /// The container's end, if it is known by now.
    pub fn end(&self) -> Option<End> {
        self.connection.shared.end.borrow().clone()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.connection.shared.waiting.lock().expect("no panic happens under this lock")
    }

    async fn ask(
        &self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), Error> {
        let id = self.connection.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let call = Call { id, request };
        let bytes = serde_json::to_vec(&call).expect("a call has only text and numbers");
        let (tx, rx) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.over {
                return Err(Error::Ended);
            }
            if waiting.answers.len() >= PENDING_MAX {
                return Err(Error::Busy);
            }
            waiting.answers.insert(id, tx);
        }
        let send = |socket: &OwnedFd| packet::send(socket, &bytes, fds).map_err(io::Error::from);
        if let Err(source) = self.connection.shared.socket.async_io(Interest::WRITABLE, send).await
        {
            self.waiting().answers.remove(&id);
            return Err(match source.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Ended,
                _ => Error::Send { source },
            });
        }
        let (answer, fds) = rx.await.map_err(|_| Error::Ended)?;
        Ok((answer?, fds))
    }
}

fn wrong(answer: &Answer) -> Error {
    Error::WrongAnswer { answer: format!("{answer:?}") }
}

/// Hands every packet to whom it concerns, until the shim is gone.
async fn listen(shared: Arc<Shared>) {
    loop {
        let receive = |socket: &OwnedFd| packet::receive(socket).map_err(io::Error::from);
        match shared.socket.async_io(Interest::READABLE, receive).await {
            Ok((bytes, fds)) if !bytes.is_empty() => deliver(&shared, &bytes, fds),
            _ => return finish(&shared),
        }
    }
}

fn deliver(shared: &Shared, bytes: &[u8], fds: Vec<OwnedFd>) {
    // A push this daemon does not know comes from a newer shim and concerns nobody here.
    let Ok(push) = serde_json::from_slice::<Push>(bytes) else { return };
    let mut waiting = shared.waiting.lock().expect("no panic happens under this lock");
    match push {
        Push::Answer { id, answer } => {
            if let Some(tx) = waiting.answers.remove(&id) {
                let _ = tx.send((answer, fds));
            }
        }
        Push::Exited { exit } => {
            shared.end.send_replace(Some(End::Exited(exit)));
        }
        Push::ExecExited { exec_id, exit_code } => {
            if let Some(tx) = waiting.execs.remove(&exec_id) {
                let _ = tx.send(exit_code);
            }
        }
        Push::AttachmentDropped { .. } => {}
    }
}

/// Nothing comes any more: everyone who waits hears of it.
fn finish(shared: &Shared) {
    {
        let mut waiting = shared.waiting.lock().expect("no panic happens under this lock");
        waiting.over = true;
        waiting.answers.clear();
        waiting.execs.clear();
    }
    shared.end.send_if_modified(|end| {
        let unknown = end.is_none();
        if unknown {
            *end = Some(End::Lost);
        }
        unknown
    });
}

/// How the container of a bundle directory ended; none when it has not, or nobody could write it.
///
/// # Errors
/// [`Error::Read`] for an unreadable record.
pub fn exit_record(bundle: &Path) -> Result<Option<ExitRecord>, Error> {
    let path = bundle.join(EXIT_FILE);
    read_json(&path).map_err(|source| Error::Read { path, source })
}

/// The container of a bundle directory when it started; none when it did not.
///
/// # Errors
/// [`Error::Read`] for an unreadable record.
pub fn state_record(bundle: &Path) -> Result<Option<StateRecord>, Error> {
    let path = bundle.join(STATE_FILE);
    read_json(&path).map_err(|source| Error::Read { path, source })
}

/// Ends everything a killed shim has left in its container's cgroup, and removes the group.
///
/// # Errors
/// [`Error::Read`] for an unreadable specification, [`Error::Refused`] when the group stays.
pub fn clean_up_lost(bundle: &Path) -> Result<(), Error> {
    let path = bundle.join(SPEC_FILE);
    let spec: Option<runtime::spec::Spec> =
        read_json(&path).map_err(|source| Error::Read { path, source })?;
    let Some(spec) = spec else { return Ok(()) };
    let fault = |error: runtime::Error| {
        Error::Refused(Fault::Runtime { text: error.text(), exit_code: error.exit_code() })
    };
    let group = runtime::cgroup::Cgroup::new(&spec.linux.cgroups_path).map_err(fault)?;
    group.kill_and_remove().map_err(fault)
}

/// Sets the size of a terminal that came with [`Execution::terminal`], in character cells.
///
/// # Errors
/// [`Error::Refused`] when `terminal` is none.
pub fn resize_terminal(terminal: &OwnedFd, height: u16, width: u16) -> Result<(), Error> {
    runtime::native::resize(terminal, height, width).map_err(|error| {
        Error::Refused(Fault::Runtime { text: error.text(), exit_code: error.exit_code() })
    })
}

/// Whether an error means that nobody listens any more.
pub fn is_gone(error: &Error) -> bool {
    match error {
        Error::Ended => true,
        Error::Connect { source, .. } => matches!(
            Errno::from_io_error(source),
            Some(Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET)
        ),
        _ => false,
    }
}

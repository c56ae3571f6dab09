//! Further processes in a running container.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use docker_types::exec::{ExecCreateRequest, ExecInspect, ExecProcessConfig};
use runtime::spec::{ConsoleSize, Process};
use rustix::io::Errno;
use shim::client::{ExecStdio, Execution};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::attach::{parse_keys, pipe_pair};
use super::container::Container;
use super::invalid::Invalid;
use super::start::{chain, resolve_user};
use super::status::Phase;
use super::{Containers, Shared, blocking, spec, validate};
use crate::beneath::Root;
use crate::error::{Attempt, Error};
use crate::names;

/// Exec instances remembered per container; the oldest that has ended makes room.
const EXECS_PER_CONTAINER_MAX: usize = 512;

/// What a process ends with that nobody saw end: it was killed with its shim.
const EXIT_CODE_KILLED: i64 = 137;

/// All exec instances, by id.
#[derive(Debug, Default)]
pub(crate) struct Execs {
    inner: Mutex<BTreeMap<String, Arc<Exec>>>,
}

/// One exec instance.
#[derive(Debug)]
struct Exec {
    id: String,
    container: Arc<Container>,
    request: ExecCreateRequest,
    detach_keys: Vec<u8>,
    state: Mutex<State>,
    /// The exit code, once there is one.
    exit: watch::Sender<Option<i64>>,
}

#[derive(Debug, Default)]
struct State {
    phase: ExecPhase,
    pid: u32,
    terminal: Option<Arc<OwnedFd>>,
    /// Tells the oldest from the newest.
    order: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ExecPhase {
    #[default]
    Created,
    Running,
    Ended,
}

/// How to start an exec instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecStart {
    pub detach: bool,
    /// Height and width in character cells.
    pub console_size: Option<[u32; 2]>,
}

/// The client's ends of an exec's streams.
#[derive(Debug)]
pub enum ExecStreams {
    /// The client does not want them.
    Detached,
    Pipes {
        stdin: Option<pipe::Sender>,
        stdout: Option<pipe::Receiver>,
        stderr: Option<pipe::Receiver>,
    },
    Terminal {
        terminal: Terminal,
        /// Whether the client types.
        stdin: bool,
        detach_keys: Vec<u8>,
    },
}

impl Containers {
    /// Prepares a process in a running container. Returns the instance's id.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::ExecPaused`], or a request without a command.
    pub async fn create_exec(
        &self,
        name: &str,
        request: ExecCreateRequest,
    ) -> Result<String, Error> {
        let container = self.shared.registry.find(name)?;
        check_runs(&container)?;
        if request.cmd.as_ref().is_none_or(|cmd| cmd.is_empty() || cmd[0].is_empty()) {
            return Err(Invalid::NoExecCommand.into());
        }
        let is_wrong = |text: &&String| text.is_empty() || text.starts_with('=');
        if let Some(text) = request.env.iter().flatten().find(is_wrong) {
            return Err(Invalid::Environment { text: text.clone() }.into());
        }
        let detach_keys = parse_keys(&request.detach_keys)?;
        let id = names::new_id();
        let command = request.cmd.iter().flatten().cloned().collect::<Vec<_>>().join(" ");
        let exec = Exec {
            id: id.clone(),
            container: Arc::clone(&container),
            request,
            detach_keys,
            state: Mutex::default(),
            exit: watch::Sender::new(None),
        };
        self.shared.execs.insert(exec)?;
        let attributes = [("execID", id.clone())];
        self.shared.event(&container, &format!("exec_create: {command} "), &attributes);
        Ok(id)
    }

    /// Starts an exec instance.
    ///
    /// # Errors
    /// [`Error::ExecRunning`], [`Error::ExecDone`], or why the process could not be started.
    pub async fn start_exec(&self, id: &str, start: ExecStart) -> Result<ExecStreams, Error> {
        let exec = self.shared.execs.find(id)?;
        check_runs(&exec.container)?;
        exec.claim()?;
        let started = self.detached(|shared| {
            let exec = Arc::clone(&exec);
            async move { shared.run_exec(&exec, start).await }
        });
        started.await.inspect_err(|error| exec.failed(error))
    }

    /// What is known of an exec instance.
    ///
    /// # Errors
    /// [`Error::NoSuchExec`].
    pub fn inspect_exec(&self, id: &str) -> Result<ExecInspect, Error> {
        let exec = self.shared.execs.find(id)?;
        let state = exec.state();
        let request = &exec.request;
        let mut command = request.cmd.clone().unwrap_or_default().into_iter();
        Ok(ExecInspect {
            id: exec.id.clone(),
            running: state.phase == ExecPhase::Running,
            exit_code: *exec.exit.borrow(),
            process_config: ExecProcessConfig {
                tty: request.tty,
                entrypoint: command.next().unwrap_or_default(),
                arguments: command.collect(),
                privileged: Some(request.privileged),
                user: request.user.clone(),
            },
            open_stdin: request.attach_stdin,
            open_stderr: request.attach_stderr,
            open_stdout: request.attach_stdout,
            can_remove: state.phase == ExecPhase::Ended,
            container_id: exec.container.id.clone(),
            detach_keys: String::new(),
            pid: state.pid,
        })
    }

    /// Waits for the exit code of an exec instance; of one that is forgotten it is 137.
    pub async fn wait_exec(&self, id: &str) -> i64 {
        let Ok(exec) = self.shared.execs.find(id) else { return EXIT_CODE_KILLED };
        let mut exit = exec.exit.subscribe();
        let code = exit.wait_for(Option::is_some).await;
        code.ok().and_then(|code| *code).unwrap_or(EXIT_CODE_KILLED)
    }

    /// Whether an exec instance has a terminal.
    ///
    /// # Errors
    /// [`Error::NoSuchExec`].
    pub fn exec_has_tty(&self, id: &str) -> Result<bool, Error> {
        Ok(self.shared.execs.find(id)?.request.tty)
    }

    /// Sets the size of an exec instance's terminal.
    ///
    /// # Errors
    /// [`Error::ExecNotRunning`].
    pub fn resize_exec(&self, id: &str, height: u16, width: u16) -> Result<(), Error> {
        let exec = self.shared.execs.find(id)?;
        let terminal = exec.state().terminal.clone();
        let terminal = terminal.ok_or_else(|| Error::ExecNotRunning { id: id.to_owned() })?;
        shim::client::resize_terminal(&terminal, height, width)
            .map_err(|source| Error::Shim { id: exec.container.id.clone(), source })
    }
}

impl Shared {
    async fn run_exec(
        self: &Arc<Self>,
        exec: &Arc<Exec>,
        start: ExecStart,
    ) -> Result<ExecStreams, Error> {
        let container = &exec.container;
        let shim = container.running_shim()?;
        let process = self.exec_process(exec, start).await?;
        let request = &exec.request;
        let (stdio, streams) = if request.tty {
            (ExecStdio::Terminal, ExecStreams::Detached)
        } else {
            exec_pipes(request, start.detach).attempt(|| "make pipes for an exec".to_owned())?
        };
        let execution =
            shim.exec(&exec.id, &process, stdio).await.map_err(|error| match error {
                shim::client::Error::Ended => container.not_running(),
                error => Error::ExecStart { reason: chain(&error) },
            })?;
        let command = request.cmd.iter().flatten().cloned().collect::<Vec<_>>().join(" ");
        let attributes = [("execID", exec.id.clone())];
        self.event(container, &format!("exec_start: {command} "), &attributes);
        let terminal = self.follow_exec(exec, execution);
        match terminal {
            Some(terminal) if start.detach => {
                // Somebody has to read, or the process would block and then be hung up.
                self.tasks.spawn(drain(terminal));
                Ok(ExecStreams::Detached)
            }
            Some(terminal) => Ok(ExecStreams::Terminal {
                terminal,
                stdin: request.attach_stdin,
                detach_keys: exec.detach_keys.clone(),
            }),
            None => Ok(streams),
        }
    }

    /// The process as the runtime takes it: the container's environment and confinement, with what the
    /// request changes.
    async fn exec_process(&self, exec: &Exec, start: ExecStart) -> Result<Process, Error> {
        let record = exec.container.record();
        let request = &exec.request;
        let user = if request.user.is_empty() { &record.config.user } else { &request.user };
        // The process's own root shows what the container has mounted over its files.
        let root = PathBuf::from(format!("/proc/{}/root", exec.container.status().pid));
        let (user, own) = (user.clone(), Arc::clone(&record));
        let identity = blocking(move || {
            let root = Root::open(&root).attempt(|| format!("open {}", root.display()))?;
            resolve_user(&root, &user, &own)
        })
        .await?;
        let cwd = [&request.working_dir, &record.config.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty());
        let size = start.console_size.or(request.console_size).map(|[height, width]| ConsoleSize {
            height: u16::try_from(height).unwrap_or(0),
            width: u16::try_from(width).unwrap_or(0),
        });
        let capabilities = if request.privileged {
            let privileged =
                docker_types::container::HostConfig { privileged: true, ..Default::default() };
            Some(spec::capability_sets(validate::capabilities(&privileged)?))
        } else {
            None
        };
        Ok(Process {
            terminal: request.tty,
            console_size: size.filter(|size| size.height > 0 && size.width > 0),
            user: spec::user(&identity),
            args: request.cmd.clone().unwrap_or_default(),
            env: spec::environment(
                &record,
                request.tty,
                request.env.as_deref().unwrap_or_default(),
            ),
            cwd: cwd.cloned().unwrap_or_else(|| "/".to_owned()),
            capabilities,
            ..Process::default()
        })
    }

    /// Notes that an exec runs, and later that it has ended. Returns its terminal.
    fn follow_exec(self: &Arc<Self>, exec: &Arc<Exec>, execution: Execution) -> Option<Terminal> {
        let Execution { pid, terminal, exit, .. } = execution;
        let terminal = terminal.map(Arc::new);
        {
            let mut state = exec.state();
            state.pid = u32::try_from(pid).unwrap_or(0);
            state.terminal.clone_from(&terminal);
        }
        let (shared, exec, closing) = (Arc::clone(self), Arc::clone(exec), self.closing.clone());
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            // The shim that ends first was killed, and its processes with it.
            let exit_code = exit.await.map_or(EXIT_CODE_KILLED, i64::from);
            exec.ended(exit_code);
            let attributes = [("execID", exec.id.clone()), ("exitCode", exit_code.to_string())];
            shared.event(&exec.container, "exec_die", &attributes);
        }));
        terminal.and_then(|fd| Terminal::new(fd).ok())
    }
}

impl Execs {
    fn find(&self, id: &str) -> Result<Arc<Exec>, Error> {
        self.lock().get(id).cloned().ok_or_else(|| Error::NoSuchExec { id: id.to_owned() })
    }

    /// Adds an instance, in place of the oldest that has ended where there are too many.
    fn insert(&self, exec: Exec) -> Result<(), Error> {
        let mut inner = self.lock();
        let container = exec.container.id.clone();
        let of_container = || inner.values().filter(|exec| exec.container.id == container);
        let newest = of_container().map(|exec| exec.state().order).max().unwrap_or(0);
        if of_container().count() >= EXECS_PER_CONTAINER_MAX {
            let oldest = of_container()
                .filter(|exec| exec.state().phase != ExecPhase::Running)
                .min_by_key(|exec| exec.state().order)
                .map(|exec| exec.id.clone())
                .ok_or(Error::ExecsFull { id: container })?;
            inner.remove(&oldest);
        }
        exec.state().order = newest + 1;
        inner.insert(exec.id.clone(), Arc::new(exec));
        Ok(())
    }

    /// Forgets all instances of a container.
    pub(super) fn forget(&self, container: &str) {
        self.lock().retain(|_, exec| exec.container.id != container);
    }

    /// The instances of a container that run.
    pub(super) fn running(&self, container: &str) -> Vec<String> {
        let inner = self.lock();
        let runs = |exec: &&Arc<Exec>| {
            exec.container.id == container && exec.state().phase == ExecPhase::Running
        };
        inner.values().filter(runs).map(|exec| exec.id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exec {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caller the one who starts it.
    fn claim(&self) -> Result<(), Error> {
        let mut state = self.state();
        match state.phase {
            ExecPhase::Created => state.phase = ExecPhase::Running,
            ExecPhase::Running => return Err(Error::ExecRunning { id: self.id.clone() }),
            ExecPhase::Ended => return Err(Error::ExecDone),
        }
        Ok(())
    }

    fn failed(&self, error: &Error) {
        self.ended(error.start_exit_code());
    }

    fn ended(&self, exit_code: i64) {
        {
            let mut state = self.state();
            state.phase = ExecPhase::Ended;
            state.terminal = None;
        }
        self.exit.send_replace(Some(exit_code));
    }
}

fn check_runs(container: &Container) -> Result<(), Error> {
    match container.phase() {
        Phase::Running => Ok(()),
        Phase::Paused => Err(Error::ExecPaused { id: container.id.clone() }),
        Phase::Restarting => Err(Error::Restarting { id: container.id.clone() }),
        _ => Err(container.not_running()),
    }
}

/// Pipes for the streams the client wants; nothing for the rest.
fn exec_pipes(request: &ExecCreateRequest, detach: bool) -> io::Result<(ExecStdio, ExecStreams)> {
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let output = |wanted: bool| -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
        if !wanted || detach {
            return Ok((null()?, None));
        }
        let (read, write) = pipe_pair()?;
        Ok((write, Some(pipe::Receiver::from_owned_fd(read)?)))
    };
    let (stdin, client_stdin) = if request.attach_stdin && !detach {
        let (read, write) = pipe_pair()?;
        (read, Some(pipe::Sender::from_owned_fd(write)?))
    } else {
        (null()?, None)
    };
    let (stdout, client_stdout) = output(request.attach_stdout)?;
    let (stderr, client_stderr) = output(request.attach_stderr)?;
    let streams = if detach {
        ExecStreams::Detached
    } else {
        ExecStreams::Pipes { stdin: client_stdin, stdout: client_stdout, stderr: client_stderr }
    };
    Ok((ExecStdio::Streams { stdin, stdout, stderr }, streams))
}

/// Reads a terminal nobody looks at, until its process has gone.
async fn drain(mut terminal: Terminal) {
    let _ = tokio::io::copy(&mut terminal, &mut tokio::io::sink()).await;
}

/// The controlling end of a terminal.
#[derive(Debug)]
pub struct Terminal {
    fd: AsyncFd<Arc<OwnedFd>>,
}

impl Terminal {
    fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: crate::sys::async_fd(fd)? })
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *unfilled)?)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // The kernel's word for a terminal whose last process has closed it.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! Runs a container by an OCI runtime binary of the host: runc, crun, runsc and their like.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Streams};

use crate::Error;
use crate::native::Stdio;
use crate::spec::{Process, Resources};

/// Longest error text taken from a runtime, in bytes.
const ERROR_BYTES_MAX: u64 = 16 * 1024;

/// One container under a runtime binary.
#[derive(Clone, Debug)]
pub struct External {
    /// The binary.
    pub program: PathBuf,
    /// Where it keeps its own state.
    pub root: PathBuf,
    /// The container's name to it.
    pub id: String,
}

impl External {
    /// Creates and starts the container of the bundle. Returns the process id of its first process,
    /// which is no child of the caller unless the caller is a subreaper. With a terminal, its
    /// controlling end is sent to the unix socket `console`.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn start(&self, bundle: &Path, stdio: Stdio, console: Option<&Path>) -> Result<i32, Error> {
        let pid_file = bundle.join("runtime.pid");
        let mut command = self.command("create");
        command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&self.id);
        self.run_detached(command, "create", stdio, bundle)?;
        let mut start = self.command("start");
        start.arg(&self.id);
        let started = self.run(start, "start").and_then(|()| read_pid(&pid_file));
        started.inspect_err(|_| {
            let _ = self.delete();
        })
    }

    /// Runs a process in the container; see [`External::start`] for its id and terminal.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn exec(
        &self,
        bundle: &Path,
        name: &str,
        process: &Process,
        stdio: Stdio,
        console: Option<&Path>,
    ) -> Result<i32, Error> {
        let file = bundle.join(format!("exec-{name}.json"));
        let pid_file = bundle.join(format!("exec-{name}.pid"));
        let text = serde_json::to_vec(process).expect("a process has only text and numbers");
        fs::write(&file, text)
            .map_err(|source| Error::RunExternal { program: self.program.clone(), source })?;
        let mut command = self.command("exec");
        command.arg("--detach").arg("--process").arg(&file).arg("--pid-file").arg(&pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&self.id);
        let pid =
            self.run_detached(command, "exec", stdio, bundle).and_then(|()| read_pid(&pid_file));
        let _ = fs::remove_file(file);
        let _ = fs::remove_file(pid_file);
        pid
    }

    /// Stops all processes.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn pause(&self) -> Result<(), Error> {
        self.simple("pause")
    }

    /// Lets stopped processes go on.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn resume(&self) -> Result<(), Error> {
        self.simple("resume")
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(&self.id).arg(signal.to_string());
        self.run(command, "kill")
    }

    /// Changes limits.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn update(&self, bundle: &Path, resources: &Resources) -> Result<(), Error> {
        let file = bundle.join("update.json");
        let text = serde_json::to_vec(resources).expect("resources have only text and numbers");
        fs::write(&file, text)
            .map_err(|source| Error::RunExternal { program: self.program.clone(), source })?;
        let mut command = self.command("update");
        command.arg("--resources").arg(&file).arg(&self.id);
        let result = self.run(command, "update");
        let _ = fs::remove_file(file);
        result
    }

    /// Ends what is left and forgets the container.
    ///
    /// # Errors
    /// [`Error::External`] with the runtime's words.
    pub fn delete(&self) -> Result<(), Error> {
        let mut command = self.command("delete");
        command.arg("--force").arg(&self.id);
        self.run(command, "delete")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(verb).stdin(Streams::null());
        command
    }

    fn simple(&self, verb: &'static str) -> Result<(), Error> {
        let mut command = self.command(verb);
        command.arg(&self.id);
        self.run(command, verb)
    }

    fn run(&self, mut command: Command, action: &'static str) -> Result<(), Error> {
        command.stdout(Streams::null()).stderr(Streams::piped());
        let mut child = command.spawn().map_err(|source| self.not_run(source))?;
        let mut text = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(ERROR_BYTES_MAX).read_to_end(&mut text);
        }
        self.judge(&mut child, action, &text)
    }

    /// The container keeps the streams, so errors are read from a log file instead.
    fn run_detached(
        &self,
        mut command: Command,
        action: &'static str,
        stdio: Stdio,
        bundle: &Path,
    ) -> Result<(), Error> {
        let log = bundle.join("runtime.log");
        let _ = fs::remove_file(&log);
        let mut logged = Command::new(command.get_program());
        logged.arg("--log").arg(&log).args(command.get_args());
        command = logged;
        match stdio {
            Stdio::Streams { stdin, stdout, stderr } => {
                command.stdin(fd(stdin)).stdout(fd(stdout)).stderr(fd(stderr));
            }
            Stdio::Terminal => {
                command.stdin(Streams::null()).stdout(Streams::null()).stderr(Streams::null());
            }
        }
        let mut child = command.spawn().map_err(|source| self.not_run(source))?;
        // The command holds our copies of the container's streams.
        drop(command);
        let status = child.wait().map_err(|source| self.not_run(source))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        Err(self.reported(action, last_message(&text)))
    }

    fn judge(&self, child: &mut Child, action: &'static str, text: &[u8]) -> Result<(), Error> {
        let status = child.wait().map_err(|source| self.not_run(source))?;
        if status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(text);
        Err(self.reported(action, last_message(&text)))
    }

    fn not_run(&self, source: io::Error) -> Error {
        Error::RunExternal { program: self.program.clone(), source }
    }

    fn reported(&self, action: &'static str, text: String) -> Error {
        let program = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Error::External { program, action, text }
    }
}

fn fd(fd: OwnedFd) -> Streams {
    Streams::from(fd)
}

/// The message of the last line: `time="…" level=error msg="…"` of runc, or plain text.
fn last_message(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let Some((_, quoted)) = line.split_once("msg=\"") else { return line.trim().to_owned() };
    let quoted = quoted.trim_end().trim_end_matches('"');
    quoted.replace("\\\"", "\"").replace("\\\\", "\\")
}

fn read_pid(path: &Path) -> Result<i32, Error> {
    let text = fs::read_to_string(path)
        .map_err(|source| Error::ReadSpec { path: path.to_owned(), source })?;
    text.trim()
        .parse()
        .map_err(|_| Error::InvalidSpec { reason: format!("process id in {}", path.display()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_runtime_is_found_in_its_log() {
        let runc = "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"x\"\n\
                    time=\"2026-01-01T00:00:00Z\" level=error msg=\"exec: \\\"no\\\": not found\"\n";
        assert_eq!(last_message(runc), "exec: \"no\": not found");
        assert_eq!(last_message("plain words\n\n"), "plain words");
    }
}

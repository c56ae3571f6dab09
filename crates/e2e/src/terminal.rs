//! Docker commands that are typed into, on a terminal of their own or through a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::Host;
use crate::host::PATIENCE;

/// Pieces of output read ahead of the test.
const PIECES_MAX: usize = 4096;

/// How long nothing is shown until the command is told of its terminal's size again.
const NUDGE: Duration = Duration::from_secs(1);

/// A command on a terminal. Dropping it ends it.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    pieces: mpsc::Receiver<Vec<u8>>,
    /// What was shown and not yet looked at.
    shown: String,
}

impl Host {
    /// Runs docker on a terminal of so many rows and columns.
    pub fn terminal(&self, arguments: &[&str], size: (u16, u16)) -> Terminal {
        let (near, far) = open_terminal();
        let docker = self.command(arguments);
        // A terminal tells of a new size only those it controls.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(docker.get_program()).args(docker.get_args());
        for (name, value) in docker.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let end = || Stdio::from(far.try_clone().expect("clones"));
        command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let pieces = read_ahead(File::from(near.try_clone().expect("clones")));
        let keyboard = File::from(near);
        set_size(&keyboard, size);
        let child = command.spawn().expect("docker runs");
        Terminal { child, keyboard, pieces, shown: String::new() }
    }

    /// Runs docker with `input` piped into it; answers with its output and its exit code.
    pub fn piped(&self, arguments: &[&str], input: &[u8]) -> (Vec<u8>, i32) {
        let docker = self.command(arguments);
        let mut command = Command::new("timeout");
        // Killed, because it would pass other signals on to the container.
        command.args(["--signal=KILL", &PATIENCE.as_secs().to_string()]);
        command.arg(docker.get_program()).args(docker.get_args());
        for (name, value) in docker.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("docker runs");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A command may end before it has read all.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().expect("ends");
        writer.join().expect("the writer ends with its reader");
        (output.stdout, output.status.code().unwrap_or(-1))
    }
}

impl Terminal {
    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("typed");
    }

    /// Gives the terminal another size.
    pub fn resize(&self, size: (u16, u16)) {
        set_size(&self.keyboard, size);
    }

    /// Waits until `text` is shown; what is looked for next comes after it.
    pub fn see(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            match self.pieces.recv_timeout(NUDGE) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() < end => self.nudge(),
                Err(error) => panic!("{text:?} is not shown ({error}): {:?}", self.shown),
            }
        }
    }

    /// Tells the command again that its terminal may have another size: what it was told before it listened is lost.
    fn nudge(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a process has a number"), Signal::WINCH);
    }

    /// Waits for the command's end; answers with what was left to be shown, and its exit code.
    pub fn end(mut self) -> (String, i32) {
        loop {
            match self.pieces.recv_timeout(PATIENCE) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("the command does not end ({error}): {:?}", self.shown),
            }
        }
        let code = self.child.wait().expect("ended").code().unwrap_or(-1);
        (std::mem::take(&mut self.shown), code)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_terminal() -> (OwnedFd, OwnedFd) {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
    let near = near.expect("the host has terminals");
    grantpt(&near).expect("granted");
    unlockpt(&near).expect("unlocked");
    let name = ptsname(&near, Vec::new()).expect("it has a name");
    let far = File::options().read(true).write(true).open(name.to_str().expect("text"));
    (near, far.expect("it opens").into())
}

fn set_size(terminal: &File, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("sized");
}

/// Reads until the last program has left the terminal.
fn read_ahead(mut terminal: File) -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::sync_channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length) = terminal.read(&mut piece) {
            if length == 0 || sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

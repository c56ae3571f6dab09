//! A docker command that goes on, read line by line.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::host::PATIENCE;

/// Lines read ahead of the test.
const LINES_MAX: usize = 1024;

/// A command whose output is read while it runs. Dropping it ends it.
#[derive(Debug)]
pub struct Follow {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follow {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("docker runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the stream goes on")
    }

    /// Waits for the end of the stream; answers with what was left of it.
    pub fn rest(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("the stream does not end ({error}): {rest:?}"),
            }
        }
        self.child.wait().expect("ended");
        rest
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

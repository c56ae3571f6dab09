//! What daemon and shim say to each other.
//!
//! One message is one packet of a `SOCK_SEQPACKET` unix socket, with descriptors attached where a
//! request says so. The content is JSON: a [`Call`] towards the shim, a [`Push`] towards the
//! daemon. Shims outlive daemons, so a daemon meets shims older and newer than itself: members may
//! be added and are read past, requests may be added and get [`Fault::Unknown`] from a shim that
//! does not know them, nothing is ever renamed or given another meaning.

use runtime::spec::{Process, Resources};
use serde::{Deserialize, Serialize};

use crate::config::ExitRecord;

/// Version of the protocol; grows when requests are added.
pub const VERSION: u32 = 1;

/// Largest packet, in bytes: an exec with the largest environment the kernel takes fits.
pub const PACKET_BYTES_MAX: usize = 1024 * 1024;

/// Most descriptors in one packet: standard input, output and errors.
pub const PACKET_FDS_MAX: usize = 3;

/// A request with the number its answer will carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the daemon, unique on its connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What a daemon can ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    /// Start the container. Answered by [`Answer::Started`].
    Start,
    /// How it is. Answered by [`Answer::State`].
    State,
    /// Send a signal by its number.
    Kill {
        /// The number.
        signal: i32,
        /// To every process instead of the first alone.
        #[serde(default)]
        all: bool,
    },
    /// Run a process in the container. Without a terminal three descriptors come along: its input,
    /// output and errors. Answered by [`Answer::Execed`].
    Exec {
        /// The daemon's name for it.
        exec_id: String,
        /// What to run.
        process: Box<Process>,
    },
    /// Send a signal to a process brought in by exec.
    KillExec {
        /// The daemon's name for it.
        exec_id: String,
        /// The number.
        signal: i32,
    },
    /// Set the size of the container's terminal.
    Resize {
        /// Rows.
        height: u16,
        /// Columns.
        width: u16,
    },
    /// Give a client the container's streams. As many descriptors come along as flags are set, in
    /// the order input, output, errors. Answered by [`Answer::Attached`].
    Attach {
        /// Whether a descriptor to read input from comes along.
        #[serde(default)]
        stdin: bool,
        /// Whether one to write output to does.
        #[serde(default)]
        stdout: bool,
        /// Whether one to write errors to does.
        #[serde(default)]
        stderr: bool,
        /// What happens when the client does not read.
        #[serde(default)]
        when_full: WhenFull,
    },
    /// End the container's input.
    CloseStdin,
    /// Stop all processes.
    Pause,
    /// Let them go on.
    Resume,
    /// Change limits.
    Update {
        /// Those to change.
        resources: Box<Resources>,
    },
    /// Kill what is left, remove the cgroup, end the shim.
    Delete,
}

/// What a slow reader of an attachment costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The attachment is dropped: the container and its log go on.
    #[default]
    Drop,
    /// The container waits with its next output, as under Docker.
    Wait,
}

/// What a shim sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Push {
    /// To one request.
    Answer {
        /// The request's number.
        id: u64,
        /// Its outcome.
        answer: Result<Answer, Fault>,
    },
    /// The container has ended; the shim is about to.
    Exited {
        /// How.
        exit: ExitRecord,
    },
    /// A process brought in by exec has ended.
    ExecExited {
        /// The daemon's name for it.
        exec_id: String,
        /// Exit code; 128 plus the signal's number when a signal ended it.
        exit_code: i32,
    },
    /// A client did not read and was let go.
    AttachmentDropped {
        /// Its number.
        attachment: u64,
    },
}

/// Outcome of a request that worked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Answer {
    /// Done, nothing to say.
    Done,
    /// The container runs.
    Started(Started),
    /// How it is.
    State(State),
    /// The process runs. With a terminal, its controlling end comes along.
    Execed {
        /// Process id on the host.
        pid: i32,
        /// What the host did not grant.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// The client has the streams.
    Attached {
        /// Its number.
        attachment: u64,
    },
}

/// A container that has just started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Started {
    /// Process id on the host.
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at_ns: u64,
    /// What the host did not grant and the container does without.
    pub notes: Vec<String>,
}

/// How a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Version of the protocol the shim speaks.
    pub version: u32,
    /// Where it is in its life.
    pub status: Status,
    /// Process id; zero before the start.
    pub pid: i32,
    /// Nanoseconds since 1970; zero before the start.
    pub started_at_ns: u64,
    /// Names of the processes brought in by exec that run.
    pub execs: Vec<String>,
    /// How it ended, when it has.
    pub exit: Option<ExitRecord>,
}

/// A container's life. States only move downwards, save between running and paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Stopped for a while.
    Paused,
    /// Over.
    Exited,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Fault {
    /// The shim is older than the request, or cannot read it.
    #[error("shim does not know this request: {text}")]
    Unknown {
        /// What it made of it.
        text: String,
    },
    /// The container is not in a state for it.
    #[error("container is {status:?}")]
    WrongStatus {
        /// The state it is in.
        status: Status,
    },
    /// No such exec.
    #[error("no exec {exec_id}")]
    NoExec {
        /// The name.
        exec_id: String,
    },
    /// Descriptors missing, or a limit reached.
    #[error("{text}")]
    Refused {
        /// Which.
        text: String,
    },
    /// The runtime could not do it.
    #[error("{text}")]
    Runtime {
        /// What was attempted, and why it did not work.
        text: String,
        /// The exit code Docker reports for it: 127, 126 or 128.
        exit_code: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_newer_daemon_are_read_past() {
        let text = r#"{"id":7,"later":1,"request":{"kind":"kill","signal":9,"group":"x"}}"#;
        let call: Call = serde_json::from_str(text).unwrap();
        assert!(matches!(call.request, Request::Kill { signal: 9, all: false }));
    }

    #[test]
    fn an_answer_survives_the_wire() {
        let push = Push::Answer {
            id: 1,
            answer: Err(Fault::Runtime { text: "no".to_owned(), exit_code: 127 }),
        };
        let text = serde_json::to_string(&push).unwrap();
        let Push::Answer { id: 1, answer: Err(fault) } = serde_json::from_str(&text).unwrap()
        else {
            panic!("{text}");
        };
        assert_eq!(fault.to_string(), "no");
    }
}

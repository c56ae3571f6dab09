//! What can go wrong with a container, said so that a user can act on it.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Exit code for a program that is not there, as shells and Docker have it.
pub const EXIT_NOT_FOUND: i32 = 127;
/// Exit code for a program that may not be run.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit code for a container that could not be started for another reason.
pub const EXIT_NOT_STARTED: i32 = 128;

/// An operation on a container that did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` cannot be read.
    #[error("read {path}")]
    ReadSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `config.json` is not a specification.
    #[error("parse {path}")]
    ParseSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The specification asks for something that does not exist or contradicts itself.
    #[error("invalid spec: {reason}")]
    InvalidSpec {
        /// What is wrong.
        reason: String,
    },
    /// A capability name nobody knows.
    #[error("unknown capability {name:?}")]
    UnknownCapability {
        /// The name.
        name: String,
    },
    /// A seccomp profile that cannot be compiled.
    #[error("compile seccomp profile: {reason}")]
    Seccomp {
        /// What is wrong.
        reason: String,
    },
    /// A step done by the caller's process, before or beside the container's.
    #[error("{step}: {}", errno_text(*errno))]
    Step {
        /// What was attempted on which object.
        step: String,
        /// Why it did not work.
        errno: Errno,
    },
    /// A step inside the new process; the text names it.
    #[error("{text}")]
    Init {
        /// What was attempted, and why it did not work.
        text: String,
        /// The exit code Docker reports for it.
        exit_code: i32,
    },
    /// A cgroup file or directory.
    #[error("{action} {path}: {}", errno_text(*errno))]
    Cgroup {
        /// What was attempted.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it did not work.
        errno: Errno,
    },
    /// A limit the host cannot hold a container to. Running without it is no choice of ours.
    #[error(
        "{limit} cannot be limited: control group {path} has no controller for it; see that the kernel has it and that it is switched on (cgroup.subtree_control) in the groups above"
    )]
    NoController {
        /// What was to be limited.
        limit: &'static str,
        /// The group.
        path: PathBuf,
    },
    /// The host's control groups are not to be seen.
    #[error(
        "control groups are not mounted at {}: mount them there (`mount -t cgroup2 cgroup2 /sys/fs/cgroup`, or Debian's package cgroupfs-mount), and enter a network namespace with `nsenter --net=/run/netns/NAME`, because `ip netns exec` hides them behind a new /sys", root.display()
    )]
    NoCgroups {
        /// Where they are looked for.
        root: PathBuf,
    },
    /// A process that is to be in a container is not.
    #[error("process {pid} is not in control group {group}")]
    NotMember {
        /// The process.
        pid: i32,
        /// The container's group.
        group: PathBuf,
    },
    /// Version 1 without the controller that keeps containers from the host's devices. Docker's words.
    #[error("Devices cgroup isn't mounted")]
    NoDevices,
    /// An OCI runtime binary cannot be run.
    #[error("run {program}")]
    RunExternal {
        /// The binary.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An OCI runtime binary reported an error.
    #[error("{program} {action}: {text}")]
    External {
        /// The binary.
        program: String,
        /// Its verb.
        action: &'static str,
        /// What it wrote.
        text: String,
    },
}

impl Error {
    /// The exit code Docker gives a container which could not start for this reason.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Init { exit_code, .. } => *exit_code,
            Self::External { text, .. } => exit_code_of_text(text),
            _ => EXIT_NOT_STARTED,
        }
    }

    /// The error and all its causes in one line.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            text.push_str(": ");
            text.push_str(&source.to_string());
            cause = source.source();
        }
        text
    }
}

/// Docker tells a missing program from one that may not run by these words of a runtime's message.
fn exit_code_of_text(text: &str) -> i32 {
    let lower = text.to_ascii_lowercase();
    if lower.contains("executable file not found")
        || lower.contains("executable file `") && lower.contains("not found")
        || lower.contains("no such file or directory")
    {
        return EXIT_NOT_FOUND;
    }
    if lower.contains("permission denied") {
        return EXIT_NOT_EXECUTABLE;
    }
    EXIT_NOT_STARTED
}

/// The kernel's text for an error, in the lower case that Docker's messages use.
pub fn errno_text(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_ascii_lowercase().to_string() + letters.as_str(),
        None => String::new(),
    }
}

/// Gives a kernel error its step.
pub(crate) trait Step<T> {
    /// Names what was attempted; the text is only made when it is needed.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|errno| Error::Step { step: step(), errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_errors_read_as_go_programs_write_them() {
        assert_eq!(errno_text(Errno::NOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::ACCESS), "permission denied");
    }

    #[test]
    fn texts_of_other_runtimes_give_the_exit_code_docker_gives() {
        let cases = [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("executable file `x` not found in $PATH: No such file or directory", 127),
            ("exec: \"/etc/passwd\": permission denied", 126),
            ("cannot set memory limit", 128),
        ];
        for (text, code) in cases {
            assert_eq!(exit_code_of_text(text), code, "{text}");
        }
    }
}

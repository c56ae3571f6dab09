//! A host: a network namespace and a name, and how programs are run on it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, ip};

/// A host, by its network namespace.
#[derive(Clone, Debug)]
pub struct Host {
    /// Of the network namespace.
    pub namespace: String,
    /// What programs on it hear of who they are.
    pub hostname: String,
    /// Of the mount namespace, where it is not the machine's.
    pub mounts: Option<PathBuf>,
}

/// Where a daemon keeps its things.
#[derive(Clone, Debug)]
pub struct Daemon {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub socket: PathBuf,
    pub pidfile: PathBuf,
    /// The control group of its containers, without a slash.
    pub group: String,
}

impl Host {
    /// Makes the host's namespace, with nothing but a loopback.
    ///
    /// # Errors
    /// When the kernel refuses, or it is there already.
    pub fn create(&self) -> Result<(), Error> {
        ip(&["netns", "add", &self.namespace])?;
        ip(&["-n", &self.namespace, "link", "set", "lo", "up"])
    }

    /// Whether the host is there.
    pub fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.namespace).exists()
    }

    /// Removes the host's namespace; nothing may run in it any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<(), Error> {
        ip(&["netns", "del", &self.namespace])
    }

    /// A command on the host, whose first word is given as its first argument. It becomes the process that is spawned.
    ///
    /// Not by `ip netns exec`, which would hide the control groups behind a new `/sys`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace));
        command.args(self.mounts.iter().map(|path| format!("--mount={}", path.display())));
        command.args(["--", "unshare", "--uts", "--", "sh", "-c"]);
        command.arg("echo \"$0\" > /proc/sys/kernel/hostname && exec \"$@\"");
        command.arg(&self.hostname).arg(program);
        command
    }
}

impl Daemon {
    /// A daemon with everything in one folder.
    pub fn beneath(directory: &Path, group: &str) -> Self {
        Self {
            data_root: directory.join("data"),
            exec_root: directory.join("exec"),
            socket: directory.join("docker.sock"),
            pidfile: directory.join("pid"),
            group: group.to_owned(),
        }
    }

    /// What `DOCKER_HOST` would be.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The flags that tell the daemon.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec!["-H".to_owned(), self.address()];
        flags.extend(["--pidfile".to_owned(), self.pidfile.display().to_string()]);
        flags.extend(self.roots());
        flags
    }

    /// Those of the flags that `skep purge` takes too.
    pub fn roots(&self) -> Vec<String> {
        let pairs = [
            ("--data-root", self.data_root.display().to_string()),
            ("--exec-root", self.exec_root.display().to_string()),
            ("--cgroup-parent", format!("/{}", self.group)),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

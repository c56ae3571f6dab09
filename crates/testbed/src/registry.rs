//! Debian's docker-registry as a process, for tests and benchmarks.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A registry with an empty storage, on a port of its own. Dropping it ends it.
#[derive(Debug)]
pub struct DockerRegistry {
    child: Child,
    /// `127.0.0.1:port`.
    pub address: String,
    _directory: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts a registry that takes everybody.
    pub fn start() -> Self {
        Self::with_auth(|_| String::new())
    }

    /// Starts one whose section `auth` of its configuration is made for a directory that lives as long as it does.
    pub fn with_auth(auth: impl FnOnce(&Path) -> String) -> Self {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
             delete: {{enabled: true}}\nhttp: {{addr: 127.0.0.1:0}}\n{}",
            directory.path().join("data").display(),
            auth(directory.path())
        );
        std::fs::write(&config, text).expect("the directory is our own");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker-registry is installed");
        let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines();
        let address_in =
            |line: String| Some(line.split("listening on ").nth(1)?.split('"').next()?.to_owned());
        let address = lines.by_ref().map_while(Result::ok).find_map(address_in);
        // It logs each request and would block when nobody read.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("docker-registry listens");
        Self { child, address, _directory: directory }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Debian's docker-registry on a host's loopback, where its daemon speaks plain HTTP with it.

use std::process::{Child, Command, Stdio};

use crate::Host;

/// A registry that answers on 127.0.0.1:5000 of its host. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
}

impl Registry {
    /// Starts the registry and waits until it answers.
    pub fn on(host: &Host) -> Self {
        let storage = host.path("registry");
        std::fs::create_dir_all(&storage).expect("creates");
        let config = host.path("registry.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
            storage.display()
        );
        std::fs::write(&config, text).expect("writes");
        let mut registry = Command::new("ip");
        registry.args(["netns", "exec", &host.name, "docker-registry", "serve"]).arg(&config);
        registry.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { child: registry.spawn().expect("docker-registry is installed") };
        host.until("the registry answers", || {
            host.exec(&["curl", "-sf", "http://127.0.0.1:5000/v2/"]).code == 0
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

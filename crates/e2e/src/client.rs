//! A machine on the hosts' switch or router that is no part of any swarm.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::next_name;
use crate::middle::Middle;
use crate::{Printed, printed};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with a cable to the switch or router. Dropping it removes it.
#[derive(Debug)]
pub struct Client {
    pub address: String,
    machine: testbed::Host,
}

impl Client {
    pub(crate) fn on(middle: &Middle, number: u8) -> Self {
        let namespace = next_name();
        let machine = testbed::Host { namespace, hostname: "client".into(), mounts: None };
        machine.create().expect("the namespace is made");
        let address = middle.address(number);
        let placed = middle.connect(&format!("client{number}"), &machine.namespace, number);
        placed.expect("the cable is laid");
        Self { address, machine }
    }

    /// Runs a command there.
    pub fn exec(&self, arguments: &[&str]) -> Printed {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machine.namespace]).args(arguments);
        printed(command.output().expect("ip runs"))
    }

    /// Its network namespace.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.machine.namespace)
    }

    /// Does something there, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace(), work)
    }

    /// What a port answers.
    pub fn ask(&self, address: &str, port: u16) -> Option<String> {
        let answer = self.exec(&["curl", "-sS", "-m", "5", &format!("http://{address}:{port}/")]);
        (answer.code == 0).then_some(answer.stdout)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.machine.remove();
    }
}

/// Does something in a network namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(namespace).expect("the namespace is there");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), network).expect("enters");
            work()
        });
        thread.join().expect("the work is done")
    })
}

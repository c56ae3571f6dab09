//! A machine on the hosts' switch that is no part of any swarm.

use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testbed::Switch;

use crate::host::next_name;
use crate::{Printed, printed};

/// Does something in the network namespace that a file names, on a thread of its own.
pub fn within_network<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(namespace).expect("the namespace is there");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), network).expect("enters");
            work()
        });
        thread.join().expect("the work is done")
    })
}

/// A network namespace with a cable to the switch. Dropping it removes it.
#[derive(Debug)]
pub struct Client {
    pub address: String,
    machine: testbed::Host,
}

impl Client {
    pub(crate) fn on(switch: &Switch, number: u8) -> Self {
        let namespace = next_name();
        let machine = testbed::Host { namespace, hostname: "client".into(), mounts: None };
        machine.create().expect("the namespace is made");
        let address = format!("10.99.0.{number}");
        let port = format!("client{number}");
        let placed = switch.connect(&port, &machine.namespace, &format!("{address}/24"));
        placed.expect("the cable is laid");
        Self { address, machine }
    }

    /// Runs a command there.
    pub fn exec(&self, arguments: &[&str]) -> Printed {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machine.namespace]).args(arguments);
        printed(command.output().expect("ip runs"))
    }

    /// Does something there, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within_network(&self.namespace(), work)
    }

    /// The file that names its network namespace.
    pub fn namespace(&self) -> String {
        format!("/run/netns/{}", self.machine.namespace)
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

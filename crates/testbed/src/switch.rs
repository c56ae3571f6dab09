//! A bridge in a namespace of its own, and the cables to its hosts.

use std::path::Path;

use crate::{Error, ip, unplug};

/// The bridge's name within its namespace.
const BRIDGE: &str = "switch";

/// A switch, by the name of its network namespace.
#[derive(Clone, Debug)]
pub struct Switch {
    namespace: String,
}

impl Switch {
    /// The switch of this name, there or not.
    pub fn named(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes the switch.
    ///
    /// # Errors
    /// When the kernel refuses, or it is there already.
    pub fn create(&self) -> Result<(), Error> {
        ip(&["netns", "add", &self.namespace])?;
        // A tree without loops needs no protocol that looks for them and keeps ports waiting.
        self.ip(&["link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])?;
        self.ip(&["link", "set", BRIDGE, "up"])
    }

    /// Whether the switch is there.
    pub fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.namespace).exists()
    }

    /// Puts a cable into the host's namespace, where its end is `eth0` with `address` (with prefix length).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect(&self, port: &str, host: &str, address: &str) -> Result<(), Error> {
        self.ip(&["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host])?;
        self.plug(port)?;
        ip(&["-n", host, "addr", "add", address, "dev", "eth0"])?;
        ip(&["-n", host, "link", "set", "eth0", "up"])
    }

    /// Puts a cable into the machine's own namespace, where its end is `link` with `address` (with prefix length).
    ///
    /// # Errors
    /// When the kernel refuses, or there is such a link already.
    pub fn connect_machine(&self, port: &str, link: &str, address: &str) -> Result<(), Error> {
        ip(&["link", "add", link, "type", "veth", "peer", "name", port, "netns", &self.namespace])?;
        self.plug(port)?;
        ip(&["addr", "add", address, "dev", link])?;
        ip(&["link", "set", link, "up"])
    }

    /// Takes the cable out of the port, also where the host is gone already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn disconnect(&self, port: &str) -> Result<(), Error> {
        unplug(&self.namespace, port)
    }

    /// Takes the port down: nothing comes through its cable any more.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn cut(&self, port: &str) -> Result<(), Error> {
        self.ip(&["link", "set", port, "down"])
    }

    /// Undoes [`Switch::cut`].
    ///
    /// # Errors
    /// When there is no such port.
    pub fn heal(&self, port: &str) -> Result<(), Error> {
        self.ip(&["link", "set", port, "up"])
    }

    /// Removes the switch and its cables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<(), Error> {
        // The namespace lives on while something holds it; its links must not.
        self.ip(&["link", "del", BRIDGE])?;
        ip(&["netns", "del", &self.namespace])
    }

    fn plug(&self, port: &str) -> Result<(), Error> {
        self.ip(&["link", "set", port, "master", BRIDGE])?;
        self.ip(&["link", "set", port, "up"])
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), Error> {
        ip(&[&["-n", &self.namespace], arguments].concat())
    }
}

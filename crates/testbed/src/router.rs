//! A router in a namespace of its own: each host has a link and a subnet for itself, as hosts of different sites do.

use std::process::Command;

use crate::{Error, ip, run, unplug};

/// Bytes that links take if nobody says otherwise.
const ETHERNET: u16 = 1_500;

/// A router, by the name of its network namespace. Hosts are told apart by numbers of 1 to 99.
///
/// ```text
/// host 1: 10.99.1.1/24 ── 10.99.1.254 router 10.99.103.1 ── narrow ── 10.99.103.2 hop 10.99.3.254 ── 10.99.3.1/24 host 3
/// ```
#[derive(Clone, Debug)]
pub struct Router {
    namespace: String,
}

impl Router {
    /// The router of this name, there or not.
    pub fn named(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A host's address, without prefix length.
    pub fn address(number: u8) -> String {
        format!("10.99.{number}.1")
    }

    /// Makes the router.
    ///
    /// # Errors
    /// When the kernel refuses, or it is there already.
    pub fn create(&self) -> Result<(), Error> {
        make_router(&self.namespace)
    }

    /// Puts a cable into the host's namespace, where its end is `eth0`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect(&self, port: &str, host: &str, number: u8) -> Result<(), Error> {
        lay(&self.namespace, port, host, number)
    }

    /// [`Router::connect`] by way of another router, the link to which takes no packets of more than `bytes`. Neither end
    /// sees that on its own links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect_far(&self, port: &str, host: &str, number: u8, bytes: u16) -> Result<(), Error> {
        let (here, hop) = (self.namespace.as_str(), self.hop(number));
        let (near, far) =
            (format!("10.99.{}.1", 100 + number), format!("10.99.{}.2", 100 + number));
        let bytes = bytes.to_string();
        make_router(&hop)?;
        let cable = ["link", "add", port, "mtu", &bytes, "type", "veth", "peer"];
        ip(&[&["-n", here][..], &cable, &["name", "back", "mtu", &bytes, "netns", &hop]].concat())?;
        raise(here, port, &near)?;
        raise(&hop, "back", &far)?;
        let subnet = format!("10.99.{number}.0/24");
        ip(&["-n", here, "route", "add", &subnet, "via", &far])?;
        ip(&["-n", &hop, "route", "add", "default", "via", &near])?;
        lay(&hop, port, host, number)
    }

    /// Has the routers on the way to a far host tell nobody of packets that are too long for them, and pass on no parts of
    /// packets, as some firewalls do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hush(&self, number: u8) -> Result<(), Error> {
        let table = "add table ip hush; \
             add chain ip hush out { type filter hook output priority 0; }; \
             add rule ip hush out icmp type destination-unreachable drop; \
             add chain ip hush in { type filter hook prerouting priority -500; }; \
             add rule ip hush in ip frag-off & 0x3fff != 0 drop";
        for router in [&self.namespace, &self.hop(number)] {
            run(Command::new("ip").args(["netns", "exec", router, "nft", table]))?;
        }
        Ok(())
    }

    /// Takes the cable of a host that is not far out of its port, also where the host is gone already.
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
        ip(&["-n", &self.namespace, "link", "set", port, "down"])
    }

    /// Undoes [`Router::cut`]. The way to a host that is far does not come back.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn heal(&self, port: &str) -> Result<(), Error> {
        ip(&["-n", &self.namespace, "link", "set", port, "up"])
    }

    /// Removes the router with all behind it but the hosts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<(), Error> {
        let hops = (1..100).map(|number| self.hop(number));
        for hop in hops.filter(|hop| std::path::Path::new("/run/netns").join(hop).exists()) {
            ip(&["netns", "del", &hop])?;
        }
        ip(&["netns", "del", &self.namespace])
    }

    fn hop(&self, number: u8) -> String {
        format!("{}-hop{number}", self.namespace)
    }
}

fn make_router(namespace: &str) -> Result<(), Error> {
    ip(&["netns", "add", namespace])?;
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    run(Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", forward]))
}

/// The last cable to a host, which has a subnet for it alone.
fn lay(router: &str, port: &str, host: &str, number: u8) -> Result<(), Error> {
    let (gateway, mtu) = (format!("10.99.{number}.254"), ETHERNET.to_string());
    let cable = ["link", "add", port, "mtu", &mtu, "type", "veth", "peer", "name", "eth0"];
    ip(&[&["-n", router][..], &cable, &["mtu", &mtu, "netns", host]].concat())?;
    raise(router, port, &gateway)?;
    raise(host, "eth0", &Router::address(number))?;
    ip(&["-n", host, "route", "add", "default", "via", &gateway])
}

fn raise(namespace: &str, link: &str, address: &str) -> Result<(), Error> {
    ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", link])?;
    ip(&["-n", namespace, "link", "set", link, "up"])
}

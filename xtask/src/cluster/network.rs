//! Addresses that nobody on this machine uses, and the state of the cables.

use std::process::Command;

use anyhow::{Context, bail};

use super::NAME;

/// Second numbers of the subnets that are tried.
const CANDIDATES: std::ops::RangeInclusive<u8> = 86..=126;

/// 256 addresses, 10.x.0.0/24.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subnet(u8);

impl Subnet {
    /// The machine's own address in it, with prefix length.
    pub(super) fn machine(self) -> String {
        format!("10.{}.0.254/24", self.0)
    }

    /// A host's address, with prefix length.
    pub(super) fn host(self, number: u8) -> String {
        format!("10.{}.0.{number}/24", self.0)
    }
}

/// A subnet to which this machine has no route yet but perhaps its default one.
pub(super) fn free_subnet() -> anyhow::Result<Subnet> {
    for subnet in CANDIDATES.map(Subnet) {
        let prefix = format!("10.{}.0.0/24", subnet.0);
        let wider = routes(&["match", &prefix])?;
        let is_free = wider.lines().all(|route| route.starts_with("default"));
        if is_free && routes(&["root", &prefix])?.is_empty() {
            return Ok(subnet);
        }
    }
    bail!("this machine has routes to all of 10.86.0.0 to 10.126.0.255: there is no room for hosts")
}

fn routes(selector: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(["-4", "route", "show"]).args(selector).output();
    let output = output.context("run ip")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a host's port on the switch was taken down.
pub(super) fn is_cut(port: &str) -> bool {
    let output = Command::new("ip").args(["-n", NAME, "-o", "link", "show", port]).output();
    output.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains(",UP"))
}

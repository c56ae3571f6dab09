//! Which owner has published which ports, and what that means for the table.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::reserve::Reservation;
use crate::{Error, state_file};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of this host and the containers that serve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// `None`: all addresses of the host.
    pub host_ip: Option<IpAddr>,
    pub published: u16,
    pub target: u16,
    pub backends: Vec<Ipv4Addr>,
}

/// Where connections come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Front {
    pub(crate) protocol: Protocol,
    /// `None`: all addresses of the host.
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) port: u16,
}

/// One front and the sockets behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    pub(crate) front: Front,
    pub(crate) backends: Vec<(Ipv4Addr, u16)>,
}

/// What a replacement takes out of the table and puts into it.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) removed: Vec<Rule>,
    pub(crate) added: Vec<Rule>,
    before: Vec<PublishedPort>,
}

#[derive(Debug, Default)]
pub(crate) struct Ports {
    owners: BTreeMap<String, Vec<PublishedPort>>,
    /// Sockets that keep processes of the host off our ports.
    reserved: BTreeMap<Front, Reservation>,
}

impl Ports {
    /// What an earlier daemon had published; its containers still serve.
    pub(crate) fn load(run_dir: &Path) -> Self {
        let owners: BTreeMap<String, Vec<PublishedPort>> =
            state_file::read(&file(run_dir)).unwrap_or_default();
        let mut ports = Self { owners, reserved: BTreeMap::new() };
        for front in ports.fronts() {
            // A process took the port while no daemon ran: the table still leads past it, as before.
            if let Ok(reservation) = Reservation::new(front) {
                ports.reserved.insert(front, reservation);
            }
        }
        ports
    }

    pub(crate) fn save(&self, run_dir: &Path) -> Result<(), Error> {
        state_file::write(&file(run_dir), &self.owners)
    }

    pub(crate) fn rules(&self) -> Vec<Rule> {
        self.owners.values().flat_map(|ports| rules(ports)).collect()
    }

    /// Gives `owner` these ports instead of those it had.
    ///
    /// # Errors
    /// [`Error::PortTaken`] or [`Error::PortHeld`]; nothing changes then.
    pub(crate) fn replace(
        &mut self,
        owner: &str,
        ports: Vec<PublishedPort>,
    ) -> Result<Change, Error> {
        let before = self.owners.get(owner).cloned().unwrap_or_default();
        let (old, new) = (rules(&before), rules(&ports));
        let taken = self.taken_by_others(owner);
        let mut reserved = Vec::new();
        for front in ports.iter().filter_map(front) {
            if taken.contains(&front) {
                return Err(port_taken(front));
            }
            if !self.reserved.contains_key(&front) {
                let reservation = Reservation::new(front).map_err(port_held(front))?;
                reserved.push((front, reservation));
            }
        }
        self.reserved.extend(reserved);
        if ports.is_empty() {
            self.owners.remove(owner);
        } else {
            self.owners.insert(owner.to_owned(), ports);
        }
        let fronts: BTreeSet<_> = self.fronts().into_iter().collect();
        self.reserved.retain(|front, _| fronts.contains(front));
        let removed = old.iter().filter(|rule| !new.contains(rule)).cloned().collect();
        let added = new.iter().filter(|rule| !old.contains(rule)).cloned().collect();
        Ok(Change { removed, added, before })
    }

    /// Gives `owner` those of these ports that can be had, instead of those it had; answers with the others.
    pub(crate) fn keep(
        &mut self,
        owner: &str,
        ports: Vec<PublishedPort>,
    ) -> Vec<(PublishedPort, Error)> {
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        let taken = self.taken_by_others(owner);
        for port in ports {
            match self.reserve(&taken, &port) {
                Ok(()) => kept.push(port),
                Err(error) => refused.push((port, error)),
            }
        }
        self.owners.insert(owner.to_owned(), kept);
        let fronts: BTreeSet<_> = self.fronts().into_iter().collect();
        self.reserved.retain(|front, _| fronts.contains(front));
        refused
    }

    fn reserve(&mut self, taken: &BTreeSet<Front>, port: &PublishedPort) -> Result<(), Error> {
        let Some(front) = front(port) else { return Ok(()) };
        if taken.contains(&front) {
            return Err(port_taken(front));
        }
        if let Entry::Vacant(place) = self.reserved.entry(front) {
            place.insert(Reservation::new(front).map_err(port_held(front))?);
        }
        Ok(())
    }

    /// Whether `owner` could have this port.
    ///
    /// # Errors
    /// [`Error::PortTaken`] or [`Error::PortHeld`].
    pub(crate) fn check_free(&self, owner: &str, port: &PublishedPort) -> Result<(), Error> {
        let Some(front) = front(port) else { return Ok(()) };
        if self.taken_by_others(owner).contains(&front) {
            return Err(port_taken(front));
        }
        if !self.reserved.contains_key(&front) {
            Reservation::new(front).map_err(port_held(front))?;
        }
        Ok(())
    }

    fn taken_by_others(&self, owner: &str) -> BTreeSet<Front> {
        let others = self.owners.iter().filter(|(other, _)| *other != owner);
        others.flat_map(|(_, ports)| ports.iter().filter_map(front)).collect()
    }

    /// Takes a replacement back that the table refused.
    pub(crate) fn restore(&mut self, owner: &str, change: Change) {
        if change.before.is_empty() {
            self.owners.remove(owner);
        } else {
            self.owners.insert(owner.to_owned(), change.before);
        }
    }

    fn fronts(&self) -> Vec<Front> {
        self.owners.values().flatten().filter_map(front).collect()
    }
}

/// The front of a port; ports on IPv6 addresses of the host have none yet.
fn front(port: &PublishedPort) -> Option<Front> {
    let address = match port.host_ip {
        None => None,
        Some(IpAddr::V4(address)) if address.is_unspecified() => None,
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) => return None,
    };
    Some(Front { protocol: port.protocol, address, port: port.published })
}

fn rules(ports: &[PublishedPort]) -> Vec<Rule> {
    let mut rules: BTreeMap<Front, Vec<(Ipv4Addr, u16)>> = BTreeMap::new();
    for port in ports {
        let Some(front) = front(port) else { continue };
        let backends = rules.entry(front).or_default();
        backends.extend(port.backends.iter().map(|address| (*address, port.target)));
    }
    rules.into_iter().map(|(front, backends)| Rule { front, backends }).collect()
}

fn port_taken(front: Front) -> Error {
    let address = front.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Error::PortTaken { address: address.into(), port: front.port }
}

fn port_held(front: Front) -> impl FnOnce(std::io::Error) -> Error {
    let address = front.address.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
    let protocol = match front.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    move |source| Error::PortHeld { protocol, address, port: front.port, source }
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("ports.json")
}

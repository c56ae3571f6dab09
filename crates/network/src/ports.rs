//! Which owner has published which ports, and what that means for the table.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::reserve::Reservation;
use crate::{Error, ipv6, state_file};

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
    /// `None`: all addresses of the host. The unspecified address: all of its version of IP.
    pub host_ip: Option<IpAddr>,
    pub published: u16,
    pub target: u16,
    /// One that has no address of IPv6 of its own answers by the one that follows from the other.
    pub backends: Vec<IpAddr>,
}

/// Where connections come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Front {
    pub(crate) protocol: Protocol,
    /// The unspecified address: all of its version of IP.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl Front {
    /// Whether it is one address of the host that connections come to.
    pub(crate) fn names_address(&self) -> bool {
        !self.address.is_unspecified()
    }
}

/// One front and the sockets behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    pub(crate) front: Front,
    pub(crate) backends: Vec<(IpAddr, u16)>,
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

    /// Sockets of containers that are reached over IPv6, of this owner or of all.
    pub(crate) fn relayed(&self, owner: Option<&str>) -> Vec<(Protocol, Ipv4Addr, u16)> {
        let owners = self.owners.iter().filter(|(it, _)| owner.is_none_or(|owner| owner == *it));
        let ports = owners.flat_map(|(_, ports)| ports);
        let ports = ports.filter(|port| fronts(port).any(|front| front.address.is_ipv6()));
        let sockets = ports.flat_map(|port| {
            port.backends.iter().filter_map(|backend| match backend {
                IpAddr::V4(address) => Some((port.protocol, *address, port.target)),
                IpAddr::V6(_) => None,
            })
        });
        sockets.collect()
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
        for front in ports.iter().flat_map(fronts) {
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
        for front in fronts(port) {
            if taken.contains(&front) {
                return Err(port_taken(front));
            }
            if let Entry::Vacant(place) = self.reserved.entry(front) {
                place.insert(Reservation::new(front).map_err(port_held(front))?);
            }
        }
        Ok(())
    }

    /// Whether `owner` could have this port.
    ///
    /// # Errors
    /// [`Error::PortTaken`] or [`Error::PortHeld`].
    pub(crate) fn check_free(&self, owner: &str, port: &PublishedPort) -> Result<(), Error> {
        let taken = self.taken_by_others(owner);
        for front in fronts(port) {
            if taken.contains(&front) {
                return Err(port_taken(front));
            }
            if !self.reserved.contains_key(&front) {
                Reservation::new(front).map_err(port_held(front))?;
            }
        }
        Ok(())
    }

    fn taken_by_others(&self, owner: &str) -> BTreeSet<Front> {
        let others = self.owners.iter().filter(|(other, _)| *other != owner);
        others.flat_map(|(_, ports)| ports.iter().flat_map(fronts)).collect()
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
        self.owners.values().flatten().flat_map(fronts).collect()
    }
}

/// The fronts of a port.
fn fronts(port: &PublishedPort) -> impl Iterator<Item = Front> + use<> {
    let (protocol, number) = (port.protocol, port.published);
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = match port.host_ip {
        Some(address) => vec![address],
        None => all.into_iter().filter(|it| it.is_ipv4() || ipv6::is_spoken()).collect(),
    };
    addresses.into_iter().map(move |address| Front { protocol, address, port: number })
}

fn rules(ports: &[PublishedPort]) -> Vec<Rule> {
    let mut rules: BTreeMap<Front, Vec<(IpAddr, u16)>> = BTreeMap::new();
    for port in ports {
        for front in fronts(port) {
            let sockets = reached_by(front.address, &port.backends);
            let sockets = sockets.into_iter().map(|address| (address, port.target));
            rules.entry(front).or_default().extend(sockets);
        }
    }
    rules.into_iter().map(|(front, backends)| Rule { front, backends }).collect()
}

/// By which addresses those are reached who come to a front of this version of IP.
fn reached_by(front: IpAddr, backends: &[IpAddr]) -> Vec<IpAddr> {
    let is_alike = |address: &&IpAddr| address.is_ipv4() == front.is_ipv4();
    let alike: Vec<_> = backends.iter().filter(is_alike).copied().collect();
    if front.is_ipv4() || !alike.is_empty() {
        return alike;
    }
    let following = backends.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(IpAddr::V6(ipv6::of_container(*address))),
        IpAddr::V6(_) => None,
    });
    following.collect()
}

fn port_taken(front: Front) -> Error {
    Error::PortTaken { address: front.address, port: front.port }
}

fn port_held(front: Front) -> impl FnOnce(std::io::Error) -> Error {
    let protocol = match (front.protocol, front.address) {
        (Protocol::Tcp, IpAddr::V4(_)) => "tcp4",
        (Protocol::Tcp, IpAddr::V6(_)) => "tcp6",
        (Protocol::Udp, IpAddr::V4(_)) => "udp4",
        (Protocol::Udp, IpAddr::V6(_)) => "udp6",
        (Protocol::Sctp, IpAddr::V4(_)) => "sctp4",
        (Protocol::Sctp, IpAddr::V6(_)) => "sctp6",
    };
    let address = SocketAddr::new(front.address, front.port);
    move |source| Error::PortHeld { protocol, address, source }
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("ports.json")
}

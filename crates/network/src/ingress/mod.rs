//! The routing mesh: every node answers on the ports of the swarm's services, and tasks see who asks.
//!
//! ```text
//! client ─► entry node: dnat to the task's address in the ingress network ─► vxlan device ─► the task's node:
//!           dnat to the container's address on the bridge ─► container
//! container ─► bridge: the connection's mark says which node it came by ─► rule, table ─► vxlan device ─► entry node ─► client
//! ```
//! Nothing on the way changes the client's address. A task's address in the ingress network is known to routes and
//! tables only: the container itself has no part in it.

mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use crate::Error;
use crate::nft::{MeshBase, MeshRules, MeshTable, forget_connections};
use crate::ports::Protocol;
use link::Fabric;
pub(crate) use link::{MARK_MASK, mark};

/// A port of every node: protocol and number.
pub type Front = (Protocol, u16);

/// A socket that connections are led to.
pub type Socket = (Ipv4Addr, u16);

/// What this node has to do for the services' ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// How other nodes are reached; without it, this node answers for its own tasks only.
    pub underlay: Option<Underlay>,
    /// Where the other nodes take the traffic of overlays.
    pub nodes: BTreeSet<IpAddr>,
    /// Tasks of other nodes, by their addresses in the ingress network, and those nodes.
    pub routes: BTreeMap<Ipv4Addr, IpAddr>,
    /// Who serves each port. A port of a task of another node stays as it is on the way there.
    pub fronts: BTreeMap<Front, BTreeSet<Socket>>,
    /// This node's tasks as other nodes ask for them, and their sockets on the bridge.
    pub own: BTreeMap<(Ipv4Addr, Front), Socket>,
    /// Bytes of a packet that reaches all the nodes whole. While that is not known, what was known before holds.
    pub way: Option<u32>,
    /// Addresses that are somebody's: connections to others are forgotten.
    pub held: BTreeSet<Ipv4Addr>,
}

/// How the ingress network's traffic goes from node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The network's number on the wire, of 24 bits.
    pub vni: u32,
    /// The network's subnets: what is in them is never led out of the swarm.
    pub subnets: Vec<Ipv4Net>,
    /// This node's address for overlays.
    pub local: IpAddr,
    /// UDP port on every node.
    pub port: u16,
    /// Bytes of a packet inside; without it, what fits Ethernet.
    pub mtu: Option<u32>,
}

/// Names and numbers of this daemon's part, which differ from those of others on the host.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) instance: String,
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Net,
}

/// This node's part in the mesh, as it is in the kernel.
#[derive(Debug)]
pub(crate) struct Mesh {
    place: Place,
    /// Unknown before the first change: an earlier daemon may have left one.
    fabric: Option<Fabric>,
    table: Option<MeshTable>,
    /// What was last asked for.
    wanted: Option<Ingress>,
    /// Addresses that connections may have been led to: those of others need not be looked for, which takes the kernel
    /// some milliseconds each time.
    led_to: BTreeSet<Ipv4Addr>,
    /// Subnets of the other networks of this host.
    inside: Vec<Ipv4Net>,
}

impl Mesh {
    /// What an earlier daemon left goes on working until it is told otherwise.
    pub(crate) fn new(place: Place) -> Self {
        let (led_to, inside) = (BTreeSet::new(), Vec::new());
        Self { place, fabric: None, table: None, wanted: None, led_to, inside }
    }

    /// Makes this node's part what `wanted` says. Where other nodes cannot be reached, its own tasks are served still.
    /// Answers with the first step that the kernel refuses, and with the addresses that are nobody's any more.
    pub(crate) fn set(&mut self, wanted: Ingress) -> (Result<(), Error>, BTreeSet<Ipv4Addr>) {
        let linked = self.link(&wanted);
        let reaches_others = linked.is_ok() && self.fabric.is_some();
        let served = self.serve(&wanted, reaches_others);
        let held = self.wanted.as_ref().map(|last| &last.held);
        let gone = held.into_iter().flat_map(|held| held.difference(&wanted.held));
        let gone = gone.filter_map(|address| self.led_to.take(address)).collect();
        let sockets = wanted.fronts.values().flatten().chain(wanted.own.values());
        self.led_to.extend(sockets.map(|(address, _)| *address));
        self.wanted = Some(wanted);
        (linked.and(served), gone)
    }

    /// How the kernel differs from what was last asked for; with `mends`, it is put right.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn audit(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        let mut faults = self.table.as_mut().map(MeshTable::faults).unwrap_or_default();
        if let Some(fabric) = &self.fabric {
            faults.extend(fabric.faults()?);
        }
        if let Some(wanted) = self.wanted.take_if(|_| mends && !faults.is_empty()) {
            // What is there is read again.
            self.fabric = None;
            if let Some(table) = &mut self.table {
                table.distrust();
            }
            self.set(wanted).0?;
        }
        Ok(faults)
    }

    /// Containers in these subnets ask tasks of other nodes under this node's address.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn set_inside(&mut self, subnets: Vec<Ipv4Net>) -> Result<(), Error> {
        if self.inside == subnets {
            return Ok(());
        }
        self.inside = subnets;
        self.wanted.take().map_or(Ok(()), |wanted| self.set(wanted).0)
    }

    /// Takes everything away, also what an earlier daemon left.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        let mut table = match self.table.take() {
            Some(table) => table,
            None => MeshTable::open(&self.place.instance)?,
        };
        table.remove()?;
        self.fabric = None;
        let gone = self.wanted.take().map(|last| last.held).unwrap_or_default();
        link::remove(&self.place)?;
        forget_connections(&gone)
    }

    /// A node without others needs no way to them.
    fn link(&mut self, wanted: &Ingress) -> Result<(), Error> {
        let Some(underlay) = wanted.underlay.as_ref().filter(|_| !wanted.nodes.is_empty()) else {
            self.fabric = None;
            return link::remove(&self.place);
        };
        let is_right = self.fabric.as_ref().is_some_and(|fabric| fabric.is_for(underlay));
        if !is_right {
            self.fabric = None;
            self.fabric = Some(Fabric::open(&self.place, underlay)?);
        }
        let fabric = self.fabric.as_mut().expect("opened just now where it was missing");
        let set = fabric.fit(wanted.way).and_then(|()| fabric.set(&wanted.nodes, &wanted.routes));
        if set.is_err() {
            // Whatever is there now is read again.
            self.fabric = None;
        }
        set
    }

    fn serve(&mut self, wanted: &Ingress, reaches_others: bool) -> Result<(), Error> {
        let rules = self.rules(wanted, reaches_others);
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(MeshTable::open(&self.place.instance)?),
        };
        table.set(rules)
    }

    fn rules(&self, wanted: &Ingress, reaches_others: bool) -> MeshRules {
        let is_elsewhere = |socket: &Socket| wanted.routes.contains_key(&socket.0);
        let fronts = wanted.fronts.iter().map(|(front, sockets)| {
            let reached = sockets.iter().filter(|socket| reaches_others || !is_elsewhere(socket));
            (*front, reached.copied().collect())
        });
        let fabric = self.fabric.as_ref().filter(|_| reaches_others);
        let homes = wanted.routes.iter().filter_map(|(task, node)| match node {
            IpAddr::V4(node) => Some((*node, *task)),
            IpAddr::V6(_) => None,
        });
        let base = MeshBase {
            link: link::name(&self.place),
            bridge: self.place.bridge.clone(),
            inside: std::iter::once(self.place.subnet).chain(self.inside.iter().copied()).collect(),
            subnets: wanted.underlay.iter().flat_map(|it| it.subnets.clone()).collect(),
            local: wanted.underlay.as_ref().and_then(|underlay| match underlay.local {
                IpAddr::V4(local) => Some(local),
                IpAddr::V6(_) => None,
            }),
        };
        MeshRules {
            base,
            fronts: fronts.collect(),
            own: wanted.own.clone(),
            nodes: fabric.map(Fabric::numbers).unwrap_or_default(),
            homes: if reaches_others { homes.collect() } else { BTreeSet::new() },
        }
    }
}

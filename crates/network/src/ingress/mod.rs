//! The routing mesh: every node answers on the ports of the swarm's services, and tasks see who asks.
//!
//! ```text
//! client ─► entry node: dnat to the task's address in the ingress network ─► vxlan device ─► the task's node:
//!           dnat to the container's address on the bridge ─► container
//! container ─► bridge: the connection's mark says which node it came by ─► rule, table ─► vxlan device ─► entry node ─► client
//! ```
//! Nothing on the way changes the client's address. A task's address in the ingress network is known to routes and
//! tables only: the container itself has no part in it. What is said of IPv4 is done for IPv6 as well, where the host speaks
//! it, under addresses that follow from those of IPv4.

mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

use crate::nft::{Flows, MeshBase, MeshRules, MeshTable, forget_connections};
use crate::ports::Protocol;
use crate::{Error, bridge, ipv6};
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
    /// The other nodes, and where each takes this network's traffic: there, or at its address inside of the tunnel.
    pub nodes: BTreeMap<IpAddr, IpAddr>,
    /// Tasks of other nodes, by their addresses in the ingress network, and those nodes.
    pub routes: BTreeMap<Ipv4Addr, IpAddr>,
    /// Who serves each port. A port of a task of another node stays as it is on the way there.
    pub fronts: BTreeMap<Front, BTreeSet<Socket>>,
    /// Those of them whose clients stay with their task, as long as it is there.
    pub sticky: BTreeSet<Front>,
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
    /// Whether other nodes are reached through the tunnel alone.
    pub is_encrypted: bool,
}

/// Names and numbers of this daemon's part, which differ from those of others on the host.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) instance: String,
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) run_dir: PathBuf,
}

/// This node's part in the mesh, as it is in the kernel.
#[derive(Debug)]
pub(crate) struct Mesh {
    place: Place,
    /// Unknown before the first change: an earlier daemon may have left one.
    fabric: Option<Fabric>,
    /// One for each version of IP that the host speaks, once they are known.
    tables: Vec<MeshTable>,
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
        Self { place, fabric: None, tables: Vec::new(), wanted: None, led_to, inside }
    }

    /// Makes this node's part what `wanted` says. Where other nodes cannot be reached, its own tasks are served still.
    /// Answers with the first step that the kernel refuses, and with the addresses that are nobody's any more.
    pub(crate) fn set(&mut self, wanted: Ingress) -> (Result<(), Error>, BTreeSet<IpAddr>) {
        let linked = self.link(&wanted);
        let reaches_others = linked.is_ok() && self.fabric.is_some();
        let served = self.serve(&wanted, reaches_others);
        let held = self.wanted.as_ref().map(|last| &last.held);
        let gone = held.into_iter().flat_map(|held| held.difference(&wanted.held));
        let gone = gone.filter_map(|address| self.led_to.take(address)).flat_map(all_of).collect();
        let sockets = wanted.fronts.values().flatten().chain(wanted.own.values());
        self.led_to.extend(sockets.map(|(address, _)| *address));
        self.wanted = Some(wanted);
        (linked.and(served), gone)
    }

    /// Addresses that are somebody's who is reached by published ports.
    pub(crate) fn held(&self) -> BTreeSet<IpAddr> {
        self.wanted.iter().flat_map(|wanted| &wanted.held).copied().flat_map(all_of).collect()
    }

    /// The ingress network's subnets, and those that follow from them.
    pub(crate) fn subnets(&self) -> Vec<IpNet> {
        let underlay = self.wanted.iter().filter_map(|wanted| wanted.underlay.as_ref());
        let subnets = underlay.flat_map(|underlay| &underlay.subnets);
        subnets.flat_map(|it| [IpNet::V4(*it), IpNet::V6(ipv6::of_mesh(*it))]).collect()
    }

    /// How the kernel differs from what was last asked for; with `mends`, it is put right.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn audit(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        let mut faults: Vec<_> = self.tables.iter_mut().flat_map(MeshTable::faults).collect();
        if let Some(fabric) = &self.fabric {
            faults.extend(fabric.faults()?);
        }
        if let Some(wanted) = self.wanted.take_if(|_| mends && !faults.is_empty()) {
            // What is there is read again.
            self.fabric = None;
            self.tables.iter_mut().for_each(MeshTable::distrust);
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
        self.open_tables()?;
        self.tables.drain(..).try_for_each(|mut table| table.remove())?;
        self.fabric = None;
        let held = self.wanted.take().map(|last| last.held).unwrap_or_default();
        link::remove(&self.place)?;
        forget_connections(&held.into_iter().flat_map(all_of).collect(), Flows::All)
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

    fn open_tables(&mut self) -> Result<(), Error> {
        if self.tables.is_empty() {
            let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            let spoken = families.into_iter().filter(|it| it.is_ipv4() || ipv6::is_spoken());
            let tables = spoken.map(|of| MeshTable::open(&self.place.instance, of));
            self.tables = tables.collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    fn serve(&mut self, wanted: &Ingress, reaches_others: bool) -> Result<(), Error> {
        self.open_tables()?;
        if self.tables.len() > 1 && !wanted.fronts.is_empty() {
            ipv6::forward()?;
        }
        let of_ipv4 = self.rules(wanted, reaches_others);
        // Those of IPv4 come first.
        if let Some(table) = self.tables.get_mut(1) {
            table.set(rules_of_ipv6(wanted, &of_ipv4))?;
        }
        self.tables[0].set(of_ipv4)
    }

    fn rules(&self, wanted: &Ingress, reaches_others: bool) -> MeshRules {
        let is_elsewhere = |socket: &Socket| wanted.routes.contains_key(&socket.0);
        let fronts = wanted.fronts.iter().map(|(front, sockets)| {
            let reached = sockets.iter().filter(|socket| reaches_others || !is_elsewhere(socket));
            (*front, reached.map(|(address, port)| (IpAddr::V4(*address), *port)).collect())
        });
        let own = wanted.own.iter().map(|((task, front), (address, port))| {
            ((IpAddr::V4(*task), *front), (IpAddr::V4(*address), *port))
        });
        let fabric = self.fabric.as_ref().filter(|_| reaches_others);
        let homes = wanted.routes.iter().filter(|(_, node)| node.is_ipv4() && reaches_others);
        let subnets = wanted.underlay.iter().flat_map(|it| it.subnets.iter().copied());
        let inside = std::iter::once(self.place.subnet).chain(self.inside.iter().copied());
        let base = MeshBase {
            link: link::name(&self.place),
            bridge: self.place.bridge.clone(),
            gateway: bridge::first_of(self.place.subnet).into(),
            inside: inside.map(IpNet::V4).collect(),
            subnets: subnets.map(IpNet::V4).collect(),
            local: wanted.underlay.as_ref().map(|it| it.local).filter(IpAddr::is_ipv4),
        };
        MeshRules {
            base,
            fronts: fronts.collect(),
            sticky: wanted.sticky.clone(),
            own: own.collect(),
            nodes: fabric.map(Fabric::numbers).unwrap_or_default(),
            homes: homes.map(|(task, node)| (*node, IpAddr::V4(*task))).collect(),
        }
    }
}

/// What somebody is reached by, who is a task or a container.
fn all_of(address: Ipv4Addr) -> [IpAddr; 3] {
    [address.into(), ipv6::of_task(address).into(), ipv6::of_container(address).into()]
}

/// The same for IPv6: every address follows.
fn rules_of_ipv6(wanted: &Ingress, rules: &MeshRules) -> MeshRules {
    let task = |address: IpAddr| match address {
        IpAddr::V4(address) => IpAddr::V6(ipv6::of_task(address)),
        other @ IpAddr::V6(_) => other,
    };
    let socket = |(address, port): &(IpAddr, u16)| {
        let following = match address {
            IpAddr::V4(address) if wanted.routes.contains_key(address) => ipv6::of_task(*address),
            IpAddr::V4(address) => ipv6::of_container(*address),
            IpAddr::V6(address) => *address,
        };
        (IpAddr::V6(following), *port)
    };
    let fronts = rules.fronts.iter();
    let own = rules.own.iter();
    let homes = wanted.routes.iter();
    let subnets = wanted.underlay.iter().flat_map(|it| it.subnets.iter().copied());
    let inside = rules.base.inside.iter().filter_map(|subnet| match subnet {
        IpNet::V4(subnet) => Some(IpNet::V6(ipv6::of_subnet(*subnet))),
        IpNet::V6(_) => None,
    });
    MeshRules {
        base: MeshBase {
            link: rules.base.link.clone(),
            bridge: rules.base.bridge.clone(),
            gateway: socket(&(rules.base.gateway, 0)).0,
            inside: inside.collect(),
            subnets: subnets.map(|subnet| IpNet::V6(ipv6::of_mesh(subnet))).collect(),
            local: wanted.underlay.as_ref().map(|it| IpAddr::V6(ipv6::of_node(it.local))),
        },
        fronts: fronts.map(|(front, to)| (*front, to.iter().map(socket).collect())).collect(),
        sticky: rules.sticky.clone(),
        own: own.map(|((at, front), to)| ((task(*at), *front), socket(to))).collect(),
        nodes: rules.nodes.clone(),
        // By which other addresses of IPv6 nodes ask is not known.
        homes: homes
            .filter(|(_, node)| node.is_ipv6() && !rules.nodes.is_empty())
            .map(|(task, node)| (*node, IpAddr::V6(ipv6::of_task(*task))))
            .collect(),
    }
}

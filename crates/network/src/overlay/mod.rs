//! Networks of the swarm, as far as they reach onto this node.
//!
//! ```text
//! host namespace              namespace of the overlay            namespace of a container
//!   UDP 4789 ◄── vxlan's socket ── vx0 ─┐
//!                                     br0 ── veth of each container ── eth1: 10.0.1.5/24, nftables "skep", DNS
//! ```
//! Who is where is written into forwarding and neighbour entries: nothing is flooded, nothing is learnt.

mod lane;
pub(crate) mod link;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::nft::{Balancer, Guard, NAMES_ADDRESS, NamePorts, Tenant};
use crate::{DEFAULT_NETWORK, Error, LocalNames, namespace, state_file, tunnel};
use link::{Fabric, Place};

/// UDP port of overlays where none is named; IANA's for VXLAN.
pub const DATA_PORT: u16 = 4_789;

/// A network of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The network's identifier: letters and digits.
    pub id: String,
    /// Its number on the wire, of 24 bits.
    pub vni: u32,
    /// This node's address for overlays; without one the kernel chooses.
    pub local: Option<IpAddr>,
    /// UDP port on every node.
    pub port: u16,
    /// Bytes of a packet inside; without it, what fits the way out.
    pub mtu: Option<u32>,
    /// Bytes of a packet that reaches all other nodes of the network whole. While that is not known, what was known
    /// before holds.
    pub way: Option<u32>,
    /// Whether other nodes are reached through the tunnel alone. Peers' nodes are tunnel addresses then.
    pub is_encrypted: bool,
}

/// A container's place in an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub overlay: String,
    pub addresses: Vec<IpNet>,
}

impl Join {
    /// The hardware address of the container's link, as Docker writes it.
    pub fn hardware_address(&self) -> Option<String> {
        let mac = link::hardware_address(self.addresses.iter().map(IpNet::addr));
        mac.map(crate::address::text_of)
    }
}

/// A container on another node, as the network must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its node takes the traffic of overlays.
    pub node: IpAddr,
    /// Of its link; see [`hardware_address`].
    pub mac: [u8; 6],
}

/// Virtual addresses and the tasks behind them.
pub type Services = BTreeMap<IpAddr, Backends>;

/// The tasks behind a virtual address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    pub tasks: BTreeSet<IpAddr>,
    /// Whether connections from one address go to one task, as long as it is there.
    pub is_sticky: bool,
}

impl FromIterator<IpAddr> for Backends {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(tasks: T) -> Self {
        Self { tasks: tasks.into_iter().collect(), is_sticky: false }
    }
}

/// What is known of addresses from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update<T> {
    /// All there is.
    Whole(BTreeMap<IpAddr, T>),
    /// Of these addresses; nothing of those without a value. Others stay as they are.
    Part(BTreeMap<IpAddr, Option<T>>),
}

impl<T> Update<T> {
    /// What is to change where this is `known`.
    pub(crate) fn changes<K: PartialEq<T>>(
        self,
        known: &BTreeMap<IpAddr, K>,
    ) -> BTreeMap<IpAddr, Option<T>> {
        let all = match self {
            Self::Part(some) => some,
            Self::Whole(all) => {
                let gone = known.keys().filter(|address| !all.contains_key(address));
                let gone: Vec<_> = gone.map(|address| (*address, None)).collect();
                all.into_iter().map(|(address, value)| (address, Some(value))).chain(gone).collect()
            }
        };
        let is_new = |(address, value): &(IpAddr, Option<T>)| match (known.get(address), value) {
            (Some(known), Some(value)) => known != value,
            (None, None) => false,
            _ => true,
        };
        all.into_iter().filter(is_new).collect()
    }
}

/// Who answers a container's questions for names.
pub trait Namer: std::fmt::Debug + Send + Sync {
    /// Begins to answer on sockets bound at the container's 127.0.0.11. Called before the container's first process
    /// starts, on a thread that may block.
    fn serve(&self, asker: Asker<'_>, sockets: NameSockets);

    /// The container is in other networks now.
    fn change(&self, asker: Asker<'_>);

    /// The container is gone.
    fn forget(&self, container: &str);

    /// Who can be asked for in a network of this host.
    fn tell(&self, names: LocalNames);

    /// A network of this host is gone.
    fn forget_network(&self, network: &str);

    /// What is wrong with the answers that these containers get, all that there are. `ask` puts questions to 127.0.0.11 from
    /// within a container. Called on a thread that may block.
    fn faults(&self, askers: &[Asker<'_>], ask: AskWithin<'_>) -> Vec<NameFault>;
}

/// Puts questions from within a container, and answers with what came back to each, in order.
pub type AskWithin<'a> = &'a dyn Fn(&str, &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Error>;

/// What is wrong with the answers to questions for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameFault {
    /// Whose server it is, where making it anew may help.
    pub container: Option<String>,
    pub problem: String,
}

/// A container that asks for names.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub container: &'a str,
    /// Identifiers of its networks, in order; [`DEFAULT_NETWORK`] is among them where it is in that one.
    pub networks: &'a [String],
    /// The servers to be asked for the world's names; none leaves it to those of this host.
    pub servers: &'a [IpAddr],
}

/// [`Asker`], and where it is.
#[derive(Debug)]
pub(crate) struct Questioner {
    pub(crate) container: String,
    pub(crate) netns: PathBuf,
    pub(crate) networks: Vec<String>,
    pub(crate) servers: Vec<IpAddr>,
}

/// Sockets in a container's namespace.
#[derive(Debug)]
pub struct NameSockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// Everything this node has of overlays.
#[derive(Debug, Default)]
pub(crate) struct Overlays {
    made: BTreeMap<String, Made>,
    members: BTreeMap<String, Member>,
    namer: Option<Arc<dyn Namer>>,
}

#[derive(Debug)]
struct Made {
    overlay: Overlay,
    fabric: Fabric,
    /// Addresses in the network and the nodes they are on.
    peers: BTreeMap<IpAddr, Peer>,
    services: Services,
    guard: Guard,
}

/// A container that asks for names, for those of the swarm or of networks of this host.
#[derive(Debug)]
struct Member {
    netns: PathBuf,
    joins: Vec<Join>,
    /// The networks of this host that it is in.
    locals: Vec<String>,
    servers: Vec<IpAddr>,
    balancer: Balancer,
    /// Whether it has sockets for names.
    is_served: bool,
}

impl Overlays {
    /// Takes over what an earlier daemon made for containers that are still there.
    pub(crate) fn load(run_dir: &Path) -> Result<Self, Error> {
        let mut overlays = Self::default();
        for directory in [fabrics(run_dir), joins(run_dir)] {
            std::fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        }
        let directory = joins(run_dir);
        for entry in std::fs::read_dir(&directory).map_err(Error::file("list", &directory))? {
            let entry = entry.map_err(Error::file("list", &directory))?;
            let Ok(container) = entry.file_name().into_string() else { continue };
            let netns = crate::namespaces(run_dir).join(&container);
            match state_file::read::<Vec<Join>>(&entry.path()) {
                Some(joins) if namespace::exists(&netns) => {
                    let member = Member { joins, ..Member::new(netns)? };
                    overlays.members.insert(container, member);
                }
                _ => state_file::remove(&entry.path())?,
            }
        }
        Ok(overlays)
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.made.contains_key(id)
    }

    /// Makes the network here, or brings it in line with what it is to be.
    pub(crate) fn make(&mut self, run_dir: &Path, mut overlay: Overlay) -> Result<(), Error> {
        let known = self.made.get(&overlay.id);
        overlay.way = overlay.way.or(known.and_then(|known| known.overlay.way));
        if known.is_some_and(|known| known.overlay == overlay) {
            return Ok(());
        }
        let way = overlay.is_encrypted.then(|| tunnel::netns(run_dir)).transpose()?;
        let path = fabrics(run_dir).join(&overlay.id);
        let (fabric, peers) = Fabric::open(&path, &overlay, way.as_deref())?;
        let mut guard = Guard::within(&path)?;
        guard.set(self.tenants(&overlay.id))?;
        let services = self.made.remove(&overlay.id).map(|made| made.services);
        let mut made =
            Made { fabric, peers, services: services.unwrap_or_default(), overlay, guard };
        let places = places(&self.members, &made.overlay.id);
        made.fabric.lead(&places);
        let fitted = made.fabric.fit(&made.overlay, &places);
        self.made.insert(made.overlay.id.clone(), made);
        fitted
    }

    /// Removes the network from this node. Containers that are in it, which have ended or are about to, lose it.
    pub(crate) fn remove(&mut self, run_dir: &Path, id: &str) -> Result<(), Error> {
        self.made.remove(id);
        let path = fabrics(run_dir).join(id);
        if namespace::exists(&path) {
            link::take_down(&path)?;
        }
        namespace::remove(&path)
    }

    /// Identifiers of the networks whose namespaces are here, also those of an earlier daemon.
    pub(crate) fn found(run_dir: &Path) -> Result<BTreeSet<String>, Error> {
        namespace::list(&fabrics(run_dir))
    }

    /// Says which containers are on which other nodes.
    pub(crate) fn set_peers(&mut self, id: &str, peers: Update<Peer>) -> Result<(), Error> {
        let Some(made) = self.made.get_mut(id) else { return Ok(()) };
        let changes = peers.changes(&made.peers);
        // A hardware address may pass from one to another: what is gone goes first.
        for address in changes.keys() {
            if let Some(peer) = made.peers.get(address) {
                made.fabric.forget_peer(*address, *peer)?;
                made.peers.remove(address);
            }
        }
        for (address, peer) in changes.into_iter().filter_map(|(it, peer)| Some((it, peer?))) {
            made.fabric.add_peer(address, peer)?;
            made.peers.insert(address, peer);
        }
        Ok(())
    }

    /// Says which services there are in the network; every container in it balances over them.
    pub(crate) fn set_services(
        &mut self,
        id: &str,
        services: Update<Backends>,
    ) -> Result<(), Error> {
        let Some(made) = self.made.get_mut(id) else { return Ok(()) };
        let changes = services.changes(&made.services);
        for (address, backends) in &changes {
            match backends {
                Some(backends) => drop(made.services.insert(*address, backends.clone())),
                None => drop(made.services.remove(address)),
            }
        }
        let Self { made, members, .. } = self;
        for member in members.values_mut().filter(|member| member.is_in(id)) {
            if !member.balancer.change(&changes)? {
                member.balancer.balance(visible(made, &member.joins))?;
            }
        }
        Ok(())
    }

    /// The namespaces of the containers in a network.
    pub(crate) fn within(&self, id: &str) -> Vec<PathBuf> {
        let members = self.members.values().filter(|member| member.is_in(id));
        members.map(|member| member.netns.clone()).collect()
    }

    /// Links the container's namespace to the network. Idempotent.
    pub(crate) fn join(
        &mut self,
        run_dir: &Path,
        container: &str,
        netns: &Path,
        join: Join,
    ) -> Result<(), Error> {
        let overlay = join.overlay.clone();
        if !self.made.contains_key(&overlay) {
            return Err(Error::NoOverlay { id: overlay });
        }
        let member = self.member(container, netns)?;
        if member.joins.iter().any(|known| known.overlay == overlay) {
            return Ok(());
        }
        let made = self.made.get_mut(&overlay).expect("looked for above");
        if let Some(tenant) = tenant(&join) {
            made.guard.admit(&link::link_name(container), tenant)?;
        }
        made.fabric.plug(&made.overlay, Place { container, netns, addresses: &join.addresses })?;
        let member = self.members.get_mut(container).expect("made just now where it was missing");
        member.joins.push(join);
        state_file::write(&joins(run_dir).join(container), &member.joins)?;
        self.settle(container)
    }

    /// Takes a container out of a network of the swarm. Idempotent.
    pub(crate) fn part(
        &mut self,
        run_dir: &Path,
        container: &str,
        overlay: &str,
    ) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(container) else { return Ok(()) };
        let known = member.joins.len();
        member.joins.retain(|join| join.overlay != overlay);
        if member.joins.len() == known {
            return Ok(());
        }
        let file = joins(run_dir).join(container);
        match member.joins.is_empty() {
            true => state_file::remove(&file)?,
            false => state_file::write(&file, &member.joins)?,
        }
        if let Some(made) = self.made.get_mut(overlay) {
            made.fabric.unplug(container)?;
            made.guard.dismiss(&link::link_name(container))?;
        }
        self.settle(container)
    }

    /// The container is in a network of this host from now on, whose names it may ask for.
    pub(crate) fn enter(
        &mut self,
        container: &str,
        netns: &Path,
        network: &str,
    ) -> Result<(), Error> {
        let member = self.member(container, netns)?;
        if !member.locals.iter().any(|known| known == network) {
            member.locals.push(network.to_owned());
        }
        self.settle(container)
    }

    /// The container is in that network of this host no more.
    pub(crate) fn quit(&mut self, container: &str, network: &str) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(container) else { return Ok(()) };
        member.locals.retain(|known| known != network);
        self.settle(container)
    }

    /// Whether the container asks for names here.
    pub(crate) fn is_member(&self, container: &str) -> bool {
        self.members.contains_key(container)
    }

    /// Where the container's questions for the world's names go.
    pub(crate) fn set_servers(
        &mut self,
        container: &str,
        netns: &Path,
        servers: Vec<IpAddr>,
    ) -> Result<(), Error> {
        self.member(container, netns)?.servers = servers;
        Ok(())
    }

    fn member(&mut self, container: &str, netns: &Path) -> Result<&mut Member, Error> {
        if !self.members.contains_key(container) {
            let member = Member::new(netns.to_owned())?;
            self.members.insert(container.to_owned(), member);
        }
        Ok(self.members.get_mut(container).expect("made just now where it was missing"))
    }

    /// Brings a container's table and names in line with its networks.
    fn settle(&mut self, container: &str) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(container) else { return Ok(()) };
        // What an earlier daemon balances over stays until this one has heard of its networks.
        if member.joins.iter().all(|join| self.made.contains_key(&join.overlay)) {
            member.balancer.balance(visible(&self.made, &member.joins))?;
        }
        match &self.namer {
            Some(namer) => member.answer_names(container, &**namer),
            None => Ok(()),
        }
    }

    /// The networks that are made here.
    pub(crate) fn made(&self) -> Vec<String> {
        self.made.keys().cloned().collect()
    }

    /// How the kernel's part of a network differs from what it should be; with `mends`, it is put right.
    pub(crate) fn audit_network(
        &mut self,
        run_dir: &Path,
        id: &str,
        mends: bool,
    ) -> Result<Vec<String>, Error> {
        let Some(made) = self.made.get_mut(id) else { return Ok(Vec::new()) };
        let places = places(&self.members, id);
        let mut faults = made.fabric.faults(&made.peers, &places, &made.overlay)?;
        faults.extend(made.guard.audit(mends)?);
        if mends && !faults.is_empty() {
            self.mend_network(run_dir, id)?;
        }
        Ok(faults.iter().map(|fault| format!("network {id}: {fault}")).collect())
    }

    /// Makes what is gone, reads what the kernel has, and brings it in line.
    fn mend_network(&mut self, run_dir: &Path, id: &str) -> Result<(), Error> {
        let Some(made) = self.made.get_mut(id) else { return Ok(()) };
        let places = places(&self.members, id);
        let links = places.iter().map(|place| link::link_name(place.container)).collect();
        let way = made.overlay.is_encrypted.then(|| tunnel::netns(run_dir)).transpose()?;
        let path = fabrics(run_dir).join(id);
        made.fabric.mend(&path, &made.overlay, way.as_deref(), &links)?;
        for place in &places {
            if namespace::exists(place.netns) && !made.fabric.has_port(place.container)? {
                made.fabric.plug(&made.overlay, *place)?;
            }
        }
        made.fabric.lead(&places);
        made.fabric.lane_faults(true)?;
        made.fabric.fit(&made.overlay, &places)?;
        made.fabric.forget_strangers(&made.peers)?;
        let wanted = std::mem::replace(&mut made.peers, made.fabric.known_peers()?);
        self.set_peers(id, Update::Whole(wanted))
    }

    /// How a container's table differs from what it should be; with `mends`, it is made anew.
    pub(crate) fn audit_member(
        &mut self,
        container: &str,
        mends: bool,
    ) -> Result<Vec<String>, Error> {
        let Some(member) = self.members.get_mut(container) else { return Ok(Vec::new()) };
        if !namespace::exists(&member.netns) {
            return Ok(vec![format!("container {container}: its network namespace is gone")]);
        }
        let faults = member.balancer.faults();
        if mends && !faults.is_empty() {
            member.balancer.renew()?;
        }
        Ok(faults.iter().map(|fault| format!("container {container}: {fault}")).collect())
    }

    /// The containers that ask for names here.
    pub(crate) fn askers(&self) -> Vec<Questioner> {
        let served = self.members.iter().filter(|(_, member)| member.is_served);
        let questioner = |(container, member): (&String, &Member)| Questioner {
            container: container.clone(),
            netns: member.netns.clone(),
            networks: member.networks(),
            servers: member.servers.clone(),
        };
        served.map(questioner).collect()
    }

    /// Has a container's names answered by a server of its own again.
    pub(crate) fn serve_again(&mut self, container: &str) -> Result<(), Error> {
        let (Some(namer), Some(member)) = (&self.namer, self.members.get_mut(container)) else {
            return Ok(());
        };
        member.is_served = false;
        member.answer_names(container, &**namer)
    }

    /// Has names answered from now on, also those of containers that are here already.
    pub(crate) fn set_namer(&mut self, namer: Arc<dyn Namer>) -> Result<(), Error> {
        for (container, member) in &mut self.members {
            member.is_served = false;
            member.answer_names(container, &*namer)?;
        }
        self.namer = Some(namer);
        Ok(())
    }

    pub(crate) fn namer(&self) -> Option<&Arc<dyn Namer>> {
        self.namer.as_ref()
    }

    /// Forgets a container; its links end with its namespace.
    pub(crate) fn leave(&mut self, run_dir: &Path, container: &str) -> Result<(), Error> {
        if let Some(member) = self.members.remove(container) {
            for join in member.joins {
                if let Some(made) = self.made.get_mut(&join.overlay) {
                    made.fabric.dismiss(container);
                    made.guard.dismiss(&link::link_name(container))?;
                }
            }
            if let Some(namer) = &self.namer {
                namer.forget(container);
            }
        }
        state_file::remove(&joins(run_dir).join(container))
    }

    /// Removes the links of a container that left these networks, where they are there still.
    pub(crate) fn remove_leftovers(
        &mut self,
        container: &str,
        overlays: &[String],
    ) -> Result<(), Error> {
        // It may have come back meanwhile.
        if self.members.contains_key(container) {
            return Ok(());
        }
        for id in overlays {
            if let Some(made) = self.made.get_mut(id)
                && made.fabric.has_port(container)?
            {
                made.fabric.unplug(container)?;
            }
        }
        Ok(())
    }

    /// The ports of a network's containers, and who is behind each.
    fn tenants(&self, overlay: &str) -> BTreeMap<String, Tenant> {
        let members = self.members.iter().flat_map(|(container, member)| {
            let joins = member.joins.iter().filter(|join| join.overlay == overlay);
            joins.map(move |join| (container, join))
        });
        members
            .filter_map(|(container, join)| Some((link::link_name(container), tenant(join)?)))
            .collect()
    }

    pub(crate) fn joins_of(&self, container: &str) -> &[Join] {
        self.members.get(container).map_or(&[], |member| &member.joins)
    }

    /// The containers in overlays, with their places.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&String, &[Join])> {
        let members = self.members.iter().filter(|(_, member)| !member.joins.is_empty());
        members.map(|(container, member)| (container, &member.joins[..]))
    }
}

impl Member {
    fn new(netns: PathBuf) -> Result<Self, Error> {
        let balancer = Balancer::open(&netns)?;
        let (joins, locals, servers) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { netns, joins, locals, servers, balancer, is_served: false })
    }

    fn is_in(&self, overlay: &str) -> bool {
        self.joins.iter().any(|join| join.overlay == overlay)
    }

    /// Its networks: those of this host first, for what they know is nearest.
    fn networks(&self) -> Vec<String> {
        let joined = self.joins.iter().map(|join| join.overlay.clone());
        self.locals.iter().cloned().chain(joined).collect()
    }

    fn answer_names(&mut self, container: &str, namer: &dyn Namer) -> Result<(), Error> {
        let networks = self.networks();
        // One that is in the default network alone asks the world itself.
        if networks.iter().all(|network| network == DEFAULT_NETWORK) && !self.is_served {
            return Ok(());
        }
        let asker = Asker { container, networks: &networks, servers: &self.servers };
        if self.is_served {
            namer.change(asker);
            return Ok(());
        }
        let bound = || -> io::Result<NameSockets> {
            let any_port = (NAMES_ADDRESS, 0);
            Ok(NameSockets { udp: UdpSocket::bind(any_port)?, tcp: TcpListener::bind(any_port)? })
        };
        let failed = |error| Error::kernel("listen for a container's questions for names")(error);
        let sockets = namespace::within(&self.netns, || bound().map_err(failed))?;
        let udp = sockets.udp.local_addr().map_err(failed)?.port();
        let tcp = sockets.tcp.local_addr().map_err(failed)?.port();
        namer.serve(asker, sockets);
        self.is_served = true;
        self.balancer.answer_names(NamePorts { udp, tcp })
    }
}

/// Where a network's containers are.
fn places<'a>(members: &'a BTreeMap<String, Member>, overlay: &str) -> Vec<Place<'a>> {
    let places = members.iter().flat_map(|(container, member)| {
        let joins = member.joins.iter().filter(|join| join.overlay == overlay);
        let netns = member.netns.as_path();
        joins.map(move |join| Place { container, netns, addresses: &join.addresses })
    });
    places.collect()
}

fn tenant(join: &Join) -> Option<Tenant> {
    let addresses: Vec<_> = join.addresses.iter().map(IpNet::addr).collect();
    let mac = link::hardware_address(addresses.iter().copied())?;
    Some(Tenant { mac, addresses, is_alone: false })
}

/// The services of all networks a container is in.
fn visible(made: &BTreeMap<String, Made>, joins: &[Join]) -> Services {
    let networks = joins.iter().filter_map(|join| made.get(&join.overlay));
    networks.flat_map(|made| made.services.clone()).collect()
}

fn fabrics(run_dir: &Path) -> PathBuf {
    run_dir.join("overlays")
}

fn joins(run_dir: &Path) -> PathBuf {
    run_dir.join("joins")
}

//! Links, addresses and published ports of one node.
//!
//! A container's network namespace is made here, before the container, and outlives the daemon as a file under the
//! run directory. Published ports are elements of maps in an nftables table of our own; nobody else's rules are touched.

mod address;
mod audit;
mod bridge;
mod bridges;
mod conversations;
mod endpoint;
mod error;
mod features;
mod flows;
mod ingress;
mod ipv6;
mod leftovers;
mod mtu;
mod namespace;
mod neighbours;
mod netlink;
mod nft;
mod overlay;
mod path;
mod ports;
mod questions;
mod relay;
mod reserve;
mod state_file;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::Ipv4Net;

use address::Pool;
pub use address::parse_mac;
pub use audit::walls;
pub use bridges::{LocalIpv6, LocalNames, LocalNetwork, Plug, PlugIpv6, PlugRequest};
pub use conversations::Conversations;
pub use endpoint::Endpoint;
pub use error::Error;
pub use features::{link_mtus, missing_features};
pub use ingress::{Front, Ingress, Socket, Underlay};
pub use nft::{Arrivals, BaseChain, Flows};
pub use overlay::link::hardware_address;
pub use overlay::{
    AskWithin, Asker, Backends, DATA_PORT, Join, NameFault, NameSockets, Namer, Overlay, Peer,
    Services, Update,
};
pub use path::{Path as NodePath, find as find_path};
pub use ports::{Protocol, PublishedPort};
pub use tunnel::{Key, Sealer, TUNNEL_PORTS, TunnelKey, address_of};

/// What the network that every node has is called where networks are named by their identifiers.
pub const DEFAULT_NETWORK: &str = "bridge";

/// Where this node's network lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// Distinguishes daemons that share a host: part of the table's name. At most 8 characters.
    pub instance: String,
    /// The bridge's name; at most 15 bytes (IFNAMSIZ).
    pub bridge: String,
    /// The bridge's subnet; without one the first free /16 of 172.17.0.0/12 is taken.
    pub subnet: Option<Ipv4Net>,
    /// Holds `netns/<container>`, files that keep the namespaces alive, and what belongs to them. Gone with a reboot,
    /// as they are.
    pub run_dir: PathBuf,
    /// Remembers the subnet.
    pub state_dir: PathBuf,
}

/// Local network of one node: one bridge, one nftables table.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    bridge: bridge::Bridge,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pool: Pool,
    endpoints: BTreeMap<String, Endpoint>,
    isolated: BTreeSet<String>,
    ports: ports::Ports,
    table: nft::Table,
    bridges: bridges::Bridges,
    /// Of the bridges in the host's own namespace.
    guard: nft::Guard,
    overlays: overlay::Overlays,
    mesh: ingress::Mesh,
    relays: relay::Relays,
    tunnel: tunnel::Tunnel,
    /// Everything was taken down, and nothing of it is to be put back.
    is_closed: bool,
}

impl Network {
    /// Makes or takes over bridge and table, and reads what containers already have.
    ///
    /// # Errors
    /// What the kernel refuses, with the step's name.
    pub async fn open(config: Config) -> Result<Self, Error> {
        blocking(move || open(config)).await
    }

    /// Makes the namespace of `container` with a link to the bridge. Idempotent.
    pub async fn connect(&self, container: &str) -> Result<Endpoint, Error> {
        self.connect_as(container, None).await
    }

    /// [`Network::connect`] with a hardware address; without one, it follows from the address.
    pub async fn connect_as(
        &self,
        container: &str,
        mac: Option<[u8; 6]>,
    ) -> Result<Endpoint, Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        blocking(move || inner.connect(&container, mac, false)).await
    }

    /// Makes the namespace of `container` with a link by which it reaches the world and no other container. Idempotent; one
    /// that has [`Network::connect`]ed before is alone from now on.
    pub async fn lead_alone(&self, container: &str) -> Result<Endpoint, Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        blocking(move || inner.connect(&container, None, true)).await
    }

    /// Makes a namespace without any link but loopback. Idempotent.
    pub async fn isolate(&self, container: &str) -> Result<PathBuf, Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        blocking(move || inner.isolate(&container)).await
    }

    /// Removes namespace, link and lease. Idempotent.
    pub async fn disconnect(&self, container: &str) -> Result<(), Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        let overlays: Vec<_> =
            self.joined_of(&container).into_iter().map(|join| join.overlay).collect();
        let left = container.clone();
        blocking(move || inner.disconnect(&left)).await?;
        if !overlays.is_empty() {
            tokio::spawn(leftovers::remove(self.0.clone(), container, overlays));
        }
        Ok(())
    }

    /// What a container has, if it is connected.
    pub fn endpoint(&self, container: &str) -> Option<Endpoint> {
        self.0.lock().endpoints.get(container).cloned()
    }

    /// Every container with a namespace here.
    pub fn containers(&self) -> Vec<String> {
        let state = self.0.lock();
        state.endpoints.keys().chain(&state.isolated).cloned().collect()
    }

    /// The bridge's subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.0.bridge.subnet
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.0.config.bridge
    }

    /// Replaces all ports of `owner` (a container or a service); an empty list removes them.
    ///
    /// # Errors
    /// [`Error::PortTaken`] when another owner has the port, [`Error::PortHeld`] when a process of the host has; nothing
    /// changes then.
    pub async fn publish(&self, owner: &str, ports: Vec<PublishedPort>) -> Result<(), Error> {
        let (inner, owner) = (self.0.clone(), owner.to_owned());
        blocking(move || inner.publish(&owner, ports)).await
    }

    /// Keeps processes of the host off those of these ports that are free, and off no other ports any more; answers with
    /// those that are not. Where they lead is told by another way: [`Network::set_ingress`].
    ///
    /// # Errors
    /// When it cannot be written down for the next daemon.
    pub async fn keep_ports(
        &self,
        owner: &str,
        ports: Vec<PublishedPort>,
    ) -> Result<Vec<(PublishedPort, Error)>, Error> {
        let (inner, owner) = (self.0.clone(), owner.to_owned());
        blocking(move || {
            let mut state = inner.lock();
            let refused = state.ports.keep(&owner, ports);
            state.ports.save(&inner.config.run_dir)?;
            Ok(refused)
        })
        .await
    }

    /// Whether `owner` could publish this port now. It is not kept for it.
    ///
    /// # Errors
    /// [`Error::PortTaken`] or [`Error::PortHeld`].
    pub async fn check_free(&self, owner: &str, port: PublishedPort) -> Result<(), Error> {
        let (inner, owner) = (self.0.clone(), owner.to_owned());
        blocking(move || inner.lock().ports.check_free(&owner, &port)).await
    }

    /// Makes this node's part in the routing mesh what `ingress` says; connections under way keep their task. Nobody
    /// need have published the ports: whoever does keeps processes of the host off them. Answers with addresses that are
    /// nobody's any more, for [`Network::forget_flows`].
    ///
    /// # Errors
    /// What the kernel refuses. Whatever could be done is done then: tasks of this node are served, if possible.
    pub async fn set_ingress(&self, ingress: Ingress) -> Result<BTreeSet<IpAddr>, Error> {
        let inner = self.0.clone();
        blocking(move || {
            let mut state = inner.lock();
            if let Some(underlay) = &ingress.underlay {
                if !underlay.is_encrypted {
                    state.table.untrack(underlay.port);
                }
                state.bridges.hide(underlay.port)?;
            }
            let own = ingress
                .own
                .iter()
                .map(|((_, (protocol, _)), (address, port))| (*protocol, *address, *port));
            state.relay(&inner.config.run_dir, own.collect::<Vec<_>>());
            let (set, gone) = state.mesh.set(ingress);
            set.map(|()| gone)
        })
        .await
    }

    /// Removes this node's part in the routing mesh, also one that an earlier daemon left. Idempotent.
    pub async fn remove_ingress(&self) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || inner.lock().mesh.remove()).await
    }

    /// Makes a network of the swarm here, or brings it in line.
    pub async fn make_overlay(&self, overlay: Overlay) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || {
            let mut state = inner.lock();
            state.bridges.hide(overlay.port)?;
            if !overlay.is_encrypted {
                state.table.untrack(overlay.port);
            }
            state.overlays.make(&inner.config.run_dir, overlay)
        })
        .await
    }

    /// Removes a network of the swarm from this node. Idempotent.
    pub async fn remove_overlay(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.with_overlays(move |overlays, run_dir| overlays.remove(run_dir, &id)).await
    }

    /// Networks of the swarm that are here, also those an earlier daemon left.
    pub async fn overlays(&self) -> Result<BTreeSet<String>, Error> {
        self.with_overlays(|_, run_dir| overlay::Overlays::found(run_dir)).await
    }

    pub fn has_overlay(&self, id: &str) -> bool {
        self.0.lock().overlays.has(id)
    }

    /// Which addresses of a network are on which other nodes; what is not named is forgotten.
    pub async fn set_peers(&self, id: &str, peers: Update<Peer>) -> Result<(), Error> {
        let id = id.to_owned();
        self.with_overlays(move |overlays, _| overlays.set_peers(&id, peers)).await
    }

    /// The services of a network, for every container in it to balance over.
    pub async fn set_services(&self, id: &str, services: Update<Backends>) -> Result<(), Error> {
        let id = id.to_owned();
        self.with_overlays(move |overlays, _| overlays.set_services(&id, services)).await
    }

    /// How long packets to another node may be, as far as networks of the swarm care. Nothing where that cannot be found out.
    /// Takes some seconds in the worst case.
    ///
    /// # Errors
    /// Where the node cannot be sent to at all.
    pub async fn path_to(
        &self,
        local: Option<IpAddr>,
        node: IpAddr,
    ) -> Result<Option<NodePath>, Error> {
        let failed = Error::kernel(format!("find the way to {node}"));
        blocking(move || path::find(local, node).map_err(failed)).await
    }

    /// Links a container that is connected or isolated to a network of the swarm. Idempotent.
    pub async fn join(&self, container: &str, join: Join) -> Result<(), Error> {
        let container = container.to_owned();
        self.with_overlays(move |overlays, run_dir| {
            let netns = namespaces(run_dir).join(&container);
            overlays.join(run_dir, &container, &netns, join)
        })
        .await
    }

    /// Takes a container out of a network of the swarm. Idempotent.
    pub async fn part(&self, container: &str, overlay: &str) -> Result<(), Error> {
        let (container, overlay) = (container.to_owned(), overlay.to_owned());
        self.with_overlays(move |overlays, run_dir| overlays.part(run_dir, &container, &overlay))
            .await
    }

    /// Makes a network of this host, or takes over what an earlier daemon made of it.
    pub async fn make_local(&self, network: LocalNetwork) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || inner.make_local(network)).await
    }

    /// Removes a network of this host. No container may be in it. Idempotent.
    pub async fn remove_local(&self, id: &str) -> Result<(), Error> {
        let (inner, id) = (self.0.clone(), id.to_owned());
        blocking(move || inner.remove_local(&id)).await
    }

    /// Removes what an earlier daemon made of networks that have not been made again.
    pub async fn remove_other_locals(&self) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || inner.lock().bridges.remove_others(&inner.config.run_dir)).await
    }

    /// The first subnet of Docker's pools that overlaps no route of this host and none of its networks.
    pub async fn free_subnet(&self) -> Result<Option<Ipv4Net>, Error> {
        let mut taken = self.local_subnets();
        taken.push(self.subnet());
        blocking(move || bridge::free_subnet(&taken)).await
    }

    /// Subnets of the networks of this host, the default one's left out.
    pub fn local_subnets(&self) -> Vec<Ipv4Net> {
        self.0.lock().bridges.subnets()
    }

    /// Links a container to a network of this host; makes its namespace where it has none. Idempotent.
    ///
    /// # Errors
    /// An address that is taken or not the network's, or none that is left.
    pub async fn plug(&self, container: &str, request: PlugRequest) -> Result<Plug, Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        blocking(move || inner.plug(&container, request)).await
    }

    /// Takes a container out of a network of this host, or out of [`DEFAULT_NETWORK`]. Idempotent.
    pub async fn unplug(&self, container: &str, network: &str) -> Result<(), Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        let network = network.to_owned();
        blocking(move || inner.unplug(&container, &network)).await
    }

    /// From now on others in a network of this host find the container by these names.
    pub async fn set_names(
        &self,
        container: &str,
        network: &str,
        names: Vec<String>,
    ) -> Result<(), Error> {
        let (inner, container) = (self.0.clone(), container.to_owned());
        let network = network.to_owned();
        blocking(move || {
            let mut state = inner.lock();
            state.bridges.set_names(&inner.config.run_dir, &container, &network, names)?;
            state.tell_names(&network);
            Ok(())
        })
        .await
    }

    /// What a container has of networks of this host, the default one left out.
    pub fn plugs(&self, container: &str) -> Vec<Plug> {
        self.0.lock().bridges.plugs(container).to_vec()
    }

    /// Containers in networks of this host, the default one left out, with what they have.
    pub fn plugged(&self) -> BTreeMap<String, Vec<Plug>> {
        self.0.lock().bridges.all_plugs().clone()
    }

    /// Where a container's packets to the world go; nowhere without a gateway. Over IPv6 it begins nothing without one of
    /// that.
    pub async fn lead_out(
        &self,
        container: &str,
        gateway: Option<Ipv4Addr>,
        of_ipv6: Option<Ipv6Addr>,
    ) -> Result<(), Error> {
        let netns = self.netns(container);
        blocking(move || bridge::lead_out(&netns, gateway, of_ipv6)).await
    }

    /// Which servers answer the container's questions for the world's names; to be said before it is in any network.
    pub async fn set_name_servers(
        &self,
        container: &str,
        servers: Vec<IpAddr>,
    ) -> Result<(), Error> {
        let container = container.to_owned();
        self.with_overlays(move |overlays, run_dir| {
            let netns = namespaces(run_dir).join(&container);
            overlays.set_servers(&container, &netns, servers)
        })
        .await
    }

    /// Has the names that containers ask for answered by `namer`.
    pub async fn set_namer(&self, namer: Arc<dyn Namer>) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || {
            let mut state = inner.lock();
            let networks: Vec<_> = state.bridges.made().cloned().collect();
            for names in networks.iter().filter_map(|network| state.bridges.names(network)) {
                namer.tell(names);
            }
            state.overlays.set_namer(namer)
        })
        .await
    }

    /// Containers in networks of the swarm, with their places.
    pub fn joined(&self) -> BTreeMap<String, Vec<Join>> {
        let state = self.0.lock();
        let members = state.overlays.members();
        members.map(|(container, joins)| (container.clone(), joins.to_vec())).collect()
    }

    /// A container's places in networks of the swarm.
    pub fn joined_of(&self, container: &str) -> Vec<Join> {
        self.0.lock().overlays.joins_of(container).to_vec()
    }

    /// File that names a container's network namespace.
    pub fn netns(&self, container: &str) -> PathBuf {
        namespaces(&self.0.config.run_dir).join(container)
    }

    async fn with_overlays<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut overlay::Overlays, &Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        blocking(move || work(&mut inner.lock().overlays, &inner.config.run_dir)).await
    }

    /// Removes everything, when the node is taken down for good.
    pub async fn close(&self) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || {
            for container in Self(inner.clone()).containers() {
                inner.disconnect(&container)?;
            }
            for overlay in overlay::Overlays::found(&inner.config.run_dir)? {
                inner.lock().overlays.remove(&inner.config.run_dir, &overlay)?;
            }
            let mut state = inner.lock();
            state.is_closed = true;
            state.bridges.close(&inner.config.run_dir)?;
            state.guard.remove()?;
            state.mesh.remove()?;
            state.tunnel.close_all()?;
            state.table.remove()?;
            inner.bridge.remove()
        })
        .await
    }
}

/// The host's IPv4 addresses, each with the name of its link.
///
/// # Errors
/// When the kernel does not list them.
pub fn host_addresses() -> Result<Vec<(String, Ipv4Addr)>, Error> {
    bridge::host_addresses()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.expect("network work does not panic")
}

fn open(config: Config) -> Result<Network, Error> {
    for directory in
        [namespaces(&config.run_dir), endpoints(&config.run_dir), config.state_dir.clone()]
    {
        std::fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    }
    let bridge = bridge::open(&config)?;
    let mut pool = Pool::new(bridge.subnet);
    let endpoints = endpoint::load(&config.run_dir)?;
    for endpoint in endpoints.values() {
        pool.take(endpoint.address);
    }
    let isolated = namespace::list(&namespaces(&config.run_dir))?;
    let isolated = isolated.into_iter().filter(|name| !endpoints.contains_key(name)).collect();
    let ports = ports::Ports::load(&config.run_dir);
    let wires = BTreeSet::new();
    let mut table = nft::Table::open(&config.instance, &config.bridge, bridge.subnet, &wires)?;
    table.change(&[], &ports.rules())?;
    let mut overlays = overlay::Overlays::load(&config.run_dir)?;
    let fences = nft::Fences::open(&config.instance, &config.bridge)?;
    let bridges = bridges::Bridges::load(&config.run_dir, fences)?;
    for (container, plugs) in bridges.all_plugs() {
        let netns = namespaces(&config.run_dir).join(container);
        for plug in plugs {
            overlays.enter(container, &netns, &plug.network)?;
        }
    }
    for (container, endpoint) in &endpoints {
        if overlays.is_member(container) {
            overlays.enter(container, &endpoint.netns, DEFAULT_NETWORK)?;
        }
    }
    let mut guard = nft::Guard::open(&config.instance)?;
    let default = endpoints
        .iter()
        .map(|(container, endpoint)| (bridge::host_link(container), endpoint.tenant()));
    guard.set(default.chain(bridges.tenants()).collect())?;
    let mesh = ingress::Mesh::new(ingress::Place {
        instance: config.instance.clone(),
        bridge: config.bridge.clone(),
        subnet: bridge.subnet,
        run_dir: config.run_dir.clone(),
    });
    let tunnel = tunnel::Tunnel::load(&config.run_dir);
    let is_closed = false;
    let relayed = ports.relayed(None);
    let mut state = State {
        pool,
        endpoints,
        isolated,
        ports,
        table,
        bridges,
        guard,
        overlays,
        mesh,
        relays: relay::Relays::new(),
        tunnel,
        is_closed,
    };
    state.relay(&config.run_dir, relayed);
    let inner = Arc::new(Inner { config, bridge, state: Mutex::new(state) });
    inner.watch()?;
    Ok(Network(inner))
}

fn namespaces(run_dir: &Path) -> PathBuf {
    run_dir.join("netns")
}

fn endpoints(run_dir: &Path) -> PathBuf {
    run_dir.join("endpoints")
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("network state is left whole")
    }

    fn connect(
        &self,
        container: &str,
        mac: Option<[u8; 6]>,
        is_alone: bool,
    ) -> Result<Endpoint, Error> {
        if let Some(endpoint) = self.connected(container, is_alone)? {
            return Ok(endpoint);
        }
        let address = self.lock().pool.allocate()?;
        let path = namespaces(&self.config.run_dir).join(container);
        let endpoint = Endpoint {
            netns: path.clone(),
            address,
            prefix_len: self.bridge.subnet.prefix_len(),
            gateway: self.bridge.gateway(),
            mac: address::text_of(mac.unwrap_or_else(|| address::mac(address))),
            is_alone,
        };
        let is_first = !self.has_namespace(container);
        let linked = self.link(container, &endpoint, is_first);
        if let Err(error) = linked {
            let mut state = self.lock();
            state.pool.free(address);
            let _ = state.guard.dismiss(&bridge::host_link(container));
            if is_first {
                let _ = namespace::remove(&path);
            }
            return Err(error);
        }
        let mut state = self.lock();
        state.isolated.remove(container);
        state.endpoints.insert(container.to_owned(), endpoint.clone());
        if state.overlays.is_member(container) {
            state.overlays.enter(container, &path, DEFAULT_NETWORK)?;
        }
        Ok(endpoint)
    }

    /// What a container has already, alone or not as it is to be.
    fn connected(&self, container: &str, is_alone: bool) -> Result<Option<Endpoint>, Error> {
        let mut state = self.lock();
        let State { endpoints, guard, .. } = &mut *state;
        let Some(endpoint) = endpoints.get_mut(container) else { return Ok(None) };
        if endpoint.is_alone != is_alone {
            endpoint.is_alone = is_alone;
            guard.admit(&bridge::host_link(container), endpoint.tenant())?;
            endpoint::save(&self.config.run_dir, container, endpoint)?;
        }
        Ok(Some(endpoint.clone()))
    }

    /// Links a container to the bridge that every node has.
    fn link(&self, container: &str, endpoint: &Endpoint, is_first: bool) -> Result<(), Error> {
        let (link, netns) = (bridge::host_link(container), endpoint.netns.as_path());
        if is_first {
            namespace::create(netns, || Ok(()))?;
        }
        self.lock().guard.admit(&link, endpoint.tenant())?;
        self.bridge.plug(bridge::Wire {
            link: &link,
            netns,
            is_first,
            address: endpoint.address,
            ipv6: None,
            mac: endpoint.hardware_address(),
            is_alone: false,
        })?;
        if is_first {
            bridge::lead_out(netns, Some(endpoint.gateway), None)?;
        }
        endpoint::save(&self.config.run_dir, container, endpoint)
    }

    fn has_namespace(&self, container: &str) -> bool {
        let state = self.lock();
        state.isolated.contains(container) || state.endpoints.contains_key(container)
    }

    fn isolate(&self, container: &str) -> Result<PathBuf, Error> {
        let path = namespaces(&self.config.run_dir).join(container);
        if !self.has_namespace(container) {
            namespace::create(&path, bridge::raise_loopback)?;
            self.lock().isolated.insert(container.to_owned());
        }
        Ok(path)
    }

    fn make_local(&self, network: LocalNetwork) -> Result<(), Error> {
        let mut state = self.lock();
        let id = network.id.clone();
        state.bridges.make(&self.config.run_dir, network)?;
        state.tell_names(&id);
        state.tell_mesh()
    }

    fn remove_local(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        state.bridges.remove(&self.config.run_dir, id)?;
        if let Some(namer) = state.overlays.namer() {
            namer.forget_network(id);
        }
        state.tell_mesh()
    }

    fn plug(&self, container: &str, request: PlugRequest) -> Result<Plug, Error> {
        let network = request.network.clone();
        let netns = namespaces(&self.config.run_dir).join(container);
        let is_first = !self.has_namespace(container);
        if is_first {
            namespace::create(&netns, || Ok(()))?;
        }
        let mut state = self.lock();
        let State { bridges, guard, .. } = &mut *state;
        let plugged = bridges.plug(&self.config.run_dir, guard, container, is_first, request);
        if is_first {
            match &plugged {
                Ok(_) => drop(state.isolated.insert(container.to_owned())),
                Err(_) => namespace::remove(&netns)?,
            }
        }
        let plug = plugged?;
        if state.endpoints.contains_key(container) {
            state.overlays.enter(container, &netns, DEFAULT_NETWORK)?;
        }
        state.overlays.enter(container, &netns, &network)?;
        state.tell_names(&network);
        Ok(plug)
    }

    fn unplug(&self, container: &str, network: &str) -> Result<(), Error> {
        let mut state = self.lock();
        let State { bridges, guard, relays, .. } = &mut *state;
        if network == DEFAULT_NETWORK {
            let Some(endpoint) = state.endpoints.remove(container) else { return Ok(()) };
            state.isolated.insert(container.to_owned());
            bridge::unplug(&bridge::host_link(container))?;
            endpoint::forget(&self.config.run_dir, container)?;
            state.pool.free(endpoint.address);
            state.relays.forget(container, endpoint.address)?;
            state.guard.dismiss(&bridge::host_link(container))?;
        } else {
            relays.quit(container, bridges.plugs(container), network)?;
            bridges.unplug(&self.config.run_dir, guard, container, network)?;
            state.tell_names(network);
        }
        state.overlays.quit(container, network)
    }

    fn disconnect(&self, container: &str) -> Result<(), Error> {
        namespace::remove(&namespaces(&self.config.run_dir).join(container))?;
        endpoint::forget(&self.config.run_dir, container)?;
        let mut state = self.lock();
        state.isolated.remove(container);
        state.relays.remove(container);
        state.overlays.leave(&self.config.run_dir, container)?;
        let State { bridges, guard, .. } = &mut *state;
        let left = bridges.leave(&self.config.run_dir, guard, container)?;
        guard.dismiss(&bridge::host_link(container))?;
        left.iter().for_each(|network| state.tell_names(network));
        if let Some(endpoint) = state.endpoints.remove(container) {
            state.pool.free(endpoint.address);
        }
        Ok(())
    }

    fn publish(&self, owner: &str, ports: Vec<PublishedPort>) -> Result<(), Error> {
        let mut state = self.lock();
        let State { ports: known, table, .. } = &mut *state;
        if !ports.is_empty() && ipv6::is_spoken() {
            ipv6::forward()?;
        }
        let change = known.replace(owner, ports)?;
        if let Err(error) = table.change(&change.removed, &change.added) {
            known.restore(owner, change);
            return Err(error);
        }
        known.save(&self.config.run_dir)?;
        let relayed = known.relayed(Some(owner));
        state.relay(&self.config.run_dir, relayed);
        Ok(())
    }
}

impl State {
    /// Says who can be asked for in a network of this host.
    fn tell_names(&self, network: &str) {
        if let (Some(namer), Some(names)) = (self.overlays.namer(), self.bridges.names(network)) {
            namer.tell(names);
        }
    }

    /// Says which networks of this host there are, whose containers ask for published ports too.
    fn tell_mesh(&mut self) -> Result<(), Error> {
        self.mesh.set_inside(self.bridges.subnets())
    }
}

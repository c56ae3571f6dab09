//! Networks of this host that users asked for: a bridge each, kept apart from one another.
//!
//! What containers have in them stands in `plugs/<container>` under the run directory, and what was made in
//! `bridges/<network>`: both are gone with a reboot, as the links are. Which networks there are to be is the engine's to
//! remember.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::address::{self, Pool};
use crate::bridge::{self, Bridge, Shape, Wire};
use crate::nft::{Fence, Fences, Guard, Tenant};
use crate::{Error, ipv6, namespace, state_file};

/// A network of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What its names may be followed by: `web.NAME`.
    pub name: String,
    /// The bridge's; at most 15 bytes (IFNAMSIZ).
    pub link: String,
    pub subnet: Ipv4Net,
    /// Addresses are given from here only.
    pub range: Option<Ipv4Net>,
    pub gateway: Ipv4Addr,
    /// Addresses that are never given: somebody else's.
    pub reserved: BTreeSet<Ipv4Addr>,
    pub mtu: Option<u32>,
    /// Nothing outside the network is reached from it.
    pub is_internal: bool,
    /// Whether packets to the world get the host's address.
    pub is_masqueraded: bool,
    /// Whether its containers reach each other.
    pub is_shared: bool,
}

/// What a container wants of a network of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlugRequest {
    pub network: String,
    /// Without one, the next free one is given.
    pub address: Option<Ipv4Addr>,
    /// Without one, it follows from the address.
    pub mac: Option<[u8; 6]>,
    /// What others in the network find it by, the one it is told by first.
    pub names: Vec<String>,
}

/// What a container has of a network of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    pub network: String,
    /// The host's end.
    pub link: String,
    /// The link's name in the container.
    pub interface: String,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub mac: String,
    pub names: Vec<String>,
    /// Whether others on the bridge are out of its reach.
    #[serde(default)]
    pub is_alone: bool,
}

/// Who can be asked for by name in a network of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNames {
    pub network: String,
    /// The network's own name.
    pub name: String,
    pub is_internal: bool,
    /// Names of each container, the one it is told by first, and its address.
    pub hosts: Vec<(Vec<String>, IpAddr)>,
}

#[derive(Debug)]
struct Made {
    network: LocalNetwork,
    bridge: Bridge,
    pool: Pool,
    /// Whether the bridge was there before: its maker removes it.
    is_foreign: bool,
}

/// What stands in `bridges/<network>`.
#[derive(Debug, Serialize, Deserialize)]
struct MadeFile {
    link: String,
    is_foreign: bool,
}

/// All networks of this host but the one that every node has.
#[derive(Debug)]
pub(crate) struct Bridges {
    made: BTreeMap<String, Made>,
    plugs: BTreeMap<String, Vec<Plug>>,
    fences: Fences,
}

impl Bridges {
    /// Takes over what containers already have. Networks are made by [`Bridges::make`].
    pub(crate) fn load(run_dir: &Path, fences: Fences) -> Result<Self, Error> {
        let mut loaded = Self { made: BTreeMap::new(), plugs: BTreeMap::new(), fences };
        for directory in [made_files(run_dir), plug_files(run_dir)] {
            std::fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        }
        for (container, path) in state_file::list(&plug_files(run_dir))? {
            let netns = crate::namespaces(run_dir).join(&container);
            match state_file::read::<Vec<Plug>>(&path) {
                Some(plugs) if namespace::exists(&netns) => {
                    loaded.plugs.insert(container, plugs);
                }
                _ => state_file::remove(&path)?,
            }
        }
        loaded.fence()?;
        Ok(loaded)
    }

    /// Makes a network, or takes over what an earlier daemon made of it.
    pub(crate) fn make(&mut self, run_dir: &Path, network: LocalNetwork) -> Result<(), Error> {
        let file = made_files(run_dir).join(&network.id);
        let known = state_file::read::<MadeFile>(&file);
        let shape = Shape {
            name: &network.link,
            subnet: network.subnet,
            gateway: network.gateway,
            mtu: network.mtu,
            has_ipv6: ipv6::is_spoken() && !network.is_internal,
        };
        let (bridge, is_new) = bridge::make(shape)?;
        let is_foreign = known.map_or(!is_new, |known| known.is_foreign);
        state_file::write(&file, &MadeFile { link: network.link.clone(), is_foreign })?;
        let mut pool = Pool::within(network.subnet, network.range.unwrap_or(network.subnet));
        pool.take(network.gateway);
        network.reserved.iter().for_each(|address| pool.take(*address));
        let given = self.plugs.values().flatten().filter(|plug| plug.network == network.id);
        given.for_each(|plug| pool.take(plug.address));
        let id = network.id.clone();
        self.made.insert(id, Made { network, bridge, pool, is_foreign });
        self.fence()
    }

    /// Removes a network that no container is in. Idempotent.
    pub(crate) fn remove(&mut self, run_dir: &Path, id: &str) -> Result<(), Error> {
        let Some(made) = self.made.remove(id) else { return Ok(()) };
        if !made.is_foreign {
            bridge::unplug(made.bridge.name())?;
        }
        state_file::remove(&made_files(run_dir).join(id))?;
        self.fence()
    }

    /// Removes what an earlier daemon made of networks that are not made any more.
    pub(crate) fn remove_others(&mut self, run_dir: &Path) -> Result<(), Error> {
        for (id, path) in state_file::list(&made_files(run_dir))? {
            if self.made.contains_key(&id) {
                continue;
            }
            if let Some(file) = state_file::read::<MadeFile>(&path)
                && !file.is_foreign
                && !self.made.values().any(|made| made.network.link == file.link)
            {
                bridge::unplug(&file.link)?;
            }
            state_file::remove(&path)?;
        }
        Ok(())
    }

    /// Removes all networks and the table, when the node is taken down for good.
    pub(crate) fn close(&mut self, run_dir: &Path) -> Result<(), Error> {
        let ids: Vec<_> = self.made.keys().cloned().collect();
        ids.iter().try_for_each(|id| self.remove(run_dir, id))?;
        self.fences.remove()
    }

    /// Links a container to a network. One that is linked already keeps what it has.
    pub(crate) fn plug(
        &mut self,
        run_dir: &Path,
        guard: &mut Guard,
        container: &str,
        is_first: bool,
        request: PlugRequest,
    ) -> Result<Plug, Error> {
        if let Some(plug) = self.plug_of(container, &request.network) {
            return Ok(plug.clone());
        }
        let missing = || Error::NoOverlay { id: request.network.clone() };
        let made = self.made.get_mut(&request.network).ok_or_else(missing)?;
        let address = made.give(request.address)?;
        let plug = made.describe(container, address, &request);
        let netns = crate::namespaces(run_dir).join(container);
        let linked = made.link(guard, &netns, is_first, &plug);
        let plug = match linked {
            Ok(interface) => Plug { interface, ..plug },
            Err(error) => {
                made.pool.free(address);
                return Err(error);
            }
        };
        let plugs = self.plugs.entry(container.to_owned()).or_default();
        plugs.push(plug.clone());
        state_file::write(&plug_files(run_dir).join(container), plugs)?;
        Ok(plug)
    }

    /// From now on others find the container by these names.
    pub(crate) fn set_names(
        &mut self,
        run_dir: &Path,
        container: &str,
        network: &str,
        names: Vec<String>,
    ) -> Result<(), Error> {
        let Some(plugs) = self.plugs.get_mut(container) else { return Ok(()) };
        let Some(plug) = plugs.iter_mut().find(|plug| plug.network == network) else {
            return Ok(());
        };
        plug.names = names;
        state_file::write(&plug_files(run_dir).join(container), plugs)
    }

    /// Takes a container out of a network. Idempotent.
    pub(crate) fn unplug(
        &mut self,
        run_dir: &Path,
        guard: &mut Guard,
        container: &str,
        network: &str,
    ) -> Result<(), Error> {
        let Some(plugs) = self.plugs.get_mut(container) else { return Ok(()) };
        let Some(at) = plugs.iter().position(|plug| plug.network == network) else { return Ok(()) };
        bridge::unplug(&plugs[at].link)?;
        let plug = plugs.remove(at);
        let path = plug_files(run_dir).join(container);
        match plugs.is_empty() {
            true => {
                self.plugs.remove(container);
                state_file::remove(&path)?;
            }
            false => state_file::write(&path, plugs)?,
        }
        self.give_back(guard, &plug)
    }

    /// Forgets a container; its links end with its namespace. Answers with the networks it was in.
    pub(crate) fn leave(
        &mut self,
        run_dir: &Path,
        guard: &mut Guard,
        container: &str,
    ) -> Result<BTreeSet<String>, Error> {
        let plugs = self.plugs.remove(container).unwrap_or_default();
        for plug in &plugs {
            self.give_back(guard, plug)?;
        }
        state_file::remove(&plug_files(run_dir).join(container))?;
        Ok(plugs.into_iter().map(|plug| plug.network).collect())
    }

    fn give_back(&mut self, guard: &mut Guard, plug: &Plug) -> Result<(), Error> {
        if let Some(made) = self.made.get_mut(&plug.network) {
            made.pool.free(plug.address);
        }
        guard.dismiss(&plug.link)
    }

    /// What a container has of all networks of this host.
    pub(crate) fn plugs(&self, container: &str) -> &[Plug] {
        self.plugs.get(container).map_or(&[], Vec::as_slice)
    }

    /// Containers in networks of this host, with what they have.
    pub(crate) fn all_plugs(&self) -> &BTreeMap<String, Vec<Plug>> {
        &self.plugs
    }

    /// The subnets of all networks.
    pub(crate) fn subnets(&self) -> Vec<Ipv4Net> {
        self.made.values().map(|made| made.network.subnet).collect()
    }

    fn plug_of(&self, container: &str, network: &str) -> Option<&Plug> {
        self.plugs(container).iter().find(|plug| plug.network == network)
    }

    /// Who can be asked for by name in a network.
    pub(crate) fn names(&self, id: &str) -> Option<LocalNames> {
        let network = &self.made.get(id)?.network;
        let plugs = self.plugs.values().flatten().filter(|plug| plug.network == id);
        Some(LocalNames {
            network: id.to_owned(),
            name: network.name.clone(),
            is_internal: network.is_internal,
            hosts: plugs.map(|plug| (plug.names.clone(), plug.address.into())).collect(),
        })
    }

    /// Identifiers of the networks that are made.
    pub(crate) fn made(&self) -> impl Iterator<Item = &String> {
        self.made.keys()
    }

    /// The ports of all containers, and who is behind each.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (String, Tenant)> {
        let plugs = self.plugs.values().flatten();
        plugs.filter_map(|plug| Some((plug.link.clone(), tenant(plug)?)))
    }

    /// The tables that keep the networks apart, as `nft` names them: family and name.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.fences.tables()
    }

    /// Keeps containers off a UDP port of nodes.
    pub(crate) fn hide(&mut self, data_port: u16) -> Result<(), Error> {
        if self.fences.hide(data_port) { self.fence() } else { Ok(()) }
    }

    /// Keeps the networks apart, as they are now.
    pub(crate) fn fence(&mut self) -> Result<(), Error> {
        let fences: Vec<_> = self
            .made
            .values()
            .map(|made| Fence {
                link: made.network.link.clone(),
                subnet: made.network.subnet,
                is_internal: made.network.is_internal,
                is_masqueraded: made.network.is_masqueraded,
            })
            .collect();
        self.fences.set(&fences)
    }
}

impl Made {
    /// The address asked for, or the next free one.
    fn give(&mut self, asked: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
        let Some(address) = asked else {
            let (name, id) = (self.network.name.clone(), self.network.id.clone());
            return self.pool.allocate().map_err(|_| Error::NoAddressLeft { name, id });
        };
        let subnet = self.network.subnet;
        let is_host = address != subnet.network() && address != subnet.broadcast();
        if !subnet.contains(&address) || !is_host {
            return Err(Error::AddressOutside { address });
        }
        if self.pool.is_taken(address) {
            return Err(Error::AddressTaken { address });
        }
        self.pool.take(address);
        Ok(address)
    }

    fn describe(&self, container: &str, address: Ipv4Addr, request: &PlugRequest) -> Plug {
        Plug {
            network: request.network.clone(),
            link: link_name(container, &request.network),
            interface: String::new(),
            address,
            prefix_len: self.network.subnet.prefix_len(),
            gateway: self.network.gateway,
            mac: address::text_of(request.mac.unwrap_or_else(|| address::mac(address))),
            names: request.names.clone(),
            is_alone: !self.network.is_shared,
        }
    }

    /// Answers with the link's name in the container.
    fn link(
        &self,
        guard: &mut Guard,
        netns: &Path,
        is_first: bool,
        plug: &Plug,
    ) -> Result<String, Error> {
        let mac = address::parse_mac(&plug.mac).expect("written by us");
        let Plug { link, address, is_alone, .. } = plug;
        let (address, is_alone) = (*address, *is_alone);
        guard.admit(link, tenant(plug).expect("the address is written by us"))?;
        let wire = Wire { link, netns, is_first, address, mac, is_alone };
        let linked = self.bridge.plug(wire);
        if linked.is_err() {
            let _ = guard.dismiss(link);
            let _ = bridge::unplug(link);
        }
        linked
    }
}

fn tenant(plug: &Plug) -> Option<Tenant> {
    let mac = address::parse_mac(&plug.mac)?;
    // Those that are alone are kept apart by their ports: all others of the network are alone too.
    Some(Tenant { mac, addresses: addresses_of(plug), is_alone: false })
}

fn addresses_of(plug: &Plug) -> Vec<IpAddr> {
    vec![plug.address.into(), ipv6::of_container(plug.address).into()]
}

/// The host's end of a container's link to a network: `ve` and twelve digits of both (FNV-1a).
fn link_name(container: &str, network: &str) -> String {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = container.bytes().chain([0]).chain(network.bytes());
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    format!("vn{:012x}", hash >> 16)
}

fn made_files(run_dir: &Path) -> PathBuf {
    run_dir.join("bridges")
}

fn plug_files(run_dir: &Path) -> PathBuf {
    run_dir.join("plugs")
}

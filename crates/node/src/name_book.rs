//! The names that containers of this node may ask for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use names::{Host, Names, Server, SharedZone, Zone, host_resolvers};
use network::{Asker, DEFAULT_NETWORK, LocalNames, NameSockets, Namer};
use tracing::warn;

/// Zones of networks, and the servers of the containers in them.
#[derive(Debug, Default)]
pub(crate) struct NameBook(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    zones: BTreeMap<String, Known>,
    containers: BTreeMap<String, Answered>,
}

#[derive(Debug, Default)]
struct Known {
    zone: SharedZone,
    is_internal: bool,
}

#[derive(Debug)]
struct Answered {
    networks: Vec<String>,
    server: Option<Server>,
}

impl NameBook {
    /// Changes the names that are known in the network.
    pub(crate) fn change(&self, network: &str, is_internal: bool, change: impl FnOnce(&mut Zone)) {
        let mut state = self.lock();
        let is_new = !state.zones.contains_key(network);
        let known = state.zones.entry(network.to_owned()).or_default();
        let is_other = std::mem::replace(&mut known.is_internal, is_internal) != is_internal;
        change(&mut known.zone.write().unwrap_or_else(PoisonError::into_inner));
        if !is_new && !is_other {
            return;
        }
        let State { zones, containers } = &*state;
        let concerned =
            containers.values().filter(|it| it.networks.iter().any(|known| known == network));
        for container in concerned {
            if let Some(server) = &container.server {
                server.set(names_of(zones, &container.networks));
            }
        }
    }

    pub(crate) fn forget_network(&self, network: &str) {
        self.lock().zones.remove(network);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Port of the world's servers.
const PORT: u16 = 53;

impl Namer for NameBook {
    fn serve(&self, asker: Asker<'_>, sockets: NameSockets) {
        let Asker { container, networks, servers } = asker;
        let networks = networks.to_vec();
        let resolvers = match servers.is_empty() {
            true => host_resolvers(),
            false => servers.iter().map(|server| SocketAddr::new(*server, PORT)).collect(),
        };
        let mut state = self.lock();
        let names = names_of(&state.zones, &networks);
        let NameSockets { udp, tcp } = sockets;
        let server = Server::start(udp, tcp, names, resolvers);
        let server =
            server.inspect_err(|error| warn!(container, %error, "names are not answered")).ok();
        state.containers.insert(container.to_owned(), Answered { networks, server });
    }

    fn change(&self, asker: Asker<'_>) {
        let mut state = self.lock();
        let State { zones, containers } = &mut *state;
        let Some(answered) = containers.get_mut(asker.container) else { return };
        answered.networks = asker.networks.to_vec();
        if let Some(server) = &answered.server {
            server.set(names_of(zones, &answered.networks));
        }
    }

    fn forget(&self, container: &str) {
        self.lock().containers.remove(container);
    }

    fn tell(&self, names: LocalNames) {
        self.change(&names.network, names.is_internal, |zone| *zone = zone_of(&names));
    }

    fn forget_network(&self, network: &str) {
        Self::forget_network(self, network);
    }
}

fn zone_of(names: &LocalNames) -> Zone {
    let mut zone = Zone::new(&names.name);
    for (known_by, address) in &names.hosts {
        let mut host = Host::default();
        for name in known_by {
            host.add(name, [*address]);
        }
        if let Some(first) = known_by.first() {
            host.reverse.insert(*address, format!("{first}.{}", names.name));
        }
        zone.set(&address.to_string(), host);
    }
    zone
}

fn names_of(zones: &BTreeMap<String, Known>, networks: &[String]) -> Names {
    let known: Vec<_> = networks.iter().filter_map(|network| zones.get(network)).collect();
    Names {
        is_internal: !networks.iter().any(|network| network == DEFAULT_NETWORK)
            && !known.is_empty()
            && known.iter().all(|known| known.is_internal),
        zones: known.into_iter().map(|known| known.zone.clone()).collect(),
    }
}

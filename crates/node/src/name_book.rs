//! The names that containers of this node may ask for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use names::{Names, Server, Zone, host_resolvers};
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

#[derive(Debug)]
struct Known {
    zone: Arc<Zone>,
    is_internal: bool,
}

#[derive(Debug)]
struct Answered {
    networks: Vec<String>,
    server: Option<Server>,
}

impl NameBook {
    /// From now on these names are known in the network.
    pub(crate) fn set(&self, network: &str, zone: Zone, is_internal: bool) {
        let mut state = self.lock();
        if state.zones.get(network).is_some_and(|known| *known.zone == zone) {
            return;
        }
        let zone = Arc::new(zone);
        state.zones.insert(network.to_owned(), Known { zone, is_internal });
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
        self.set(&names.network, zone_of(&names), names.is_internal);
    }

    fn forget_network(&self, network: &str) {
        Self::forget_network(self, network);
    }
}

fn zone_of(names: &LocalNames) -> Zone {
    let mut zone = Zone { network: names.name.to_ascii_lowercase(), ..Zone::default() };
    for (known_by, address) in &names.hosts {
        for name in known_by {
            zone.add(name, [*address]);
        }
        if let Some(first) = known_by.first() {
            zone.reverse.insert(*address, format!("{first}.{}", names.name));
        }
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

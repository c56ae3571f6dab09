//! The names that containers of this node may ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use names::{Answerer, Host, Names, Server, SharedZone, Zone, host_resolvers};
use network::{AskWithin, Asker, DEFAULT_NETWORK, LocalNames, NameFault, NameSockets, Namer};
use tracing::warn;

use crate::board::Board;
use crate::told::Touched;

/// Names of a network that each container is asked for at an audit: enough to see that its server answers.
const NAMES_ASKED: usize = 8;

/// Zones of networks, and the servers of the containers in them.
#[derive(Debug)]
pub(crate) struct NameBook {
    board: Arc<Board>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    zones: BTreeMap<String, Known>,
    containers: BTreeMap<String, Answered>,
    /// From the first container on.
    answerer: Option<Answerer>,
}

impl State {
    fn answerer(&mut self) -> io::Result<&Answerer> {
        if self.answerer.is_none() {
            self.answerer = Some(Answerer::start()?);
        }
        Ok(self.answerer.as_ref().expect("started just now where it was missing"))
    }
}

#[derive(Debug, Default)]
struct Known {
    zone: SharedZone,
    is_internal: bool,
    /// Whether it is one of this host's and not of the swarm's.
    is_local: bool,
}

#[derive(Debug)]
struct Answered {
    networks: Vec<String>,
    server: Option<Server>,
}

impl NameBook {
    /// Names of networks of the swarm follow from what is on `board`.
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self { board, state: Mutex::default() }
    }

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
        let State { zones, containers, .. } = &*state;
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let server = state
            .answerer()
            .and_then(|answerer| Server::start(answerer, udp, tcp, names, resolvers));
        let server =
            server.inspect_err(|error| warn!(container, %error, "names are not answered")).ok();
        state.containers.insert(container.to_owned(), Answered { networks, server });
    }

    fn change(&self, asker: Asker<'_>) {
        let mut state = self.lock();
        let State { zones, containers, .. } = &mut *state;
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
        if let Some(known) = self.lock().zones.get_mut(&names.network) {
            known.is_local = true;
        }
    }

    fn forget_network(&self, network: &str) {
        Self::forget_network(self, network);
    }

    fn faults(&self, askers: &[Asker<'_>], ask: AskWithin<'_>) -> Vec<NameFault> {
        let mut faults = self.zone_faults();
        let mut questions = Vec::new();
        {
            let state = self.lock();
            faults.extend(server_faults(&state, askers));
            for asker in askers {
                questions.push((asker.container, state.expected(asker.networks)));
            }
        }
        for (container, expected) in questions {
            let problem = wrong_answers(container, &expected, ask);
            faults.extend(problem.map(|problem| fault_of(container, problem)));
        }
        faults
    }
}

impl NameBook {
    /// Zones of the swarm that are not what they should be, or nobody's.
    fn zone_faults(&self) -> Vec<NameFault> {
        let told: BTreeMap<_, _> =
            self.board.all().into_iter().map(|(id, told)| (id.to_string(), told)).collect();
        let state = self.lock();
        let known = state.zones.iter().filter(|(_, known)| !known.is_local);
        let problems = known.filter_map(|(id, known)| match told.get(id) {
            None => Some(format!("names of network {id}, which is nobody's")),
            Some(told) => {
                let mut zone = Zone::default();
                told.write_names(&mut zone, &Touched { is_all: true, ..Touched::default() });
                let is_so = *known.zone.read().unwrap_or_else(PoisonError::into_inner) == zone;
                (!is_so).then(|| format!("names of network {id} are not those of its members"))
            }
        });
        problems.map(|problem| NameFault { container: None, problem }).collect()
    }
}

impl State {
    /// The first names that a container in these networks can ask for, with the IPv4 addresses behind each.
    fn expected(&self, networks: &[String]) -> Vec<(String, BTreeSet<IpAddr>)> {
        let names = names_of(&self.zones, networks);
        // What a network knows hides what those after it know.
        let mut expected = BTreeMap::new();
        for zone in names.zones.iter().rev() {
            let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
            let of_v4 = |addresses: BTreeSet<IpAddr>| {
                addresses.into_iter().filter(IpAddr::is_ipv4).collect()
            };
            expected
                .extend(zone.all().map(|(name, addresses)| (name.to_owned(), of_v4(addresses))));
        }
        expected.into_iter().take(NAMES_ASKED).collect()
    }
}

/// Servers that know other names than they should, or that nobody asks.
fn server_faults(state: &State, askers: &[Asker<'_>]) -> Vec<NameFault> {
    let mut faults = Vec::new();
    let known: BTreeMap<_, _> = askers.iter().map(|asker| (asker.container, asker)).collect();
    for asker in askers {
        let answered = state.containers.get(asker.container);
        let server = answered.and_then(|answered| answered.server.as_ref());
        let problem = match server.map(Server::names) {
            None => "asks for names, and nobody answers",
            Some(names) if *names != names_of(&state.zones, asker.networks) => {
                "is told the names of other networks than its own"
            }
            Some(_) => continue,
        };
        faults.push(fault_of(asker.container, problem.to_owned()));
    }
    for container in state.containers.keys().filter(|it| !known.contains_key(it.as_str())) {
        let problem = format!("names are answered for container {container}, who is nobody");
        faults.push(NameFault { container: None, problem });
    }
    faults
}

/// What a container is told that differs from what is expected.
fn wrong_answers(
    container: &str,
    expected: &[(String, BTreeSet<IpAddr>)],
    ask: AskWithin<'_>,
) -> Option<String> {
    let asked = expected.iter().filter_map(|it| Some((it, names::question(&it.0)?)));
    let (expected, questions): (Vec<_>, Vec<_>) = asked.unzip();
    if questions.is_empty() {
        return None;
    }
    let answers = match ask(container, &questions) {
        Ok(answers) => answers,
        Err(error) => return Some(format!("is not told names: {error}")),
    };
    let mut wrong = expected
        .iter()
        .zip(&answers)
        .filter(|((_, addresses), answer)| names::addresses_in(answer).as_ref() != Some(addresses));
    wrong.next().map(|((name, _), _)| format!("is told other addresses of {name} than it has"))
}

fn fault_of(container: &str, problem: String) -> NameFault {
    let problem = format!("container {container} {problem}");
    NameFault { container: Some(container.to_owned()), problem }
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    const NETWORKS: &str = "local";

    fn book() -> NameBook {
        let book = NameBook::new(Arc::new(Board::default()));
        let hosts = vec![(vec!["web".to_owned()], IpAddr::from([10, 0, 0, 2]))];
        let (network, name) = (NETWORKS.to_owned(), NETWORKS.to_owned());
        book.tell(LocalNames { network, name, is_internal: true, hosts });
        book
    }

    fn sockets() -> NameSockets {
        let any = ("127.0.0.1", 0);
        NameSockets { udp: UdpSocket::bind(any).unwrap(), tcp: TcpListener::bind(any).unwrap() }
    }

    /// The problems, where every question is answered with that address of `web`.
    fn problems(book: &NameBook, askers: &[Asker<'_>], address: [u8; 4]) -> Vec<String> {
        let mut zone = Zone::new(NETWORKS);
        let mut host = Host::default();
        host.add("web", [address.into()]);
        zone.set("1", host);
        let zones = vec![Arc::new(std::sync::RwLock::new(zone))];
        let names = Names { zones, is_internal: true };
        let answer = |question: &Vec<u8>| match names.answer(question, names::Transport::Udp, |_| 0)
        {
            names::Reply::Answer(answer) => answer,
            _ => Vec::new(),
        };
        let ask = |_: &str, questions: &[Vec<u8>]| Ok(questions.iter().map(answer).collect());
        book.faults(askers, &ask).into_iter().map(|fault| fault.problem).collect()
    }

    #[tokio::test]
    async fn wrong_answers_and_names_of_nobody_are_found() {
        let book = book();
        let networks = [NETWORKS.to_owned()];
        let asker = Asker { container: "one", networks: &networks, servers: &[] };
        let nobody = "container one asks for names, and nobody answers";
        assert_eq!(problems(&book, &[asker], [10, 0, 0, 2]), [nobody]);
        book.serve(asker, sockets());
        assert_eq!(problems(&book, &[asker], [10, 0, 0, 2]), Vec::<String>::new());
        let wrong = "container one is told other addresses of web than it has";
        assert_eq!(problems(&book, &[asker], [10, 0, 0, 3]), [wrong]);
        let stranger = "names are answered for container one, who is nobody";
        assert_eq!(problems(&book, &[], [10, 0, 0, 2]), [stranger]);
        let elsewhere = Asker { networks: &[], ..asker };
        let other = "container one is told the names of other networks than its own";
        assert_eq!(problems(&book, &[elsewhere], [10, 0, 0, 2]), [other]);
    }

    #[test]
    fn names_of_networks_that_are_gone_are_found() {
        let book = book();
        NameBook::change(&book, "old", false, |zone| *zone = Zone::new("old"));
        let strange = "names of network old, which is nobody's";
        assert_eq!(problems(&book, &[], [10, 0, 0, 2]), [strange]);
    }
}

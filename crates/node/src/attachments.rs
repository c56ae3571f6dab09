//! Plain containers of this node in networks of the swarm: asks the managers for their places, and gives them back.
//!
//! The kernel knows which containers are in which networks, and what it knows is told to the managers at the beginning of
//! each session. So a container that ended while nobody could be told leaves nothing behind for long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::networks::Refusal;
use engine::swarm::{Answer, AttachRequest, Attached, SwarmNetwork, SwarmNetworks};
use engine::{Engine, ErrorKind};
use manager::{Claim, Code};
use tokio::time::Instant;
use tracing::warn;
use types::network::NodeNetwork;

use crate::board::Board;
use crate::session::Upstream;

/// How long a network may take to come to this node, as in Docker.
const NETWORK_PATIENCE: Duration = Duration::from_secs(20);

/// Between two attempts to reach a manager.
const RETRY: Duration = Duration::from_millis(200);

/// How long a container that was given a place has to take it.
const ENTRY_PATIENCE: Duration = Duration::from_secs(60);

/// This node's containers in networks of the swarm.
#[derive(Debug)]
pub(crate) struct Attachments {
    engine: Arc<Engine>,
    board: Arc<Board>,
    state: Mutex<State>,
    /// One at a time speaks to the managers, so that nobody takes back what another was just given.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The way to the managers, while this node is in a swarm.
    upstream: Option<Arc<Upstream>>,
    /// Places that were given lately, by network and container: the kernel may not know of them yet.
    recent: BTreeMap<(String, String), (Claim, Instant)>,
}

impl Attachments {
    pub(crate) fn new(engine: Arc<Engine>, board: Arc<Board>) -> Self {
        Self { engine, board, state: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// From now on these managers are asked; nobody is, outside a swarm.
    pub(crate) fn set_upstream(&self, upstream: Option<Arc<Upstream>>) {
        let mut state = self.lock();
        state.upstream = upstream;
        state.recent.clear();
    }

    /// Tells the managers of all containers of this node that are in networks of the swarm.
    pub(crate) async fn tell(&self) {
        let _asking = self.asking.lock().await;
        let Some(upstream) = self.upstream() else { return };
        let claims = self.claims();
        if let Err(error) = upstream.hold(claims).await {
            warn!(error, "managers were not told of the containers in networks of the swarm");
        }
    }

    /// What is held: what the kernel has, and what was given a moment ago.
    fn claims(&self) -> Vec<Claim> {
        let mut claims: BTreeMap<_, _> = self
            .engine
            .containers
            .attached()
            .into_iter()
            .map(|request| {
                let key = (request.network.clone(), request.container.clone());
                (key, claim(request))
            })
            .collect();
        let mut state = self.lock();
        state.recent.retain(|_, (_, since)| since.elapsed() < ENTRY_PATIENCE);
        for (key, (claim, _)) in &state.recent {
            claims.entry(key.clone()).or_insert_with(|| claim.clone());
        }
        claims.into_values().collect()
    }

    async fn ask(&self, request: AttachRequest) -> Result<Attached, Refusal> {
        let name = request.network_name.clone();
        let missing = || Refusal::NotFound { name: name.clone() };
        let upstream = self.upstream().ok_or_else(missing)?;
        let given = {
            let _asking = self.asking.lock().await;
            let claim = claim(request);
            let container = claim.container.clone();
            let given = patiently(&upstream, &claim).await;
            let given = given.map_err(|error| match error.code {
                Code::NotFound => missing(),
                code => Refusal::Attach {
                    network: name.clone(),
                    reason: error.to_string(),
                    kind: kind_of(code),
                },
            })?;
            let address = given.addresses.first().map(ipnet::IpNet::addr);
            let held = Claim { network: given.network.to_string(), address, ..claim };
            let key = (given.network.to_string(), container);
            self.lock().recent.insert(key, (held, Instant::now()));
            given
        };
        let here = self.board.has_made(given.network, given.id);
        if tokio::time::timeout(NETWORK_PATIENCE, here).await.is_err() {
            return Err(Refusal::NotHere { network: name });
        }
        let network = SwarmNetwork {
            id: given.network.to_string(),
            name: given.name,
            is_internal: given.is_internal,
        };
        Ok(Attached { network, addresses: given.addresses })
    }

    async fn give_back(&self, network: String, container: String) {
        let _asking = self.asking.lock().await;
        self.lock().recent.remove(&(network.clone(), container.clone()));
        let Some(upstream) = self.upstream() else { return };
        let Ok(id) = network.parse() else { return };
        // Who cannot be told now is told with the next session.
        if let Err(error) = upstream.detach(id, container).await {
            warn!(network, error, "a container's place is given back later");
        }
    }

    fn upstream(&self) -> Option<Arc<Upstream>> {
        self.lock().upstream.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SwarmNetworks for Attachments {
    fn find(&self, name: &str) -> Option<SwarmNetwork> {
        let definitions = match self.upstream()?.manager() {
            Some(manager) => {
                let snapshot = manager.snapshot();
                let networks = snapshot.networks();
                networks.map(|network| known(network.id.to_string(), &network.spec)).collect()
            }
            None => {
                let here = self.board.definitions();
                let known = |it: &NodeNetwork| known(it.id.to_string(), &it.spec);
                here.iter().map(known).collect::<Vec<_>>()
            }
        };
        let exact = definitions.iter().find(|network| network.id == name || network.name == name);
        let mut begun = definitions.iter().filter(|network| network.id.starts_with(name));
        let only = begun.next().filter(|_| !name.is_empty() && begun.next().is_none());
        exact.or(only).cloned()
    }

    fn attach(&self, request: AttachRequest) -> Answer<'_, Result<Attached, Refusal>> {
        Box::pin(self.ask(request))
    }

    fn detach(&self, network: String, container: String) -> Answer<'_, ()> {
        Box::pin(self.give_back(network, container))
    }
}

/// Asks until somebody answers: managers may be electing a leader, or be started just now as this node is.
async fn patiently(
    upstream: &Upstream,
    claim: &Claim,
) -> Result<manager::Attached, manager::Error> {
    let end = Instant::now() + NETWORK_PATIENCE;
    loop {
        match upstream.attach(claim.clone()).await {
            Err(error)
                if matches!(error.code, Code::Unavailable | Code::Unknown)
                    && Instant::now() < end =>
            {
                tokio::time::sleep(RETRY).await;
            }
            answer => return answer,
        }
    }
}

fn known(id: String, spec: &types::network::NetworkSpec) -> SwarmNetwork {
    SwarmNetwork { id, name: spec.annotations.name.clone(), is_internal: spec.is_internal }
}

fn claim(request: AttachRequest) -> Claim {
    let AttachRequest { network, container, name, aliases, address, .. } = request;
    Claim { network, container, name, aliases, address }
}

fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::PermissionDenied => ErrorKind::Forbidden,
        Code::InvalidArgument | Code::FailedPrecondition => ErrorKind::Invalid,
        Code::Unavailable => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

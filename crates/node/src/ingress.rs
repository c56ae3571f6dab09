//! The ports that services publish on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::Engine;
use network::{Protocol, PublishedPort};
use tokio::time::Instant;
use tracing::{info, warn};
use types::endpoint::PortConfig;
use types::{ServiceId, endpoint};

/// Owners of published ports that are services begin so.
const OWNER: &str = "service:";
/// How long until a port that was held is asked for again.
const RETRY: Duration = Duration::from_secs(5);

/// What is published, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Ingress {
    /// Which services have ports, to withdraw those an earlier daemon left.
    owners: BTreeSet<String>,
    waiting: BTreeMap<String, Vec<PublishedPort>>,
    retry_at: Option<Instant>,
}

impl Ingress {
    /// Publishes a service's ports in front of these addresses; no ports withdraw them.
    pub(crate) async fn publish(
        &mut self,
        engine: &Engine,
        service: ServiceId,
        ports: &[PortConfig],
        backends: &[String],
    ) {
        let owner = owner(service);
        let backends: Vec<_> = backends.iter().filter_map(|address| address.parse().ok()).collect();
        let ports: Vec<_> = ports
            .iter()
            .map(|port| PublishedPort { backends: backends.clone(), ..published(port) })
            .collect();
        if ports.is_empty() {
            self.owners.remove(&owner);
        } else {
            self.owners.insert(owner.clone());
        }
        self.waiting.remove(&owner);
        if let Err(error) = engine.network.publish(&owner, ports.clone()).await {
            warn!(service.id = %service, %error, "ports are not published, and will be when they can be");
            self.waiting.insert(owner, ports);
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Ready when something that could not be published is due again.
    pub(crate) fn due(&self) -> impl Future<Output = ()> + use<> {
        let at = self.retry_at.filter(|_| !self.waiting.is_empty());
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Asks again for what was held.
    pub(crate) async fn publish_waiting(&mut self, engine: &Engine) {
        for (owner, ports) in std::mem::take(&mut self.waiting) {
            match engine.network.publish(&owner, ports.clone()).await {
                Ok(()) => info!(owner, "ports are published at last"),
                Err(_) => drop(self.waiting.insert(owner, ports)),
            }
        }
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// Withdraws what an earlier daemon left and nobody asks for any more.
    pub(crate) async fn withdraw_others(&self, engine: &Engine) {
        if let Err(error) = engine.network.withdraw_others(OWNER, self.owners.clone()).await {
            warn!(%error, "ports of an earlier daemon stay published");
        }
    }
}

/// Whether this host has the service's ports to give: a task nobody can reach is not begun.
///
/// # Errors
/// Which port is held, in words for `docker service ps`.
pub(crate) async fn check(
    engine: &Engine,
    service: ServiceId,
    ports: &[PortConfig],
) -> Result<(), String> {
    for port in ports.iter().filter(|port| port.published != 0) {
        let free = engine.network.check_free(&owner(service), published(port)).await;
        let holder = match free {
            Ok(()) => continue,
            Err(network::Error::PortHeld { .. }) => "held by another process",
            Err(network::Error::PortTaken { .. }) => "published by another container",
            Err(error) => return Err(error.to_string()),
        };
        let (number, protocol) = (port.published, port.protocol.as_str());
        return Err(format!("port {number}/{protocol} is {holder} on this host"));
    }
    Ok(())
}

/// Withdraws all ports of the swarm, which this node has left.
pub(crate) async fn withdraw_all(engine: &Engine) {
    if let Err(error) = engine.network.withdraw_others(OWNER, BTreeSet::new()).await {
        warn!(%error, "ports of the swarm stay published");
    }
}

fn owner(service: ServiceId) -> String {
    format!("{OWNER}{service}")
}

fn published(port: &PortConfig) -> PublishedPort {
    PublishedPort {
        protocol: match port.protocol {
            endpoint::Protocol::Tcp => Protocol::Tcp,
            endpoint::Protocol::Udp => Protocol::Udp,
            endpoint::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip: None,
        published: port.published,
        target: port.target,
        backends: Vec::new(),
    }
}

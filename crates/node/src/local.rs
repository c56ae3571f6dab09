//! What this node knows of networks and names, in a swarm and out of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use apiserver::NetworkMembers;
use engine::Engine;
use manager::{Manager, network_as_seen};
use tracing::warn;
use types::network::NodeNetwork;
use types::{Meta, Network, NetworkId};

use crate::attachments::Attachments;
use crate::board::Board;
use crate::name_book::NameBook;
use crate::own_networks;
use crate::told::Told;

/// Shared by the parts that write it and those that look.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) board: Arc<Board>,
    pub(crate) names: Arc<NameBook>,
    pub(crate) attachments: Arc<Attachments>,
}

impl Local {
    /// The networks of the swarm in which this node takes part.
    pub(crate) fn networks(&self) -> Vec<Arc<Network>> {
        self.board.definitions().into_iter().map(|network| Arc::new(as_network(network))).collect()
    }

    /// Who is in a network of the swarm: as this node sees it, else as its manager does.
    pub(crate) fn members(
        &self,
        id: NetworkId,
        manager: Option<&Manager>,
    ) -> Option<NetworkMembers> {
        let told = self.board.told(id).or_else(|| {
            let mut told = Told::default();
            told.change(network_as_seen(&manager?.snapshot(), id)?);
            Some(Arc::new(told))
        })?;
        let ports = manager.map(|manager| {
            let snapshot = manager.snapshot();
            let services = snapshot.services();
            services.map(|service| (service.id, service.endpoint.ports.clone())).collect()
        });
        Some(NetworkMembers {
            peers: told.peers.values().cloned().collect(),
            services: told.services.values().cloned().collect(),
            ports: ports.unwrap_or_default(),
        })
    }

    /// Leaves all networks of a swarm that this node is in no more.
    pub(crate) async fn leave_networks(&self, engine: &Engine) {
        for request in engine.containers.attached() {
            let left = engine.containers.disconnect(&request.network, &request.container).await;
            if let Err(error) = left {
                warn!(container.id = request.container, %error, "a network of the swarm is not left");
            }
        }
        own_networks::keep(engine, &BTreeSet::new()).await;
        for id in self.board.networks() {
            self.board.forget(id);
            self.names.forget_network(&id.to_string());
        }
        for id in engine.network.overlays().await.unwrap_or_default() {
            if let Err(error) = engine.network.remove_overlay(&id).await {
                warn!(network.id = id, %error, "network of the swarm is not removed");
            }
        }
    }
}

fn as_network(network: NodeNetwork) -> Network {
    let NodeNetwork { id, vni, subnets, spec, created_at, .. } = network;
    let meta = Meta { created_at, updated_at: created_at, version: 0 };
    Network { id, meta, spec, vni, subnets }
}

//! What a node was told of networks, as it has it after all changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use types::network::{NetworkChange, NetworkService, NodeNetwork, Peer};
use types::{NetworkId, NodeId, ServiceId, TaskId};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told(BTreeMap<NetworkId, View>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View {
    definition: Option<NodeNetwork>,
    peers: BTreeMap<TaskId, Peer>,
    services: BTreeMap<ServiceId, NetworkService>,
    nodes: BTreeMap<NodeId, IpAddr>,
}

impl Told {
    pub(crate) fn change(&mut self, change: NetworkChange) {
        let view = self.0.entry(change.network).or_default();
        if change.is_full {
            *view = View::default();
        }
        view.definition = change.definition.or(view.definition.take());
        view.peers.retain(|task, _| !change.gone.contains(task));
        view.peers.extend(change.peers.into_iter().map(|peer| (peer.task, peer)));
        view.services.retain(|service, _| !change.gone_services.contains(service));
        view.services.extend(change.services.into_iter().map(|it| (it.service, it)));
        view.nodes.retain(|node, _| !change.gone_nodes.contains(node));
        view.nodes.extend(change.nodes.into_iter().map(|place| (place.node, place.data_address)));
    }

    pub(crate) fn leave(&mut self, network: NetworkId) {
        self.0.remove(&network);
    }
}

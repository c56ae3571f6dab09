//! What a node was told of networks, as it has it after all changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
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

    /// What is here otherwise than there, one line for each thing.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let networks: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let mut all = Vec::new();
        for id in networks {
            let (Some(here), Some(there)) = (self.0.get(id), other.0.get(id)) else {
                let word = if self.0.contains_key(id) { "here only" } else { "there only" };
                all.push(format!("network {id}: {word}"));
                continue;
            };
            if here.definition != there.definition {
                all.push(format!("{id}: {:?} against {:?}", here.definition, there.definition));
            }
            differ(&mut all, &here.peers, &there.peers);
            differ(&mut all, &here.services, &there.services);
            differ(&mut all, &here.nodes, &there.nodes);
        }
        all
    }

    pub(crate) fn leave(&mut self, network: NetworkId) {
        self.0.remove(&network);
    }
}

fn differ<K: Ord, V: Debug + PartialEq>(
    all: &mut Vec<String>,
    here: &BTreeMap<K, V>,
    there: &BTreeMap<K, V>,
) {
    let keys: BTreeSet<_> = here.keys().chain(there.keys()).collect();
    let pairs = keys.into_iter().map(|key| (here.get(key), there.get(key)));
    let differing = pairs.filter(|(here, there)| here != there);
    all.extend(differing.map(|(here, there)| format!("{here:?} against {there:?}")));
}

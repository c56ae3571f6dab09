//! Networks as they are listed and looked at: those of this host by the engine's word, those of the swarm by the node's.

use docker_types::convert::network::{add_members as add_swarm_members, network_to_api};
use docker_types::network::NetworkResource;
use engine::networks::{GATEWAY_NETWORK, PREDEFINED, predefined_id};

use crate::error::ApiError;
use crate::state::ApiState;

const SWARM: &str = "swarm";

/// All networks this node knows.
pub(super) fn all(state: &ApiState) -> Vec<NetworkResource> {
    let mut networks = state.engine.networks(state.swarm.node_id().is_some());
    networks.extend(state.swarm.networks().iter().map(|network| network_to_api(network)));
    networks
}

/// The network that `reference` names: by its identifier, its name, or the beginning of its identifier.
///
/// # Errors
/// Not found, or several, in Docker's words.
pub(super) fn find(
    state: &ApiState,
    reference: &str,
    scope: Option<&str>,
) -> Result<NetworkResource, ApiError> {
    let mut networks = all(state);
    if scope == Some(SWARM) {
        // Services may name them, and the docker command asks for them so.
        let of_each_node = networks.iter_mut().filter(|it| PREDEFINED.contains(&it.name.as_str()));
        of_each_node.for_each(|it| SWARM.clone_into(&mut it.scope));
    }
    networks.retain(|network| scope.is_none_or(|scope| network.scope == scope));
    let exact = networks
        .iter()
        .find(|network| network.id == reference)
        .or_else(|| networks.iter().find(|network| network.name == reference));
    if let Some(network) = exact {
        return Ok(network.clone());
    }
    let begun: Vec<_> = networks
        .iter()
        .filter(|network| !reference.is_empty() && network.id.starts_with(reference))
        .collect();
    match begun[..] {
        [network] => Ok(network.clone()),
        [] => Err(ApiError::not_found(format!("network {reference} not found"))),
        _ => Err(ApiError::bad_request(format!(
            "network {reference} is ambiguous ({} matches found based on ID prefix)",
            begun.len()
        ))),
    }
}

/// Adds who is in a network: on this host, and of the swarm's on the others.
pub(super) fn add_members(state: &ApiState, network: &mut NetworkResource, is_verbose: bool) {
    network.containers = state.engine.endpoints(network);
    state.engine.describe_own(network);
    if network.scope != "swarm" {
        return;
    }
    let members = network.id.parse().ok().and_then(|id| state.swarm.network_members(id));
    if let Some(members) = members {
        let (peers, services) = (&members.peers, &members.services);
        add_swarm_members(network, peers, services, &members.ports, is_verbose);
    }
}

/// Whether nobody is in a network that somebody made.
pub(super) fn is_dangling(state: &ApiState, network: &NetworkResource) -> bool {
    if super::is_predefined(network) || network.ingress {
        return false;
    }
    let mut seen = network.clone();
    add_members(state, &mut seen, true);
    seen.containers.is_empty() && seen.services.is_empty() && seen.peers.is_empty()
}

/// Whether this is the network beside tasks' networks, which is shown where scripts look for it.
pub(super) fn is_gateway_network(network: &NetworkResource) -> bool {
    network.name == GATEWAY_NETWORK && network.id == predefined_id(GATEWAY_NETWORK)
}

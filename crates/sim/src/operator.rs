//! What operators ask for, as the manager's control writes it.

use planner::services;
use store::{Draft, Key};
use types::endpoint::{EndpointSpec, PortConfig};
use types::network::{Attachment, NetworkSpec, Subnet};
use types::node::{Availability, NodeSpec, NodeState, Role};
use types::service::{Mode, UpdateConfig, UpdateOrder};
use types::{Cluster, ClusterId, Meta, Network, NetworkId, Node, NodeId, ServiceId, ServiceSpec};

use crate::invariants::LABEL;
use crate::plan::{NETWORKS, Shape};

/// The cluster with all its nodes, as joins would have made them one after the other.
pub(crate) fn write_cluster(draft: &mut Draft, nodes: &[(NodeId, Role)]) {
    draft.put(Cluster::new(ClusterId::from_random(1)));
    draft.put(network(u64::MAX, &["10.255.0.0/16"]));
    // There is room for as many tasks as there are, and old addresses soon come back.
    draft.put(network(0, &["10.1.0.0/25"]));
    draft.put(network(1, &["10.2.0.0/24", "fd00:2::/64"]));
    for (id, role) in nodes {
        join(draft, *id, *role);
    }
}

fn network_id(number: u64) -> NetworkId {
    NetworkId::from_random(u128::from(number) + 1)
}

/// A network of the swarm; the last of all numbers is that of published ports.
fn network(number: u64, subnets: &[&str]) -> Network {
    let subnet = |text: &&str| {
        let subnet: ipnet::IpNet = text.parse().expect("a subnet");
        let gateway = subnet.hosts().next().expect("it has hosts");
        Subnet { subnet, range: None, gateway }
    };
    let is_ingress = number == u64::MAX;
    Network {
        id: network_id(number),
        meta: Meta::default(),
        spec: NetworkSpec { is_ingress, ..NetworkSpec::default() },
        vni: if is_ingress { 4_096 } else { 4_097 + u32::try_from(number).expect("few") },
        subnets: subnets.iter().map(subnet).collect(),
    }
}

/// Takes in a node, as its join does.
pub(crate) fn join(draft: &mut Draft, id: NodeId, role: Role) {
    if draft.node(id).is_some() {
        return;
    }
    draft.put(Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec { role, ..NodeSpec::default() },
        description: types::node::Description::default(),
        status: types::node::NodeStatus::default(),
        manager: None,
    });
}

/// Removes those of `nodes` that are not here.
pub(crate) fn remove_nodes(draft: &mut Draft, nodes: &[NodeId]) {
    for id in nodes {
        if draft.node(*id).is_some_and(|node| node.status.state != NodeState::Ready) {
            draft.delete(Key::Node(*id));
        }
    }
}

/// What a service is to be.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) shape: Shape,
    pub(crate) write: u64,
}

/// Creates or updates the service; answers with its identifier.
pub(crate) fn write_service(draft: &mut Draft, wanted: &Wanted, new_id: u128) -> ServiceId {
    let known = draft.service_by_name(&wanted.name).cloned();
    let mut spec = known.as_ref().map_or_else(ServiceSpec::default, |known| (*known.spec).clone());
    spec.annotations.name.clone_from(&wanted.name);
    spec.annotations.labels.insert(LABEL.into(), wanted.write.to_string());
    spec.mode = wanted.mode;
    spec.task.container.image = format!("image:{}", wanted.shape.image);
    let joined = (0..NETWORKS).filter(|number| (wanted.shape.networks >> number) & 1 == 1);
    let attachment =
        |number| Attachment { target: network_id(number).to_string(), ..Attachment::default() };
    spec.task.networks = joined.map(attachment).collect();
    let port = PortConfig { target: 80, ..PortConfig::default() };
    let ports = wanted.shape.is_published.then_some(port).into_iter().collect();
    spec.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
    let order = match wanted.shape.is_start_first {
        true => UpdateOrder::StartFirst,
        false => UpdateOrder::StopFirst,
    };
    spec.update = Some(UpdateConfig { order, ..UpdateConfig::default() });
    match known {
        Some(known) => {
            services::update(draft, &known, spec);
            known.id
        }
        None => {
            let id = ServiceId::from_random(new_id);
            services::create(draft, id, spec);
            id
        }
    }
}

/// Removes the service, if it is there.
pub(crate) fn remove_service(draft: &mut Draft, name: &str) -> Option<ServiceId> {
    let id = draft.service_by_name(name)?.id;
    draft.delete(Key::Service(id));
    Some(id)
}

pub(crate) fn set_availability(draft: &mut Draft, node: NodeId, availability: Availability) {
    let Some(known) = draft.node(node).cloned() else { return };
    if known.spec.availability != availability {
        draft.update_node(&known, |node| node.spec.availability = availability);
    }
}

/// Promotes or demotes, unless nobody would be left.
pub(crate) fn set_role(
    draft: &mut Draft,
    node: NodeId,
    role: Role,
    can_spare: impl Fn(u64) -> bool,
) {
    let Some(known) = draft.node(node).cloned() else { return };
    let managers = draft.nodes().filter(|node| node.spec.role == Role::Manager).count();
    let is_last = managers == 1 && known.spec.role == Role::Manager;
    let seat = known.manager.as_ref().map(|seat| seat.raft_id);
    let is_refused = role == Role::Worker && (is_last || seat.is_some_and(|seat| !can_spare(seat)));
    if !is_refused && known.spec.role != role {
        draft.update_node(&known, |node| node.spec.role = role);
    }
}

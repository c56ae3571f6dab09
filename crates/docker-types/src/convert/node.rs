//! Nodes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use types::node::{Availability, NodeSpec, NodeState, Reachability, Role, TlsInfo};
use types::{Annotations, Node};

use super::service::amounts_to_api;
use super::{Error, time, version, word, word_for};
use crate::node as api;
use crate::swarm;

const ROLES: &[(&str, Role)] = &[("worker", Role::Worker), ("manager", Role::Manager)];
const AVAILABILITIES: &[(&str, Availability)] = &[
    ("active", Availability::Active),
    ("pause", Availability::Pause),
    ("drain", Availability::Drain),
];
const STATES: &[(&str, NodeState)] = &[
    ("unknown", NodeState::Unknown),
    ("down", NodeState::Down),
    ("ready", NodeState::Ready),
    ("disconnected", NodeState::Disconnected),
];

const REACHABILITIES: &[(&str, Reachability)] = &[
    ("unknown", Reachability::Unknown),
    ("unreachable", Reachability::Unreachable),
    ("reachable", Reachability::Reachable),
];

/// What a client asks a node to be.
///
/// # Errors
/// An unknown role or availability.
pub fn spec_from_api(spec: api::NodeSpec) -> Result<NodeSpec, Error> {
    if spec.role.is_empty() {
        return Err(Error::Unknown { what: "Role", value: spec.role });
    }
    Ok(NodeSpec {
        annotations: Annotations { name: spec.name, labels: spec.labels.unwrap_or_default() },
        role: word("Role", &spec.role, ROLES)?,
        availability: availability(&spec.availability)?,
    })
}

/// `active`, `pause` or `drain`; the empty text is `active`.
///
/// # Errors
/// Any other word.
pub fn availability(text: &str) -> Result<Availability, Error> {
    word("Availability", text, AVAILABILITIES)
}

/// A node as the API shows it; `leader` is the raft identifier of the leader.
pub fn node_to_api(node: &Node, leader: u64) -> api::Node {
    let description = &node.description;
    api::Node {
        id: node.id.to_string(),
        version: version(&node.meta),
        created_at: time(node.meta.created_at),
        updated_at: time(node.meta.updated_at),
        spec: api::NodeSpec {
            name: node.spec.annotations.name.clone(),
            labels: Some(node.spec.annotations.labels.clone()),
            role: word_for(&node.spec.role, ROLES),
            availability: word_for(&node.spec.availability, AVAILABILITIES),
        },
        description: api::NodeDescription {
            hostname: description.hostname.clone(),
            platform: crate::service::Platform {
                architecture: description.platform.architecture.clone(),
                os: description.platform.os.clone(),
            },
            resources: amounts_to_api(&description.resources),
            engine: api::EngineDescription {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: description
                    .plugins
                    .iter()
                    .map(|(kind, name)| api::PluginDescription {
                        r#type: kind.clone(),
                        name: name.clone(),
                    })
                    .collect(),
            },
            tls_info: tls_to_api(&description.tls),
        },
        status: api::NodeStatus {
            state: word_for(&node.status.state, STATES),
            message: node.status.message.clone(),
            addr: node.status.address.clone(),
        },
        manager_status: node.manager.as_ref().map(|manager| api::ManagerStatus {
            leader: manager.raft_id == leader,
            reachability: word_for(&manager.reachability, REACHABILITIES),
            addr: manager.address.clone(),
        }),
    }
}

/// Certificates as the API shows them: base64 of DER.
pub fn tls_to_api(tls: &TlsInfo) -> swarm::TlsInfo {
    swarm::TlsInfo {
        trust_root: tls.trust_root.clone(),
        cert_issuer_subject: STANDARD.encode(&tls.issuer_subject),
        cert_issuer_public_key: STANDARD.encode(&tls.issuer_public_key),
    }
}

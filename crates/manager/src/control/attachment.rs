//! Plain containers in networks of the cluster: a node asks for their places, and gives them back.
//!
//! What a node holds is its own to say: it tells all of it when it comes, so that nothing stays of containers that ended
//! while nobody was there to be told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use planner::{NoPlace, choose_for_container};
use serde::{Deserialize, Serialize};
use store::{Draft, Key, Snapshot};
use types::id::ID_DIGITS;
use types::limits::ATTACHMENTS_PER_NODE_MAX;
use types::{ContainerAttachment, Meta, Network, NetworkId, NodeId, TaskId};

use super::request::{Request, Response};
use crate::Manager;
use crate::error::{Code, Error};
use crate::writer::Writer;

/// Longest name or alias of a container, and most aliases: they go to every node of the network.
const NAME_BYTES_MAX: usize = 253;
const ALIASES_MAX: usize = 64;

/// A container that is to be in a network, or is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Name, identifier, or the beginning of one.
    pub network: String,
    pub container: String,
    pub name: String,
    pub aliases: Vec<String>,
    /// Without one, a free one is given.
    pub address: Option<IpAddr>,
}

/// A container's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub id: TaskId,
    pub network: NetworkId,
    pub name: String,
    pub is_internal: bool,
    pub addresses: Vec<IpNet>,
}

impl Manager {
    /// Gives a container of `node` a place in a network.
    ///
    /// # Errors
    /// In Docker's words: no such network, or one that is not for plain containers; in ours, an address that cannot be had.
    pub async fn attach(&self, node: NodeId, claim: Claim) -> Result<Attached, Error> {
        match self.ask(Request::Attach { node, claim }).await? {
            Response::Attached(attached) => Ok(*attached),
            _ => Err(Error::unexpected_answer()),
        }
    }

    /// Takes a place back. Nothing happens where there is none.
    ///
    /// # Errors
    /// When there is no leader.
    pub async fn detach(
        &self,
        node: NodeId,
        network: NetworkId,
        container: String,
    ) -> Result<(), Error> {
        self.tell(Request::Detach { node, network, container }).await
    }

    /// Takes note that these are all the containers that `node` has in networks, by these names. Places of others are taken
    /// back; one that is not known, as after a restored backup, is written down if its address is free.
    ///
    /// # Errors
    /// When there is no leader.
    pub async fn hold(&self, node: NodeId, claims: Vec<Claim>) -> Result<(), Error> {
        self.tell(Request::Hold { node, claims }).await
    }
}

pub(super) async fn attach(writer: &Writer, node: NodeId, claim: Claim) -> Result<Attached, Error> {
    let id = TaskId::from_random(rand::random());
    writer.write(|draft| write(draft, id, node, claim)).await
}

fn write(draft: &mut Draft, id: TaskId, node: NodeId, claim: Claim) -> Result<Attached, Error> {
    let network = find(draft, &claim.network)?;
    if !network.spec.is_attachable || network.spec.is_ingress {
        let desc = format!("network {} not manually attachable", network.name());
        return Err(Error::new(Code::PermissionDenied, desc));
    }
    check(draft, node, &claim)?;
    let known = of_container(draft, node, network.id, &claim.container);
    if let Some(known) = known {
        let has_it = |address| known.addresses.iter().any(|given| given.addr() == address);
        if claim.address.is_none_or(has_it) || network.spec.is_of_each_node() {
            if !is_named_so(&known, &claim) {
                let Claim { name, aliases, .. } = claim;
                draft.put(ContainerAttachment {
                    name,
                    aliases,
                    ..ContainerAttachment::clone(&known)
                });
            }
            return Ok(attached(&known, &network));
        }
        draft.delete(Key::Attachment(known.id));
    }
    // The node itself gives the address of a network that it has for itself.
    let wanted = claim.address.filter(|_| !network.spec.is_of_each_node());
    let addresses = choose_for_container(draft, &network, id.bits(), wanted);
    let addresses = addresses.map_err(|refusal| match refusal {
        NoPlace::Outside { .. } => Error::invalid(refusal.to_string()),
        _ => Error::new(Code::FailedPrecondition, refusal.to_string()),
    })?;
    let Claim { container, name, aliases, .. } = claim;
    let meta = Meta::default();
    let attachment = ContainerAttachment {
        id,
        meta,
        node,
        network: network.id,
        container,
        name,
        aliases,
        addresses,
    };
    let answer = attached(&attachment, &network);
    draft.put(attachment);
    Ok(answer)
}

pub(super) async fn detach(
    writer: &Writer,
    node: NodeId,
    network: NetworkId,
    container: &str,
) -> Result<(), Error> {
    let change = |draft: &mut Draft| {
        if let Some(known) = of_container(draft, node, network, container) {
            draft.delete(Key::Attachment(known.id));
        }
        Ok(())
    };
    writer.write(change).await
}

pub(super) async fn hold(writer: &Writer, node: NodeId, claims: Vec<Claim>) -> Result<(), Error> {
    let snapshot = writer.consensus().snapshot();
    if stale(&snapshot, node, &claims).is_empty() && missing(&snapshot, node, &claims).is_empty() {
        return Ok(());
    }
    let change = |draft: &mut Draft| {
        for id in stale(draft, node, &claims) {
            draft.delete(Key::Attachment(id));
        }
        for claim in missing(draft, node, &claims) {
            // A place that cannot be had again is no reason to forget the others.
            let _ = write(draft, TaskId::from_random(rand::random()), node, claim);
        }
        Ok(())
    };
    writer.write(change).await
}

/// Takes back what a node that is gone had.
pub(crate) fn forget_node(draft: &mut Draft, node: NodeId) {
    let held: Vec<_> = draft.attachments_on(node).map(|attachment| attachment.id).collect();
    for id in held {
        draft.delete(Key::Attachment(id));
    }
}

/// What is written down of the node's containers and not among its claims.
fn stale(snapshot: &Snapshot, node: NodeId, claims: &[Claim]) -> Vec<TaskId> {
    let claimed: BTreeSet<_> =
        claims.iter().map(|claim| (claim.network.as_str(), claim.container.as_str())).collect();
    let is_stale = |attachment: &&Arc<ContainerAttachment>| {
        let network = attachment.network.to_string();
        !claimed.contains(&(network.as_str(), attachment.container.as_str()))
    };
    snapshot.attachments_on(node).filter(is_stale).map(|attachment| attachment.id).collect()
}

/// Whether what is written down of a container has its names.
fn is_named_so(known: &ContainerAttachment, claim: &Claim) -> bool {
    known.name == claim.name && known.aliases == claim.aliases
}

/// The claims of which nothing is written down, or other names, though their networks are there.
fn missing(snapshot: &Snapshot, node: NodeId, claims: &[Claim]) -> Vec<Claim> {
    let is_missing = |claim: &&Claim| {
        let network = claim.network.parse().ok().and_then(|id| snapshot.network(id));
        network.is_some_and(|network| {
            let known = of_container(snapshot, node, network.id, &claim.container);
            !known.is_some_and(|known| is_named_so(&known, claim))
        })
    };
    claims.iter().filter(is_missing).cloned().collect()
}

fn of_container(
    snapshot: &Snapshot,
    node: NodeId,
    network: NetworkId,
    container: &str,
) -> Option<Arc<ContainerAttachment>> {
    let is_it = |attachment: &&Arc<ContainerAttachment>| {
        attachment.network == network && attachment.container == container
    };
    snapshot.attachments_on(node).find(is_it).cloned()
}

fn find(snapshot: &Snapshot, name: &str) -> Result<Arc<Network>, Error> {
    let by_id = if name.len() == ID_DIGITS { name.parse().ok() } else { None };
    let exact = by_id.and_then(|id| snapshot.network(id)).or(snapshot.network_by_name(name));
    if let Some(network) = exact {
        return Ok(network.clone());
    }
    let mut begun = snapshot
        .networks()
        .filter(|network| !name.is_empty() && network.id.to_string().starts_with(name));
    match (begun.next(), begun.next()) {
        (Some(network), None) => Ok(network.clone()),
        _ => Err(Error::plain(Code::NotFound, format!("network {name} not found"))),
    }
}

fn check(snapshot: &Snapshot, node: NodeId, claim: &Claim) -> Result<(), Error> {
    if snapshot.node(node).is_none() {
        return Err(Error::new(Code::NotFound, format!("node {node} not found")));
    }
    let names = claim.aliases.iter().chain([&claim.name, &claim.container]);
    let is_long = |name: &String| name.len() > NAME_BYTES_MAX;
    if { names }.any(is_long) || claim.aliases.len() > ALIASES_MAX {
        return Err(Error::invalid(format!(
            "a container has at most {ALIASES_MAX} aliases of {NAME_BYTES_MAX} characters"
        )));
    }
    if snapshot.attachments_on(node).count() >= ATTACHMENTS_PER_NODE_MAX {
        return Err(Error::new(
            Code::FailedPrecondition,
            format!(
                "node {node} has {ATTACHMENTS_PER_NODE_MAX} containers in networks of the swarm, as many as it may have"
            ),
        ));
    }
    Ok(())
}

fn attached(attachment: &ContainerAttachment, network: &Network) -> Attached {
    Attached {
        id: attachment.id,
        network: network.id,
        name: network.name().to_owned(),
        is_internal: network.spec.is_internal,
        addresses: attachment.addresses.clone(),
    }
}

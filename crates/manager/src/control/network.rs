//! Networks: creating and removing them, and what services say of them.

use std::sync::Arc;

use planner::subnets::{Refusal, choose_subnets, choose_vni};
use store::{Draft, Key, Snapshot};
use types::endpoint::PublishMode;
use types::network::{Attachment, Network, NetworkSpec};
use types::{Meta, NetworkId, ServiceSpec};

use super::validate;
use crate::Manager;
use crate::control::request::{Request, Response};
use crate::error::{Code, Error};
use crate::writer::Writer;

/// Networks that every node has for itself: a service names them, and nothing of the cluster is behind them.
const OF_EACH_NODE: [&str; 3] = ["bridge", "host", "none"];

/// The network of published ports, which every swarm begins with.
pub(crate) const INGRESS: &str = "ingress";

impl Manager {
    /// Makes a network of the cluster.
    ///
    /// # Errors
    /// A name that is taken or no name, subnets that overlap or are used up.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, Error> {
        match self.ask(Request::CreateNetwork(Box::new(spec))).await? {
            Response::NetworkCreated(id) => Ok(id),
            _ => Err(Error::unexpected_answer()),
        }
    }

    /// Removes a network.
    ///
    /// # Errors
    /// When there is none, or a service or task uses it.
    pub async fn remove_network(&self, id: NetworkId) -> Result<(), Error> {
        self.tell(Request::RemoveNetwork(id)).await
    }
}

pub(super) async fn create(writer: &Writer, spec: NetworkSpec) -> Result<NetworkId, Error> {
    validate::annotations(&spec.annotations)?;
    check_driver(&spec)?;
    if spec.is_ingress && spec.is_attachable {
        return Err(Error::invalid("ingress network cannot be attachable"));
    }
    refuse_ipv6_in_ingress(&spec)?;
    let id = NetworkId::from_random(rand::random());
    writer.write(|draft| write(draft, id, spec)).await?;
    Ok(id)
}

/// What networks that each node has for itself cannot be.
fn check_driver(spec: &NetworkSpec) -> Result<(), Error> {
    match spec.driver() {
        types::network::OVERLAY if spec.config_from.is_empty() => return Ok(()),
        types::network::OVERLAY => {
            return Err(Error::invalid(
                "an overlay takes no configuration of nodes: it is the same on all of them",
            ));
        }
        "bridge" => {}
        "host" if spec.is_attachable => {
            return Err(Error::invalid(
                "a network with driver host cannot be attachable: plain containers use --network host",
            ));
        }
        "host" => {}
        driver @ ("macvlan" | "ipvlan") => {
            return Err(Error::invalid(format!(
                "driver {driver} is not there: tasks that need the hosts' own wire use driver host, others driver bridge or overlay"
            )));
        }
        driver => {
            return Err(Error::invalid(format!(
                "driver {driver} makes no network of a swarm; use overlay, bridge or host"
            )));
        }
    }
    match spec.is_ingress {
        true => Err(Error::invalid("an ingress network needs driver overlay")),
        false => Ok(()),
    }
}

/// Published ports answer over IPv6 under addresses that follow from those of IPv4.
fn refuse_ipv6_in_ingress(spec: &NetworkSpec) -> Result<(), Error> {
    let is_ipv6 = spec.is_ipv6
        || spec.subnets.iter().filter_map(|it| it.subnet).any(|it| it.addr().is_ipv6());
    if spec.is_ingress && is_ipv6 {
        let text =
            "an ingress network has no IPv6 of its own: published ports answer over IPv6 without";
        return Err(Error::invalid(text));
    }
    Ok(())
}

/// Writes a network, with its subnets and its number.
pub(crate) fn write(draft: &mut Draft, id: NetworkId, spec: NetworkSpec) -> Result<(), Error> {
    let name = &spec.annotations.name;
    let is_taken = OF_EACH_NODE.contains(&name.as_str()) || draft.network_by_name(name).is_some();
    if is_taken {
        return Err(Error::plain(
            Code::AlreadyExists,
            format!("network with name {name} already exists"),
        ));
    }
    let ingress = draft.networks().find(|network| network.spec.is_ingress).cloned();
    if let Some(ingress) = ingress.filter(|_| spec.is_ingress) {
        let desc = format!("ingress network ({}) is already present", ingress.id);
        return Err(Error::new(Code::AlreadyExists, desc));
    }
    let refused = |refusal: Refusal| Error::invalid(refusal.to_string());
    let (vni, subnets) = match spec.is_of_each_node() {
        true => (0, Vec::new()),
        false => {
            (choose_vni(draft).map_err(refused)?, choose_subnets(draft, &spec).map_err(refused)?)
        }
    };
    draft.put(Network { id, meta: Meta::default(), spec, vni, subnets });
    Ok(())
}

/// Writes the network that every swarm begins with.
pub(crate) fn write_ingress(draft: &mut Draft) -> Result<(), Error> {
    let annotations = types::Annotations { name: INGRESS.into(), ..Default::default() };
    let spec = NetworkSpec { annotations, is_ingress: true, ..NetworkSpec::default() };
    write(draft, NetworkId::from_random(rand::random()), spec)
}

pub(super) async fn remove(writer: &Writer, id: NetworkId) -> Result<(), Error> {
    let change = |draft: &mut Draft| {
        let network = draft.network(id).cloned().ok_or_else(|| not_found(&id.to_string()))?;
        if network.spec.is_ingress {
            let publishing = draft.services().find(|service| publishes(&service.spec));
            if let Some(service) = publishing {
                let id = service.id;
                let desc =
                    format!("ingress network cannot be removed because service {id} depends on it");
                return Err(Error::new(Code::FailedPrecondition, desc));
            }
        } else if let Some(user) = user_of(draft, &network) {
            let desc = format!("network {id} is in use by {user}");
            return Err(Error::new(Code::FailedPrecondition, desc));
        }
        draft.delete(Key::Network(id));
        Ok(())
    };
    writer.write(change).await
}

/// Whether every node is to answer for the service.
pub(super) fn publishes(spec: &ServiceSpec) -> bool {
    let mut ports = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    ports.any(|port| port.mode == PublishMode::Ingress)
}

/// A service or task that a network is kept for.
fn user_of(draft: &Draft, network: &Network) -> Option<String> {
    let joins = |named: &Attachment| named.target.parse() == Ok(network.id);
    let service = draft.services().find(|service| service.spec.task.networks.iter().any(joins));
    if let Some(service) = service {
        return Some(format!("service {}", service.id));
    }
    let is_in = |task: &&Arc<types::Task>| {
        !task.status.state.is_terminal()
            && task.networks.iter().any(|place| place.network == network.id)
    };
    let task = draft.tasks().find(is_in).map(|task| task.id);
    let container = || {
        let mut attached = draft.attachments();
        attached.find(|attachment| attachment.network == network.id).map(|found| found.id)
    };
    // Docker has a task for each container that is in a network.
    task.or_else(container).map(|id| format!("task {id}"))
}

/// Names each network of the service by its identifier, so that the name may go to another one later.
///
/// # Errors
/// A network that is not there, or not one for services.
pub(super) fn resolve(snapshot: &Snapshot, spec: &mut ServiceSpec) -> Result<(), Error> {
    if spec.task.networks.is_empty() {
        spec.task.networks = std::mem::take(&mut spec.networks);
    }
    for named in &mut spec.task.networks {
        if OF_EACH_NODE.contains(&named.target.as_str()) {
            continue;
        }
        let by_id = named.target.parse().ok().and_then(|id| snapshot.network(id));
        let network = by_id.or_else(|| snapshot.network_by_name(&named.target));
        let network = network.ok_or_else(|| not_found(&named.target))?;
        if network.spec.is_ingress {
            return Err(Error::invalid(format!(
                "Service cannot be explicitly attached to the ingress network \"{}\"",
                network.name()
            )));
        }
        named.target = network.id.to_string();
    }
    Ok(())
}

fn not_found(name: &str) -> Error {
    Error::plain(Code::NotFound, format!("network {name} not found"))
}

//! Tells `docker events` what changes in the swarm.

use std::collections::BTreeMap;

use engine::events::Events;
use manager::Changes;
use store::{Event, Object};
use types::node::{Availability, NodeState, Role};
use types::service::Mode;
use types::{Node, Service};

/// Publishes every change until the manager stops.
pub(crate) async fn follow(mut changes: Changes, events: Events) {
    while let Some(batch) = changes.next().await {
        for event in batch.iter() {
            publish(&events, event);
        }
    }
}

fn publish(events: &Events, event: &Event) {
    match (&event.before, &event.after) {
        (None, Some(Object::Service(service))) => {
            let attributes = named(service.name());
            events.publish_scoped(
                "swarm",
                "service",
                "create",
                &service.id.to_string(),
                attributes,
            );
        }
        (Some(Object::Service(before)), Some(Object::Service(after))) => {
            let attributes = service_changes(before, after);
            events.publish_scoped("swarm", "service", "update", &after.id.to_string(), attributes);
        }
        (Some(Object::Service(service)), None) => {
            let attributes = named(service.name());
            events.publish_scoped(
                "swarm",
                "service",
                "remove",
                &service.id.to_string(),
                attributes,
            );
        }
        (None, Some(Object::Node(node))) => {
            let attributes = named(node.name());
            events.publish_scoped("swarm", "node", "create", &node.id.to_string(), attributes);
        }
        (Some(Object::Node(before)), Some(Object::Node(after))) => {
            let attributes = node_changes(before, after);
            events.publish_scoped("swarm", "node", "update", &after.id.to_string(), attributes);
        }
        (Some(Object::Node(node)), None) => {
            let attributes = named(node.name());
            events.publish_scoped("swarm", "node", "remove", &node.id.to_string(), attributes);
        }
        (before, after) => publish_network(events, before.as_ref(), after.as_ref()),
    }
}

fn publish_network(events: &Events, before: Option<&Object>, after: Option<&Object>) {
    let (network, action) = match (before, after) {
        (None, Some(Object::Network(network))) => (network, "create"),
        (Some(_), Some(Object::Network(network))) => (network, "update"),
        (Some(Object::Network(network)), None) => (network, "remove"),
        _ => return,
    };
    let attributes = named(network.name());
    events.publish_scoped("swarm", "network", action, &network.id.to_string(), attributes);
}

fn named(name: &str) -> BTreeMap<String, String> {
    [("name".to_owned(), name.to_owned())].into()
}

/// Adds `key.new` and `key.old` where they differ.
fn note(attributes: &mut BTreeMap<String, String>, key: &str, old: &str, new: &str) {
    if old != new {
        attributes.insert(format!("{key}.new"), new.to_owned());
        attributes.insert(format!("{key}.old"), old.to_owned());
    }
}

fn service_changes(before: &Service, after: &Service) -> BTreeMap<String, String> {
    let mut attributes = named(after.name());
    let image = |service: &Service| service.spec.task.container.image.clone();
    let replicas = |service: &Service| match service.spec.mode {
        Mode::Replicated { replicas } => replicas.to_string(),
        _ => String::new(),
    };
    let state = |service: &Service| {
        let status = service.update_status.as_ref();
        status.map_or(String::new(), |status| {
            docker_types::convert::service::update_state(status.state)
        })
    };
    note(&mut attributes, "image", &image(before), &image(after));
    note(&mut attributes, "replicas", &replicas(before), &replicas(after));
    note(&mut attributes, "updatestate", &state(before), &state(after));
    attributes
}

fn node_changes(before: &Node, after: &Node) -> BTreeMap<String, String> {
    let mut attributes = named(after.name());
    let state = |node: &Node| match node.status.state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    };
    let availability = |node: &Node| match node.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = |node: &Node| match node.spec.role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    };
    note(&mut attributes, "state", state(before), state(after));
    note(&mut attributes, "availability", availability(before), availability(after));
    note(&mut attributes, "role", role(before), role(after));
    attributes
}

//! Gives services the ports they did not choose themselves.

use std::collections::BTreeMap;

use store::{Draft, Event, Object};
use types::endpoint::{EndpointSpec, PortConfig, Protocol, PublishMode};
use types::limits::DYNAMIC_PORTS;
use types::{Service, ServiceId};

/// Which service answers on which ingress port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortsInUse {
    owners: BTreeMap<(Protocol, u16), ServiceId>,
}

impl PortsInUse {
    pub(crate) fn observe(&mut self, id: ServiceId, event: &Event) {
        if let Some(Object::Service(before)) = &event.before {
            for key in ingress_ports(before) {
                if self.owners.get(&key) == Some(&id) {
                    self.owners.remove(&key);
                }
            }
        }
        if let Some(Object::Service(after)) = &event.after {
            self.owners.extend(ingress_ports(after).map(|key| (key, id)));
        }
    }

    fn is_free(&self, key: (Protocol, u16), for_service: ServiceId) -> bool {
        self.owners.get(&key).is_none_or(|owner| *owner == for_service)
    }
}

fn ingress_ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let ports = service.endpoint.ports.iter();
    ports
        .filter(|port| port.mode == PublishMode::Ingress && port.published != 0)
        .map(|port| (port.protocol, port.published))
}

/// Brings the service's endpoint in line with its spec. A port once given stays.
pub(crate) fn allocate_ports(
    draft: &mut Draft,
    used: &PortsInUse,
    service: &std::sync::Arc<Service>,
) {
    let wanted = service.spec.endpoint.clone().unwrap_or_default();
    let settled = service.endpoint.spec == wanted
        && service.endpoint.ports.len() == wanted.ports.len()
        && service.endpoint.ports.iter().all(|port| !is_dynamic(port));
    if settled {
        return;
    }
    let ports = assign(&wanted, used, service);
    draft.update_service(service, |service| {
        service.endpoint.ports = ports;
        service.endpoint.spec = wanted;
    });
}

/// Whether the port still waits for a number. Host ports get theirs on the node.
fn is_dynamic(port: &PortConfig) -> bool {
    port.published == 0 && port.mode == PublishMode::Ingress
}

fn assign(wanted: &EndpointSpec, used: &PortsInUse, service: &Service) -> Vec<PortConfig> {
    let mut ports = wanted.ports.clone();
    for index in 0..ports.len() {
        if !is_dynamic(&ports[index]) {
            continue;
        }
        let port = &ports[index];
        let taken = |number: u16| {
            !used.is_free((port.protocol, number), service.id)
                || ports.iter().any(|other| {
                    other.protocol == port.protocol
                        && other.published == number
                        && other.mode == PublishMode::Ingress
                })
        };
        let kept = service.endpoint.ports.iter().find(|old| {
            old.target == port.target
                && old.protocol == port.protocol
                && old.mode == port.mode
                && DYNAMIC_PORTS.contains(&old.published)
                && !taken(old.published)
        });
        let number =
            kept.map(|old| old.published).or_else(|| DYNAMIC_PORTS.clone().find(|n| !taken(*n)));
        // An exhausted range leaves the port at 0; it is tried again when the service changes.
        ports[index].published = number.unwrap_or(0);
    }
    ports
}

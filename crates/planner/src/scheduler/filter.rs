//! Reasons for which a node cannot run a task, in the order in which they are asked.

use std::collections::BTreeMap;
use std::fmt;

use types::Node;
use types::node::Platform;

use super::Group;
use crate::constraint::normal_architecture;
use crate::load::{Load, reservations};

/// Why a node was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    NotAvailable,
    Resources,
    Constraints,
    Platform,
    HostPort,
    MaxReplicas,
}

/// The first reason for which `node` cannot run a task of this group.
pub(super) fn refusal(node: &Node, load: &Load, group: &Group) -> Option<Refusal> {
    let template = &group.template;
    let placement = template.task.placement.as_ref();
    let has_room =
        reservations(template).is_none_or(|wanted| load.fits(&node.description.resources, wanted));
    let constraints_hold = group.constraints.iter().all(|constraint| constraint.allows(node));
    let platforms = placement.map_or(&[][..], |placement| &placement.platforms);
    let port_free = template
        .host_ports
        .iter()
        .all(|port| port.published == 0 || !load.has_port(port.protocol, port.published));
    let max_replicas = placement.map_or(0, |placement| placement.max_replicas);
    let checks = [
        (node.accepts_tasks(), Refusal::NotAvailable),
        (has_room, Refusal::Resources),
        (constraints_hold, Refusal::Constraints),
        (supports(platforms, &node.description.platform), Refusal::Platform),
        (port_free, Refusal::HostPort),
        (max_replicas == 0 || load.tasks_of(template.service) < max_replicas, Refusal::MaxReplicas),
    ];
    checks.into_iter().find(|(passes, _)| !passes).map(|(_, refusal)| refusal)
}

fn supports(wanted: &[Platform], has: &Platform) -> bool {
    let same = |wanted: &Platform| {
        let os = wanted.os.is_empty() || wanted.os == has.os;
        let architecture = wanted.architecture.is_empty()
            || normal_architecture(&wanted.architecture) == normal_architecture(&has.architecture);
        os && architecture
    };
    wanted.is_empty() || wanted.iter().any(same)
}

/// How many nodes were passed over for which reason; displays as Docker words it.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: BTreeMap<Refusal, usize>,
}

impl Refusals {
    pub(super) fn note(&mut self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            *self.counts.entry(refusal).or_default() += 1;
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no suitable node")?;
        if self.counts.is_empty() {
            return Ok(());
        }
        let mut reasons: Vec<_> = self.counts.iter().collect();
        reasons.sort_by_key(|(refusal, count)| (std::cmp::Reverse(**count), **refusal));
        let texts: Vec<_> =
            reasons.into_iter().map(|(refusal, count)| text(*refusal, *count)).collect();
        write!(f, " ({})", texts.join("; "))
    }
}

fn text(refusal: Refusal, count: usize) -> String {
    let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    match refusal {
        Refusal::NotAvailable => format!("{nodes} not available for new tasks"),
        Refusal::Resources => format!("insufficient resources on {nodes}"),
        Refusal::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
        Refusal::Platform => format!("unsupported platform on {nodes}"),
        Refusal::HostPort => format!("host-mode port already in use on {nodes}"),
        Refusal::MaxReplicas => "max replicas per node limit exceed".to_owned(),
    }
}

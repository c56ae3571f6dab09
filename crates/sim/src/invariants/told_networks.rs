//! After the last fault each node knows of the networks it is in what the store says of them, and of no others (issue texts on
//! stale endpoints).

use store::Snapshot;
use types::NodeId;

use crate::told::Told;

pub(crate) fn check(state: &Snapshot, nodes: &[(NodeId, &Told)]) -> Result<(), String> {
    for (node, told) in nodes {
        let mut wanted = Told::default();
        for id in dispatcher::networks_of(state, *node) {
            if let Some(whole) = dispatcher::network_as_seen(state, id) {
                wanted.change(whole);
            }
        }
        let differences = told.differences(&wanted);
        if !differences.is_empty() {
            let differences = differences.join("; ");
            return Err(format!("node {node} knows otherwise than it should: {differences}"));
        }
    }
    Ok(())
}

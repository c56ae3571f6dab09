//! Cluster networks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Annotations, Meta, NetworkId};

/// Which network a task joins, and under which names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Name or identifier of the network.
    pub target: String,
    pub aliases: Vec<String>,
    pub driver_options: BTreeMap<String, String>,
}

/// A network of the cluster, or a node-local one that services may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    #[serde(default)]
    pub meta: Meta,
    pub annotations: Annotations,
    pub driver: String,
}

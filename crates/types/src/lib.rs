//! Objects of a cluster, their specs, identifiers, task states and limits.
//!
//! Nothing here knows a clock, a socket or a file; time and randomness come in as arguments.

pub mod assignment;
pub mod cluster;
pub mod container;
pub mod endpoint;
pub mod id;
pub mod limits;
pub mod meta;
pub mod network;
pub mod node;
mod peers;
pub mod resources;
pub mod secret;
pub mod service;
pub mod task;
pub mod time;

pub use cluster::{Cluster, ClusterSpec};
pub use container::ContainerSpec;
pub use id::{ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};
pub use meta::{Annotations, Meta};
pub use network::{ContainerAttachment, Network};
pub use node::Node;
pub use peers::Peers;
pub use secret::{Config, Secret};
pub use service::{Service, ServiceSpec, TaskSpec, TaskTemplate};
pub use task::{Task, TaskState, TaskStatus};
pub use time::Timestamp;

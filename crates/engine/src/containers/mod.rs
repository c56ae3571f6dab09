//! Containers: from the request to the running process and its end.

mod cgroup;
mod invalid;
mod merge;
mod mounts;
mod record;
mod signal;
mod status;
mod validate;

pub use invalid::{Invalid, MountFault};
pub use status::{HealthState, Phase, Status};

pub(crate) use mounts::check_volume_name;

//! What every route can reach.

use std::sync::Arc;

use engine::Engine;

/// The daemon's parts behind the API. Cheap to clone; each request gets one.
#[derive(Clone, Debug)]
pub struct ApiState {
    pub engine: Arc<Engine>,
}

impl ApiState {
    /// The `Swarm` header of `/_ping`: what this node is to its swarm.
    pub(crate) fn swarm_status(&self) -> &'static str {
        "inactive"
    }
}

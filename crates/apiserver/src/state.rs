//! What every route can reach.

use std::sync::Arc;

use engine::Engine;

use crate::swarm::Swarm;

/// The daemon's parts behind the API. Cheap to clone; each request gets one.
#[derive(Clone, Debug)]
pub struct ApiState {
    pub engine: Arc<Engine>,
    /// This node's place in its swarm.
    pub swarm: Arc<dyn Swarm>,
}

impl ApiState {
    /// The `Swarm` header of `/_ping`: what this node is to its swarm.
    pub(crate) fn swarm_status(&self) -> &'static str {
        self.swarm.status()
    }
}

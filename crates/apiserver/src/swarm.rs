//! What routes need of this node's place in a swarm. The node itself implements it.

use std::fmt::Debug;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;

use docker_types::swarm::{InitRequest, JoinRequest, SwarmInfo};
use manager::Manager;
use types::NodeId;

use crate::error::ApiError;

/// An answer that takes its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// This node's membership.
pub trait Swarm: Debug + Send + Sync {
    /// The control plane.
    ///
    /// # Errors
    /// 503 in Docker's words, where this node is not an active manager.
    fn manager(&self) -> Result<Arc<Manager>, ApiError>;

    /// This node's identifier, while it is in a swarm.
    fn node_id(&self) -> Option<NodeId>;

    /// The word of `/_ping`'s `Swarm` header: `inactive`, `pending`, `error`, `locked`, `active/worker` or
    /// `active/manager`.
    fn status(&self) -> &'static str;

    /// What on this host is in the node's way.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The `Swarm` part of `/info`.
    fn info(&self) -> SwarmInfo;

    /// Makes a new swarm with this node as its manager; answers with the node's identifier.
    fn init(self: Arc<Self>, request: InitRequest) -> Answer<'static, NodeId>;

    /// Joins a swarm.
    fn join(self: Arc<Self>, request: JoinRequest) -> Answer<'static, ()>;

    /// Unlocks a manager with the swarm's unlock key.
    fn unlock(self: Arc<Self>, key: String) -> Answer<'static, ()>;

    /// Brings a lost swarm back from its backup, with this node as its manager; answers with the node's identifier.
    /// Of `place` only addresses and availability count. `file` is read on a thread that may block.
    fn restore(
        self: Arc<Self>,
        place: InitRequest,
        key: [u8; 32],
        file: Box<dyn Read + Send>,
    ) -> Answer<'static, NodeId>;

    /// Leaves the swarm and forgets it.
    fn leave(self: Arc<Self>, force: bool) -> Answer<'static, ()>;
}

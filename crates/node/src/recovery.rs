//! A swarm after a disaster: from what one manager still knows, or from a backup.

use std::io::Read;
use std::sync::Arc;

use apiserver::ApiError;
use consensus::DataKey;
use docker_types::swarm::InitRequest;
use manager::{Manager, Restore};
use types::NodeId;

use crate::address::{self, Addresses};
use crate::lock::LOCKED;
use crate::membership::{
    ALREADY_IN_SWARM, Membership, NOT_A_MANAGER, NOT_IN_SWARM, WORKER, availability, unavailable,
};
use crate::state::State;

impl Membership {
    /// Goes on as the only manager, with everything this one knows.
    pub(crate) async fn force_new_cluster(self: &Arc<Self>) -> Result<NodeId, ApiError> {
        let state = self.state().ok_or_else(|| unavailable(NOT_IN_SWARM))?;
        let raft_id = state.raft_id.ok_or_else(|| unavailable(WORKER))?;
        self.close().await;
        let config = self.files.consensus(raft_id).map_err(ApiError::internal)?;
        let force = move || consensus::Consensus::force_alone(&config);
        let forced = tokio::task::spawn_blocking(force).await;
        let forced = forced.map_err(ApiError::internal)?;
        forced.map_err(ApiError::internal)?;
        let node = state.node;
        self.activate(state, None).await.map_err(ApiError::internal)?;
        let manager = self.running_manager().ok_or_else(|| unavailable(NOT_A_MANAGER))?;
        manager.dismiss_others(node).await?;
        Ok(node)
    }

    /// Begins a swarm with everything that is in the backup.
    pub(crate) async fn restore_now(
        self: &Arc<Self>,
        place: InitRequest,
        key: DataKey,
        file: Box<dyn Read + Send>,
    ) -> Result<NodeId, ApiError> {
        let _changing = self.changing.lock().await;
        if self.is_locked() {
            return Err(unavailable(LOCKED));
        }
        if self.is_active() {
            return Err(unavailable(ALREADY_IN_SWARM));
        }
        let Addresses { host, advertised, listen } = address::resolve(
            &place.advertise_addr,
            &place.listen_addr,
            self.engine.network.bridge(),
        )?;
        let availability = availability(&place.availability)?;
        let read = move || consensus::read_backup(file, &key);
        let read = tokio::task::spawn_blocking(read).await.map_err(ApiError::internal)?;
        let backup = read.map_err(|error| ApiError::bad_request(error.to_string()))?;
        let unlock_key = backup.cluster().and_then(|cluster| cluster.unlock_key.clone());
        let (key, request) = ca::new_request().map_err(ApiError::internal)?;
        let (node, raft_id) =
            (NodeId::from_random(rand::random()), rand::random_range(1..=u64::MAX));
        let state = State {
            node,
            raft_id: None,
            address: host,
            advertised: advertised.clone(),
            listen,
            managers: Vec::new(),
        };
        let restore = Restore { node, raft_id, address: advertised, request, availability };
        let make = |config| async move { Manager::restore(&config, backup, restore).await };
        self.begin(state, raft_id, key, unlock_key, make).await
    }
}

//! Autolock: a manager's keys are locked with the swarm's unlock key, and a locked manager waits for it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use apiserver::{ApiError, Swarm};
use docker_types::swarm::SwarmInfo;
use http::StatusCode;
use manager::Manager;
use tracing::{info, warn};

use crate::membership::{Membership, unavailable};
use crate::state::{Files, State};

pub(crate) const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";
const LEAVE_LOCKED: &str = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.";
const NOT_LOCKED: &str = "swarm is not locked";
const WRONG_KEY: &str = "swarm could not be unlocked: invalid key provided";

/// After an attempt that did not succeed: there may be no leader to ask.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps this manager's keys locked as the swarm wants them to be.
pub(crate) async fn follow(files: Files, manager: Arc<Manager>) {
    let mut frame = manager.frame();
    loop {
        frame.mark_unchanged();
        if let Err(error) = settle(&files, &manager).await {
            warn!("this manager's keys are not locked as the swarm wants them to be: {error:#}");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let unlock_key = || manager.cluster().ok().and_then(|cluster| cluster.unlock_key.clone());
        let settled = unlock_key();
        while unlock_key() == settled {
            if frame.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Locks the keys as the swarm has agreed to. An older state is not followed: it may name a key that is out of use.
pub(crate) async fn settle(files: &Files, manager: &Manager) -> anyhow::Result<()> {
    let snapshot = manager.read().await?;
    let cluster = snapshot.cluster().context("the state has no cluster object")?;
    if files.set_lock(cluster.unlock_key.as_ref())? {
        info!(locked = cluster.unlock_key.is_some(), "this manager's keys are locked anew");
    }
    // What lay open may be known to somebody. It is given up, also where an earlier run did not come to it.
    if let Some(keys) = files.outdated_log_keys()? {
        manager.rekey(keys.current.clone()).await?;
        files.forget_older_log_keys(&keys.current)?;
        info!("log and snapshots are encrypted with a key that never lay open");
    }
    Ok(())
}

impl Membership {
    pub(crate) fn is_locked(&self) -> bool {
        self.locked_state().is_some()
    }

    pub(crate) fn set_locked(&self, state: Option<State>) {
        *self.locked.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn locked_state(&self) -> Option<State> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `docker info` says while the node takes no part in a swarm.
    pub(crate) fn info_outside(&self) -> SwarmInfo {
        match self.locked_state() {
            None => SwarmInfo { local_node_state: "inactive".into(), ..SwarmInfo::default() },
            Some(state) => SwarmInfo {
                node_id: state.node.to_string(),
                node_addr: state.address,
                local_node_state: "locked".into(),
                error: LOCKED.into(),
                ..SwarmInfo::default()
            },
        }
    }

    /// Takes the node's place with the key that an operator brings.
    pub(crate) async fn unlock_now(self: &Arc<Self>, text: &str) -> Result<(), ApiError> {
        let _changing = self.changing.lock().await;
        let Some(state) = self.locked_state() else {
            // A worker and a node without a swarm have words of their own.
            self.manager()?;
            return Err(ApiError::conflict(NOT_LOCKED));
        };
        let key = ca::unlock_key_from_text(text);
        let key = key.map_err(|error| ApiError::bad_request(error.to_string()))?;
        if let Err(error) = self.files.unlock(key) {
            return Err(match error.downcast_ref() {
                Some(ca::Error::Locked) => ApiError::new(StatusCode::UNAUTHORIZED, WRONG_KEY),
                _ => ApiError::internal(error),
            });
        }
        let activated = self.activate(state, None).await;
        activated.map_err(|error| {
            ApiError::internal(error.context("swarm component could not be started"))
        })?;
        self.set_locked(None);
        info!("unlocked");
        Ok(())
    }

    /// Leaves a swarm that this node cannot speak with.
    pub(crate) async fn leave_locked(&self, force: bool) -> Result<(), ApiError> {
        if !force {
            return Err(unavailable(LEAVE_LOCKED));
        }
        self.set_locked(None);
        self.forget().await
    }
}

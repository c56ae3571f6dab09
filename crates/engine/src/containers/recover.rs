//! A daemon that comes back: finds every container on disk, takes over those whose shims live, and records
//! the ends of those that ended meanwhile, at the time they did.

use std::fs;
use std::sync::Arc;

use shim::client::{Client, End};
use shim::protocol;

use super::container::Container;
use super::mounts::Kind;
use super::record::Record;
use super::start::{Starter, chain};
use super::status::{HealthState, Phase};
use super::{Shared, blocking, health};
use crate::error::{Attempt, Error};

impl Shared {
    /// Reads all containers, then takes over or ends each that ran.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        let shared = Arc::clone(self);
        let containers = blocking(move || shared.read_all()).await?;
        for container in &containers {
            self.hold_volumes(container);
            self.registry.insert(Arc::clone(container));
        }
        let mut takeovers = tokio::task::JoinSet::new();
        for container in containers {
            let shared = Arc::clone(self);
            takeovers.spawn(async move { shared.take_over(&container).await });
        }
        takeovers.join_all().await;
        self.sweep_rootfs().await;
        Ok(())
    }

    /// Every container that can be read. Blocking.
    fn read_all(&self) -> Result<Vec<Arc<Container>>, Error> {
        let root = self.containers_dir();
        for directory in [&root, &self.config.exec_root.join("containers")] {
            fs::create_dir_all(directory)
                .attempt(|| format!("create directory {}", directory.display()))?;
        }
        let mut containers = Vec::new();
        for entry in fs::read_dir(&root).attempt(|| format!("read {}", root.display()))?.flatten() {
            let directory = entry.path();
            match Record::load(&directory) {
                Ok((record, state)) => {
                    let bundle = self.bundle_of(&record.id);
                    containers.push(Arc::new(Container::new(record, state, directory, bundle)));
                }
                Err(error) => {
                    // Torn by a power failure while it was made: nobody was told that it exists.
                    tracing::warn!(
                        error = chain(&error),
                        "container cannot be read and is left out"
                    );
                }
            }
        }
        Ok(containers)
    }

    fn hold_volumes(&self, container: &Container) {
        for plan in container.record().mounts.iter().filter(|plan| plan.kind == Kind::Volume) {
            self.volumes.hold(&plan.volume, &container.id);
            if container.phase().is_up() {
                self.volumes.take_over(&plan.volume, &container.id);
            }
        }
    }

    async fn take_over(self: &Arc<Self>, container: &Arc<Container>) {
        match container.phase() {
            Phase::Running | Phase::Paused => self.take_over_running(container).await,
            // Its wait went with the old daemon; it has waited long enough.
            Phase::Restarting => self.start_again(container, Starter::RestartPolicy).await,
            Phase::Created | Phase::Exited => {
                // A shim whose start the old daemon did not live to record.
                if container.bundle.join(shim::config::STATE_FILE).exists() {
                    self.take_over_running(container).await;
                } else if container.record().host.restart_policy.name == "always"
                    && container.phase() == Phase::Exited
                {
                    self.start_again(container, Starter::User).await;
                }
            }
            Phase::Removing | Phase::Dead => self.auto_remove(container).await,
        }
    }

    async fn take_over_running(self: &Arc<Self>, container: &Arc<Container>) {
        let client = match Client::connect(&container.bundle).await {
            Ok(client) => client,
            Err(error) => {
                if !shim::client::is_gone(&error) {
                    tracing::warn!(
                        container.id = container.id,
                        error = chain(&error),
                        "connect to shim"
                    );
                }
                return self.end_unseen(container).await;
            }
        };
        match client.state().await {
            Ok(state)
                if matches!(state.status, protocol::Status::Running | protocol::Status::Paused) =>
            {
                self.adopt(container, client, &state);
            }
            Ok(protocol::State { exit: Some(exit), .. }) => {
                self.ended(container, End::Exited(exit)).await
            }
            _ => self.end_unseen(container).await,
        }
    }

    fn adopt(
        self: &Arc<Self>,
        container: &Arc<Container>,
        client: Client,
        state: &protocol::State,
    ) {
        container.set_shim(Some(client.clone()));
        let has_health = health::is_checked(&container.record().config);
        self.set_status(container, |status| {
            let is_paused = state.status == protocol::Status::Paused;
            status.phase = if is_paused { Phase::Paused } else { Phase::Running };
            status.pid = u32::try_from(state.pid).unwrap_or(0);
            if let Some(started_at) = super::start::from_nanoseconds(state.started_at_ns) {
                status.started_at = Some(started_at);
            }
            // The verdict of the old daemon holds until a check says otherwise.
            status.health = has_health.then(|| status.health.unwrap_or(HealthState::Starting));
        });
        self.supervise(container, client);
        if has_health {
            health::watch_over(self, container);
        }
    }

    /// The end of a container that nobody watched. One that never got to run was only being started.
    async fn end_unseen(self: &Arc<Self>, container: &Arc<Container>) {
        if container.phase() == Phase::Created {
            self.release_run(container).await;
            return;
        }
        self.ended(container, End::Lost).await;
    }

    /// A container in a network of the swarm waits for the swarm, which is there later than the engine.
    async fn start_again(self: &Arc<Self>, container: &Arc<Container>, starter: Starter) {
        if self.needs_swarm(&container.record()) {
            let (shared, own) = (Arc::clone(self), Arc::clone(container));
            self.tasks.spawn(async move { shared.start_now(&own, starter).await });
            return;
        }
        self.start_now(container, starter).await;
    }

    async fn start_now(self: &Arc<Self>, container: &Arc<Container>, starter: Starter) {
        if let Err(error) = self.start(container, starter).await {
            tracing::warn!(container.id = container.id, error = chain(&error), "start again");
        }
    }

    /// Removes root file systems of containers that are not there: their creation or removal was cut off.
    async fn sweep_rootfs(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let swept = blocking(move || {
            for id in shared.images.rootfs_ids() {
                if shared.registry.find(&id).is_err()
                    && let Err(error) = shared.images.remove_rootfs(&id)
                {
                    tracing::warn!(
                        container.id = id,
                        error = chain(&error),
                        "orphaned root file system stays"
                    );
                }
            }
            Ok(())
        });
        let _ = swept.await;
    }
}

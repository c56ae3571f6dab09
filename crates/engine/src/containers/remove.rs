//! Removes containers.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::container::Container;
use super::mounts::Kind;
use super::start::chain;
use super::status::Phase;
use super::{Containers, ListOptions, Shared, blocking};
use crate::error::{Attempt, Error};
use crate::volumes::has_label;

/// How to remove a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Kill it if it runs.
    pub force: bool,
    /// Remove its volumes that have no name.
    pub volumes: bool,
}

impl Containers {
    /// Removes a container with all that it has written.
    ///
    /// # Errors
    /// [`Error::RemoveRunning`] and [`Error::RemovePaused`] without `force`, [`Error::RemovalInProgress`].
    pub async fn remove(&self, name: &str, options: RemoveOptions) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        let name = name.to_owned();
        self.detached(|shared| async move { shared.remove(&container, options, &name).await }).await
    }

    /// Removes all containers that do not run and fit the filters. Returns their ids and the bytes freed.
    ///
    /// # Errors
    /// A filter that is wrong, or the first container that could not be removed.
    pub async fn prune(&self, options: &ListOptions) -> Result<(Vec<String>, u64), Error> {
        let mut removed = Vec::new();
        let mut bytes = 0;
        for container in self.shared.prunable(options)? {
            let id = container.id.clone();
            let images = self.shared.images.clone();
            let size = blocking(move || Ok(images.rootfs_size(&id)?.writable)).await.unwrap_or(0);
            match self.remove(&container.id, RemoveOptions::default()).await {
                Ok(()) => {
                    bytes += size;
                    removed.push(container.id.clone());
                }
                // Started or removed by someone else meanwhile.
                Err(
                    Error::RemoveRunning { .. }
                    | Error::RemovalInProgress { .. }
                    | Error::NoSuchContainer { .. },
                ) => {}
                Err(error) => return Err(error),
            }
        }
        let attributes = [("reclaimed".to_owned(), bytes.to_string())];
        self.shared.events.publish("container", "prune", "", attributes.into());
        Ok((removed, bytes))
    }
}

impl Shared {
    pub(super) async fn remove(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: RemoveOptions,
        name: &str,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        match container.phase() {
            Phase::Paused if !options.force => return Err(Error::RemovePaused { name }),
            phase @ (Phase::Running | Phase::Restarting) if !options.force => {
                return Err(Error::RemoveRunning { name, state: phase.name() });
            }
            _ => {}
        }
        if container.removing.swap(true, Ordering::AcqRel) {
            return Err(Error::RemovalInProgress { id: container.id.clone() });
        }
        let _held_back = container.hold_back();
        let removed = self.remove_now(container, options).await;
        if let Err(error) = &removed {
            container.removing.store(false, Ordering::Release);
            let error = chain(error);
            self.set_status(container, |status| {
                if status.phase == Phase::Removing {
                    status.phase = Phase::Dead;
                    status.error = error;
                }
            });
        }
        removed
    }

    /// Removes a container that asked for it, after its end.
    pub(super) async fn auto_remove(self: &Arc<Self>, container: &Arc<Container>) {
        let options = RemoveOptions { force: false, volumes: true };
        match self.remove(container, options, &container.id).await {
            Ok(()) | Err(Error::RemovalInProgress { .. }) => {}
            Err(error) => {
                tracing::warn!(
                    container.id = container.id,
                    error = chain(&error),
                    "remove after the end"
                );
            }
        }
    }

    async fn remove_now(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: RemoveOptions,
    ) -> Result<(), Error> {
        if container.phase() == Phase::Restarting {
            self.cancel_restart(container).await;
        }
        if container.phase().is_up() {
            self.kill_for_sure(container).await?;
        }
        let _operation = container.operation.lock().await;
        if container.phase().is_up() {
            // Started between the check and the lock.
            return Err(Error::RemoveRunning { name: container.id.clone(), state: "running" });
        }
        self.set_status(container, |status| status.phase = Phase::Removing);
        self.execs.forget(&container.id);
        let (shared, own) = (Arc::clone(self), Arc::clone(container));
        blocking(move || shared.remove_files(&own, options)).await?;
        self.registry.remove(container);
        self.set_status(container, |status| status.removed = true);
        self.event(container, "destroy", &[]);
        self.sync.request();
        Ok(())
    }

    /// Blocking.
    fn remove_files(&self, container: &Container, options: RemoveOptions) -> Result<(), Error> {
        self.images.remove_rootfs(&container.id)?;
        for directory in [&container.bundle, &container.directory] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.attempt(|| format!("remove {}", directory.display()))?,
            }
        }
        self.volumes.release(&container.id);
        let record = container.record();
        let is_own =
            |plan: &&super::mounts::MountPlan| plan.kind == Kind::Volume && plan.is_anonymous;
        for plan in record.mounts.iter().filter(|plan| options.volumes && is_own(plan)) {
            match self.volumes.remove(&plan.volume, true) {
                // Shared by `--volumes-from`: whoever is last removes it.
                Ok(()) | Err(Error::VolumeInUse { .. }) => {}
                Err(error) => {
                    tracing::warn!(
                        volume = plan.volume,
                        error = chain(&error),
                        "remove anonymous volume"
                    );
                }
            }
        }
        Ok(())
    }

    /// Containers that do not run and fit the filters `until`, `label` and `label!`.
    fn prunable(&self, options: &ListOptions) -> Result<Vec<Arc<Container>>, Error> {
        let until = options.until()?;
        let values = |key: &str| options.filters.get(key).cloned().unwrap_or_default();
        let (labels, not_labels) = (values("label"), values("label!"));
        let fits = |container: &Arc<Container>| {
            let record = container.record();
            let own = record.labels();
            let is_idle = matches!(container.phase(), Phase::Created | Phase::Exited | Phase::Dead);
            is_idle
                && until.is_none_or(|until| record.created < until)
                && labels.iter().all(|label| has_label(own, label))
                && !not_labels.iter().any(|label| has_label(own, label))
        };
        let mut containers = self.registry.all();
        containers.retain(fits);
        Ok(containers)
    }
}

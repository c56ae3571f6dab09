//! Rename, and changes of limits and restart policy.

use std::sync::Arc;

use docker_types::container::HostConfig;

use super::container::Container;
use super::invalid::Invalid;
use super::stop::shim_error;
use super::{Containers, Shared, blocking, spec, validate};
use crate::error::Error;

impl Containers {
    /// Gives a container another name.
    ///
    /// # Errors
    /// A name that is not allowed or taken.
    pub async fn rename(&self, name: &str, new: &str) -> Result<(), Error> {
        if new.is_empty() || name.is_empty() {
            return Err(Invalid::EmptyName.into());
        }
        let container = self.shared.registry.find(name)?;
        let new = new.strip_prefix('/').unwrap_or(new).to_owned();
        self.detached(|shared| async move { shared.rename(&container, &new).await }).await
    }

    /// Changes limits and the restart policy; what is zero or empty stays. Returns warnings.
    ///
    /// # Errors
    /// Limits that do not go together, or that the kernel refuses.
    pub async fn update(&self, name: &str, update: HostConfig) -> Result<Vec<String>, Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move { shared.update(&container, &update).await }).await
    }
}

impl Shared {
    async fn rename(&self, container: &Arc<Container>, new: &str) -> Result<(), Error> {
        let _operation = container.operation.lock().await;
        let mut record = (*container.record()).clone();
        if record.name == new {
            return Err(Error::SameName);
        }
        let reservation = self.registry.reserve(Some(new), &container.id)?;
        let old = std::mem::replace(&mut record.name, new.to_owned());
        let (own, renamed) = (Arc::clone(container), record.clone());
        blocking(move || own.replace_record(record)).await?;
        self.rename_in_networks(container, &renamed).await?;
        reservation.keep();
        self.registry.release(&old);
        self.sync.request();
        self.event(container, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    async fn update(
        &self,
        container: &Arc<Container>,
        update: &HostConfig,
    ) -> Result<Vec<String>, Error> {
        let _operation = container.operation.lock().await;
        let mut record = (*container.record()).clone();
        record.host = validate::merge_update(&record.host, update)?;
        if !update.restart_policy.name.is_empty() {
            validate::check_restart(&update.restart_policy)?;
            if record.host.auto_remove && !validate::is_no_restart(&update.restart_policy) {
                return Err(Invalid::RestartAutoRemove.into());
            }
            record.host.restart_policy = update.restart_policy.clone();
        }
        if container.phase().is_up() {
            let limits = spec::resources(&record.host);
            let shim = container.running_shim()?;
            shim.update(&limits).await.map_err(|source| shim_error(container, source))?;
        }
        let own = Arc::clone(container);
        blocking(move || own.replace_record(record)).await?;
        self.sync.request();
        self.event(container, "update", &[]);
        Ok(Vec::new())
    }
}

//! Pause and unpause: all processes stop where they are, and go on.

use super::Containers;
use super::status::Phase;
use super::stop::shim_error;
use crate::error::Error;

impl Containers {
    /// Stops all processes of a container without ending them.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::AlreadyPaused`].
    pub async fn pause(&self, name: &str) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move {
            let _operation = container.operation.lock().await;
            if container.phase() == Phase::Paused {
                return Err(Error::AlreadyPaused { id: container.id.clone() });
            }
            let shim = container.running_shim()?;
            shim.pause().await.map_err(|source| shim_error(&container, source))?;
            shared.set_status(&container, |status| {
                if status.phase == Phase::Running {
                    status.phase = Phase::Paused;
                }
            });
            shared.save_state(&container).await;
            shared.event(&container, "pause", &[]);
            Ok(())
        })
        .await
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Error::NotPaused`].
    pub async fn unpause(&self, name: &str) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move {
            let _operation = container.operation.lock().await;
            if container.phase() != Phase::Paused {
                return Err(Error::NotPaused { id: container.id.clone() });
            }
            let shim = container.running_shim()?;
            shim.resume().await.map_err(|source| shim_error(&container, source))?;
            shared.set_status(&container, |status| {
                if status.phase == Phase::Paused {
                    status.phase = Phase::Running;
                }
            });
            shared.save_state(&container).await;
            shared.event(&container, "unpause", &[]);
            Ok(())
        })
        .await
    }
}

//! Stop, kill, restart.

use std::sync::Arc;
use std::time::Duration;

use super::container::Container;
use super::invalid::Invalid;
use super::signal::Signal;
use super::start::Starter;
use super::status::Phase;
use super::{Containers, Shared};
use crate::error::Error;

/// Time between the stop signal and SIGKILL when neither the container nor the client says, as in Docker.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Time for a killed container to be gone; longer means that the kernel holds a process.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How to stop a container. What is `None` is the container's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOptions {
    pub signal: Option<String>,
    /// [`Duration::MAX`] never kills.
    pub grace: Option<Duration>,
}

impl Containers {
    /// Stops a container: its stop signal, then SIGKILL after the grace period. Returns when it is gone.
    ///
    /// # Errors
    /// [`Error::AlreadyStopped`] when it does not run.
    pub async fn stop(&self, name: &str, options: StopOptions) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move { shared.stop(&container, &options).await }).await
    }

    /// Sends a signal, SIGKILL by default. With SIGKILL it returns when the container is gone.
    ///
    /// # Errors
    /// [`Error::KillNotRunning`], or a signal that is none.
    pub async fn kill(&self, name: &str, signal: Option<&str>) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        let signal = match signal.filter(|signal| !signal.is_empty()) {
            Some(text) => Signal::parse(text)?,
            None => Signal::KILL,
        };
        let name = name.to_owned();
        self.detached(|shared| async move { shared.kill(&container, signal, &name).await }).await
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// As for stop and start.
    pub async fn restart(&self, name: &str, options: StopOptions) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move { shared.restart(&container, &options).await }).await
    }
}

impl Shared {
    pub(super) async fn stop(
        &self,
        container: &Arc<Container>,
        options: &StopOptions,
    ) -> Result<(), Error> {
        let signal = match &options.signal {
            Some(text) if !text.is_empty() => Signal::parse(text)?,
            _ => stop_signal(container)?,
        };
        if container.phase() == Phase::Restarting && self.cancel_restart(container).await {
            return Ok(());
        }
        if !container.phase().is_up() {
            return Err(Error::AlreadyStopped);
        }
        let grace = options.grace.unwrap_or_else(|| grace_of(container));
        container.set_status(|status| status.stopped_by_user = true);
        // A container that ends between the check and the signal is as good as stopped.
        let sent = self.signal(container, signal).await;
        if sent.is_err() || !self.wait_for_end(container, grace).await {
            self.kill_for_sure(container).await?;
        }
        self.event(container, "stop", &[]);
        Ok(())
    }

    async fn kill(
        &self,
        container: &Arc<Container>,
        signal: Signal,
        name: &str,
    ) -> Result<(), Error> {
        match container.phase() {
            Phase::Restarting => return Err(Error::Restarting { id: container.id.clone() }),
            phase if !phase.is_up() => {
                return Err(Error::KillNotRunning {
                    name: name.to_owned(),
                    id: container.id.clone(),
                });
            }
            _ => {}
        }
        if signal == Signal::KILL {
            container.set_status(|status| status.stopped_by_user = true);
            return self.kill_for_sure(container).await;
        }
        if signal == stop_signal(container)? {
            container.set_status(|status| status.stopped_by_user = true);
        }
        self.signal(container, signal).await
    }

    async fn restart(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: &StopOptions,
    ) -> Result<(), Error> {
        // Neither the restart policy nor auto-removal answers to this end.
        let _held_back = container.hold_back();
        match self.stop(container, options).await {
            Ok(()) | Err(Error::AlreadyStopped) => {}
            Err(error) => return Err(error),
        }
        self.start(container, Starter::User).await?;
        self.event(container, "restart", &[]);
        Ok(())
    }

    /// Kills a container and waits until it is gone.
    pub(super) async fn kill_for_sure(&self, container: &Arc<Container>) -> Result<(), Error> {
        let sent = self.signal(container, Signal::KILL).await;
        if self.wait_for_end(container, KILL_PATIENCE).await {
            return Ok(());
        }
        sent?;
        Err(Error::Unkillable { id: container.id.clone() })
    }

    /// Sends a signal; a paused container goes on, or it would never receive it.
    async fn signal(&self, container: &Arc<Container>, signal: Signal) -> Result<(), Error> {
        let shim = container.running_shim()?;
        // Told first: the end it may bring is told by another task.
        self.event(container, "kill", &[("signal", signal.to_string())]);
        shim.kill(signal.0, false).await.map_err(|source| shim_error(container, source))?;
        if container.phase() == Phase::Paused && shim.resume().await.is_ok() {
            self.set_status(container, |status| {
                if status.phase == Phase::Paused {
                    status.phase = Phase::Running;
                }
            });
        }
        Ok(())
    }

    /// Waits until no process is left. False when it takes longer.
    async fn wait_for_end(&self, container: &Container, patience: Duration) -> bool {
        let mut status = container.watch();
        let ended = status.wait_for(|status| !status.phase.is_up());
        tokio::time::timeout(patience, ended).await.is_ok()
    }

    /// Ends the wait for the next start by the restart policy. False when that start came first.
    pub(super) async fn cancel_restart(&self, container: &Arc<Container>) -> bool {
        let _operation = container.operation.lock().await;
        if container.phase() != Phase::Restarting {
            return false;
        }
        container.restart_cancelled.notify_waiters();
        self.set_status(container, |status| {
            status.phase = Phase::Exited;
            status.stopped_by_user = true;
        });
        self.save_state(container).await;
        true
    }
}

/// The engine's words for what a shim refused.
pub(super) fn shim_error(container: &Container, source: shim::client::Error) -> Error {
    use shim::protocol::Fault;
    match source {
        shim::client::Error::Ended | shim::client::Error::Refused(Fault::WrongStatus { .. }) => {
            container.not_running()
        }
        source => Error::Shim { id: container.id.clone(), source },
    }
}

fn stop_signal(container: &Container) -> Result<Signal, Invalid> {
    match container.record().config.stop_signal.as_str() {
        "" => Ok(Signal::TERM),
        text => Signal::parse(text),
    }
}

/// The container's own grace period; a negative one never ends.
fn grace_of(container: &Container) -> Duration {
    match container.record().config.stop_timeout {
        None => GRACE_DEFAULT,
        Some(seconds) => u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs),
    }
}

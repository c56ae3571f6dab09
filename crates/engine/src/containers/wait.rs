//! Waiting for a container's end.

use super::Containers;
use super::invalid::Invalid;
use super::status::{Phase, Status};
use crate::error::Error;

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// That no process is there, which may be so already.
    #[default]
    NotRunning,
    /// The next end.
    NextExit,
    /// That the container is gone.
    Removed,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: i64,
    /// Why it could not start; empty when it did.
    pub error: String,
}

impl WaitCondition {
    /// Reads the API's word; empty is the default.
    ///
    /// # Errors
    /// A word that is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            other => Err(Invalid::WaitCondition { condition: other.to_owned() }.into()),
        }
    }
}

impl Containers {
    /// Waits for the condition. The wait is registered when this returns, not when its future is first polled:
    /// an end that comes right after is not missed.
    ///
    /// # Errors
    /// No such container.
    pub fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = Exit> + Send + use<>, Error> {
        let container = self.shared.registry.find(name)?;
        let mut status = container.watch();
        let exits = container.status().exits;
        Ok(async move {
            let is_met = |status: &Status| match condition {
                WaitCondition::NotRunning => {
                    !status.phase.is_up() && status.phase != Phase::Restarting
                }
                WaitCondition::NextExit => status.exits > exits || status.removed,
                WaitCondition::Removed => status.removed,
            };
            let met = status.wait_for(is_met).await.map(|status| status.clone());
            // The container went away with its last state still there to read.
            let last = met.unwrap_or_else(|_| container.status());
            Exit { code: last.exit_code, error: last.error }
        })
    }
}

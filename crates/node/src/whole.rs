//! Keeps this host's network whole: what somebody has changed is put right, what is in the way is told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::daemon::SharedEngine;

/// Between two looks. What is flushed at once is heard of at once; this is for everything else.
const LOOK: Duration = Duration::from_secs(60);

/// What `docker info` warns of.
pub(crate) type Warnings = Arc<Mutex<Vec<String>>>;

/// Looks again and again.
pub(crate) async fn keep(engine: SharedEngine, warnings: Warnings) {
    loop {
        let facts = tokio::task::spawn_blocking(::doctor::probe_firewall).await;
        let complaints = facts.map(|facts| ::doctor::judge_firewall(&facts)).unwrap_or_default();
        let told = complaints.into_iter();
        let told: Vec<_> =
            told.map(|it| format!("WARNING: {}. To fix it: {}", it.problem, it.fix)).collect();
        *warnings.lock().unwrap_or_else(PoisonError::into_inner) = told;
        tokio::time::sleep(LOOK).await;
        for difference in engine.network.audit(true).await {
            warn!(
                difference,
                "the kernel was not as it should be; it is put right where it can be"
            );
        }
    }
}

/// What was seen at the last look.
pub(crate) fn told(warnings: &Warnings) -> Vec<String> {
    warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

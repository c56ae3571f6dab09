//! What only the leader does, beside answering requests: looking again when a delay ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use types::Timestamp;

use crate::clock::now;
use crate::writer::Writer;

/// After a failed pass: long enough not to spin, short enough to be unnoticed.
const RETRY: Duration = Duration::from_millis(200);

/// Plans whenever the planner asked to be woken.
pub(crate) async fn plan_on_time(writer: Arc<Writer>, stop: CancellationToken) {
    let mut wake_at = writer.wake_at();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = due(&mut wake_at) => {}
        }
        if let Err(error) = writer.write(|_| Ok(())).await {
            warn!(%error, "planning is put off");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// Waits for the newest wake-up time to come.
async fn due(wake_at: &mut watch::Receiver<Option<Timestamp>>) {
    loop {
        let at = *wake_at.borrow_and_update();
        let pause = async {
            match at {
                Some(at) => tokio::time::sleep(at.since(now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => return,
            changed = wake_at.changed() => if changed.is_err() { std::future::pending().await },
        }
    }
}

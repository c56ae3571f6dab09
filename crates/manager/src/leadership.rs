//! What only the leader does, beside answering requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::Timestamp;

use crate::authority::Authority;
use crate::clock::now;
use crate::dispatcher_server::DispatcherServer;
use crate::members::Members;
use crate::writer::Writer;

/// After a failed pass: long enough not to spin, short enough to be unnoticed.
const RETRY: Duration = Duration::from_millis(200);

/// The leader's parts. They rest while another manager leads.
#[derive(Clone, Debug)]
pub(crate) struct Duties {
    pub(crate) writer: Arc<Writer>,
    pub(crate) dispatcher: Arc<DispatcherServer>,
    pub(crate) members: Arc<Members>,
    pub(crate) authority: Arc<Authority>,
}

impl Duties {
    /// Takes the duties up whenever this manager leads, and lays them down when it does not any more.
    pub(crate) async fn follow_leadership(self, stop: CancellationToken) {
        let mut leadership = self.writer.consensus().leadership();
        while !stop.is_cancelled() {
            let led = *leadership.borrow_and_update();
            let mut duties = JoinSet::new();
            let term = stop.child_token();
            if led.is_leader {
                info!(term = led.term, "this manager leads");
                self.dispatcher.begin(led.term);
                duties.spawn(plan_on_time(self.writer.clone(), term.clone()));
                duties.spawn(self.dispatcher.clone().follow_changes(term.clone()));
                duties.spawn(self.dispatcher.clone().expire_sessions(term.clone()));
                duties.spawn(self.members.clone().keep(term.clone()));
                duties.spawn(self.authority.clone().finish_rotations(term.clone()));
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = leadership.changed() => if changed.is_err() { break },
                }
                let now = *leadership.borrow_and_update();
                if (now.is_leader, now.term) != (led.is_leader, led.term) {
                    break;
                }
            }
            leadership.mark_changed();
            term.cancel();
            while duties.join_next().await.is_some() {}
            self.dispatcher.end();
        }
    }
}

/// Plans whenever the planner asked to be woken.
async fn plan_on_time(writer: Arc<Writer>, stop: CancellationToken) {
    let mut wake_at = writer.wake_now();
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

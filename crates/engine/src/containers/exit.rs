//! The end of a container's run: noted as soon as the shim says so, cleaned up after, and perhaps the
//! beginning of the next run by the restart policy.

use std::sync::Arc;
use std::time::Duration;

use docker_types::container::RestartPolicy;
use jiff::Timestamp;
use shim::client::{Client, End};
use shim::config::ExitRecord;

use super::container::Container;
use super::mounts::Kind;
use super::start::{Starter, chain, from_nanoseconds};
use super::status::{Phase, Status};
use super::{Shared, blocking, health, validate};

/// First wait before a restart; doubled with each end that comes soon after its start.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the delay begins anew.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// What a killed shim's container is said to have ended with: its processes were killed with it.
const EXIT_CODE_LOST: i32 = 137;
/// What is said of a container whose host went down under it, as in Docker.
pub(super) const EXIT_CODE_UNKNOWN: i32 = 255;

impl Shared {
    /// Follows a running container to its end, in a task of its own.
    pub(super) fn supervise(self: &Arc<Self>, container: &Arc<Container>, shim: Client) {
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            let Some(end) = closing.run_until_cancelled(shim.wait()).await else { return };
            drop(shim);
            shared.ended(&container, end).await;
        });
    }

    /// Notes the end of a run, cleans up after it, and decides what comes next.
    pub(super) async fn ended(self: &Arc<Self>, container: &Arc<Container>, end: End) {
        let operation = container.operation.lock().await;
        let exit = self.exit_of(container, end).await;
        let restarts = self.note_end(container, &exit);
        self.release_run(container).await;
        self.save_state(container).await;
        drop(operation);
        match restarts {
            Some(delay) => self.restart_later(container, delay),
            None if self.is_auto_removed(container) => self.auto_remove(container).await,
            None => {}
        }
    }

    /// How the run ended; a shim that is gone without a word is asked for through its files.
    async fn exit_of(&self, container: &Container, end: End) -> ExitRecord {
        if let End::Exited(exit) = end {
            return exit;
        }
        let bundle = container.bundle.clone();
        let found = blocking(move || {
            if let Ok(Some(exit)) = shim::client::exit_record(&bundle) {
                return Ok(exit);
            }
            let exit_code = if bundle.exists() { EXIT_CODE_LOST } else { EXIT_CODE_UNKNOWN };
            if let Err(error) = shim::client::clean_up_lost(&bundle) {
                tracing::warn!(bundle = %bundle.display(), error = chain(&error), "clean up after a lost shim");
            }
            Ok(ExitRecord { exit_code, ..ExitRecord::default() })
        });
        found.await.unwrap_or(ExitRecord { exit_code: EXIT_CODE_LOST, ..ExitRecord::default() })
    }

    /// Records the end. Returns how long to wait before the next start, if there is to be one.
    fn note_end(&self, container: &Container, exit: &ExitRecord) -> Option<Duration> {
        let finished_at = from_nanoseconds(exit.exited_at_ns).unwrap_or_else(Timestamp::now);
        let before = container.status();
        let ran_for = before.started_at.map_or(Duration::ZERO, |started_at| {
            Duration::try_from(finished_at.duration_since(started_at)).unwrap_or_default()
        });
        let policy = &container.record().host.restart_policy;
        let quick_ends = container.count_quick_end(ran_for < GOOD_RUN);
        let restarts = !container.is_held_back() && is_restarted(policy, &before, exit.exit_code);
        container.set_shim(None);
        self.set_status(container, |status| {
            status.phase = if restarts { Phase::Restarting } else { Phase::Exited };
            status.pid = 0;
            status.exit_code = i64::from(exit.exit_code);
            status.error.clone_from(&exit.error);
            status.oom_killed = exit.oom_killed;
            status.finished_at = Some(finished_at);
            status.health = None;
            status.exits += 1;
        });
        health::forget(container);
        if exit.oom_killed {
            self.event(container, "oom", &[]);
        }
        self.event(
            container,
            "die",
            &[
                ("exitCode", exit.exit_code.to_string()),
                ("execDuration", ran_for.as_secs().to_string()),
            ],
        );
        restarts.then(|| restart_delay(quick_ends))
    }

    /// Takes back what a run had of the host: ports, network, mounts, attached clients.
    pub(super) async fn release_run(self: &Arc<Self>, container: &Arc<Container>) {
        let record = container.record();
        container.set_shim(None);
        drop(container.take_waiting());
        if !container.ports().is_empty() {
            if let Err(error) = self.network.publish(&container.id, Vec::new()).await {
                tracing::warn!(container.id = container.id, %error, "take back published ports");
            }
            container.set_ports(Vec::new());
        }
        self.leave_networks(container, &record).await;
        let (shared, own) = (Arc::clone(self), Arc::clone(container));
        let released = blocking(move || {
            shared.release_mounts(&own);
            Ok(())
        });
        let _ = released.await;
    }

    /// Blocking.
    fn release_mounts(&self, container: &Container) {
        if let Err(error) = self.images.unmount_rootfs(&container.id) {
            tracing::warn!(container.id = container.id, %error, "unmount the root file system");
        }
        for plan in container.record().mounts.iter().filter(|plan| plan.kind == Kind::Volume) {
            self.volumes.unmount(&plan.volume, &container.id);
            let attributes = [("container".to_owned(), container.id.clone())];
            self.volumes.event("unmount", &plan.volume, attributes.into());
        }
    }

    /// Starts a container again after `delay`, unless somebody stops or removes it meanwhile.
    fn restart_later(self: &Arc<Self>, container: &Arc<Container>, delay: Duration) {
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        let closing = self.closing.clone();
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = container.restart_cancelled.notified() => return,
            }
            if let Err(error) = shared.start(&container, Starter::RestartPolicy).await {
                tracing::warn!(
                    container.id = container.id,
                    error = chain(&error),
                    "restart by policy"
                );
            }
        }));
    }

    fn is_auto_removed(&self, container: &Container) -> bool {
        container.record().host.auto_remove && !container.is_held_back()
    }
}

/// Whether the policy starts a container again that ended with this code.
pub(super) fn is_restarted(policy: &RestartPolicy, status: &Status, exit_code: i32) -> bool {
    if status.stopped_by_user || validate::is_no_restart(policy) {
        return false;
    }
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let max = u64::try_from(policy.maximum_retry_count).unwrap_or(0);
            exit_code != 0 && (max == 0 || status.restart_count < max)
        }
        _ => false,
    }
}

/// The wait after this many quick ends in a row.
fn restart_delay(quick_ends: u32) -> Duration {
    let doublings = quick_ends.saturating_sub(1).min(16);
    RESTART_DELAY_MIN.saturating_mul(1 << doublings).min(RESTART_DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use docker_types::container::RestartPolicy;

    use super::{is_restarted, restart_delay};
    use crate::containers::status::Status;

    #[test]
    fn restart_policies_decide_as_in_docker() {
        let policy =
            |name: &str, max: i64| RestartPolicy { name: name.into(), maximum_retry_count: max };
        let ran = |restart_count: u64| Status { restart_count, ..Status::default() };
        let stopped = Status { stopped_by_user: true, ..Status::default() };
        for (policy, status, code, restarts) in [
            (policy("no", 0), ran(0), 1, false),
            (policy("", 0), ran(0), 1, false),
            (policy("always", 0), ran(5), 0, true),
            (policy("always", 0), stopped.clone(), 0, false),
            (policy("unless-stopped", 0), ran(0), 0, true),
            (policy("on-failure", 0), ran(100), 1, true),
            (policy("on-failure", 0), ran(0), 0, false),
            (policy("on-failure", 2), ran(1), 1, true),
            (policy("on-failure", 2), ran(2), 1, false),
            (policy("on-failure", 0), stopped, 1, false),
        ] {
            assert_eq!(is_restarted(&policy, &status, code), restarts, "{policy:?} {code}");
        }
    }

    #[test]
    fn the_delay_doubles_up_to_a_minute() {
        let delays: Vec<_> = [0, 1, 2, 5, 30].map(restart_delay).to_vec();
        assert_eq!(delays[..4], [100, 100, 200, 1600].map(Duration::from_millis));
        assert_eq!(delays[4], Duration::from_secs(60));
    }
}

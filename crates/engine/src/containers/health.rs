//! Health checks: a command in the container at intervals, and a verdict from its results.
//!
//! The verdict is pure ([`judge`]); the task that runs the checks is one per container that has any.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use docker_types::container::{ContainerConfig, HealthConfig, HealthcheckResult};
use docker_types::exec::ExecCreateRequest;
use docker_types::time::Time;
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::container::Container;
use super::exec::{ExecStart, ExecStreams};
use super::status::{HealthState, Phase};
use super::{Containers, Shared};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const START_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const RETRIES_DEFAULT: u64 = 3;
/// Results kept for `inspect`, as in Docker.
const RESULTS_MAX: usize = 5;
/// Output kept of each, in bytes, as in Docker.
const OUTPUT_BYTES_MAX: usize = 4096;

/// What health checks of the present run said.
#[derive(Debug, Default)]
pub(crate) struct HealthLog {
    pub(crate) failing_streak: u64,
    pub(crate) results: Vec<HealthcheckResult>,
}

/// How a container's checks are made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u64,
}

/// Whether a container has health checks.
pub(super) fn is_checked(config: &ContainerConfig) -> bool {
    config.healthcheck.as_ref().is_some_and(|health| plan(health, config).is_some())
}

/// Checks a running container until it ends, in a task of its own.
pub(super) fn watch_over(shared: &Arc<Shared>, container: &Arc<Container>) {
    let record = container.record();
    let Some(plan) =
        record.config.healthcheck.as_ref().and_then(|health| plan(health, &record.config))
    else {
        return;
    };
    let (shared, container) = (Arc::clone(shared), Arc::clone(container));
    let closing = shared.closing.clone();
    let tasks = shared.tasks.clone();
    tasks.spawn(closing.run_until_cancelled_owned(async move {
        // Ends with the run, and with nothing else: a new run has a task of its own.
        let mut status = container.watch();
        let exits = container.status().exits;
        let ended = async move {
            let _ = status.wait_for(|status| status.exits > exits || status.removed).await;
        };
        tokio::select! {
            () = ended => {}
            () = check_forever(&shared, &container, &plan) => {}
        }
    }));
}

/// Empties the log at a run's end.
pub(super) fn forget(container: &Container) {
    *container.health.lock().unwrap_or_else(PoisonError::into_inner) = HealthLog::default();
}

/// Reads a health check's test; `NONE` and nothing at all are no check.
fn plan(health: &HealthConfig, config: &ContainerConfig) -> Option<Plan> {
    let words = |list: &[String]| list.to_vec();
    let command = match health.test.first().map(String::as_str) {
        Some("CMD") if health.test.len() > 1 => words(&health.test[1..]),
        Some("CMD-SHELL") if health.test.len() > 1 => {
            let shell = config
                .shell
                .as_ref()
                .map(|shell| shell.0.clone())
                .filter(|shell| !shell.is_empty());
            let mut command = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            command.push(health.test[1].clone());
            command
        }
        _ => return None,
    };
    let or = |nanoseconds: i64, default: Duration| match u64::try_from(nanoseconds) {
        Ok(0) | Err(_) => default,
        Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
    };
    Some(Plan {
        command,
        interval: or(health.interval, INTERVAL_DEFAULT),
        timeout: or(health.timeout, TIMEOUT_DEFAULT),
        start_period: or(health.start_period, Duration::ZERO),
        start_interval: or(health.start_interval, START_INTERVAL_DEFAULT),
        retries: u64::try_from(health.retries)
            .ok()
            .filter(|retries| *retries > 0)
            .unwrap_or(RETRIES_DEFAULT),
    })
}

async fn check_forever(shared: &Arc<Shared>, container: &Arc<Container>, plan: &Plan) {
    let started = Instant::now();
    loop {
        let is_starting = started.elapsed() < plan.start_period
            && container.status().health == Some(HealthState::Starting);
        tokio::time::sleep(if is_starting { plan.start_interval } else { plan.interval }).await;
        if container.phase() != Phase::Running {
            continue;
        }
        let result = check(shared, container, plan).await;
        let in_start_period = started.elapsed() < plan.start_period;
        note(shared, container, plan, result, in_start_period);
    }
}

/// Runs the command once.
async fn check(shared: &Arc<Shared>, container: &Arc<Container>, plan: &Plan) -> HealthcheckResult {
    let start = Timestamp::now();
    let containers = Containers { shared: Arc::clone(shared) };
    let (exit_code, output) =
        match tokio::time::timeout(plan.timeout, run(&containers, container, plan)).await {
            Ok(result) => result,
            Err(_) => {
                (-1, format!("Health check exceeded timeout ({})", go_duration(plan.timeout)))
            }
        };
    HealthcheckResult { start: start.into(), end: Time::from(Timestamp::now()), exit_code, output }
}

/// The command's exit code and output. Dropped half way, it kills the command.
async fn run(containers: &Containers, container: &Arc<Container>, plan: &Plan) -> (i64, String) {
    let request = ExecCreateRequest {
        attach_stdout: true,
        attach_stderr: true,
        cmd: Some(plan.command.clone()),
        ..ExecCreateRequest::default()
    };
    let id = match containers.create_exec(&container.id, request).await {
        Ok(id) => id,
        Err(error) => return (-1, error.to_string()),
    };
    let mut kill = KillOnDrop { container: Arc::clone(container), id: Some(id.clone()) };
    let streams = match containers.start_exec(&id, ExecStart::default()).await {
        Ok(streams) => streams,
        Err(error) => return (error.start_exit_code(), error.to_string()),
    };
    let output = match streams {
        ExecStreams::Pipes { stdout: Some(stdout), stderr: Some(stderr), .. } => {
            let (mut first, second) = tokio::join!(read_some(stdout), read_some(stderr));
            first.extend(second);
            first.truncate(OUTPUT_BYTES_MAX);
            String::from_utf8_lossy(&first).into_owned()
        }
        _ => String::new(),
    };
    let exit_code = containers.wait_exec(&id).await;
    kill.id = None;
    (exit_code, output)
}

/// Reads to the end and keeps the beginning.
async fn read_some(mut pipe: pipe::Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; OUTPUT_BYTES_MAX];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
    kept
}

/// Kills a check that took too long.
struct KillOnDrop {
    container: Arc<Container>,
    id: Option<String>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let (Some(id), Some(shim)) = (self.id.take(), self.container.shim()) else { return };
        tokio::spawn(async move {
            // One that has ended meanwhile needs no signal.
            let _ = shim.kill_exec(&id, Signal::KILL.as_raw()).await;
        });
    }
}

fn note(
    shared: &Arc<Shared>,
    container: &Arc<Container>,
    plan: &Plan,
    result: HealthcheckResult,
    in_start_period: bool,
) {
    let is_well = result.exit_code == 0;
    let before = container.status().health.unwrap_or(HealthState::Starting);
    let after = {
        let mut log = container.health.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = is_well || !in_start_period || before != HealthState::Starting;
        log.failing_streak = match (is_well, counts) {
            (true, _) => 0,
            (false, true) => log.failing_streak + 1,
            (false, false) => log.failing_streak,
        };
        log.results.push(result);
        if log.results.len() > RESULTS_MAX {
            log.results.remove(0);
        }
        judge(before, is_well, log.failing_streak, plan.retries)
    };
    if after == before {
        return;
    }
    shared.set_status(container, |status| {
        if status.phase.is_up() {
            status.health = Some(after);
        }
    });
    shared.event(container, &format!("health_status: {}", after.name()), &[]);
}

/// The verdict after a check.
fn judge(before: HealthState, is_well: bool, failing_streak: u64, retries: u64) -> HealthState {
    if is_well {
        HealthState::Healthy
    } else if failing_streak >= retries {
        HealthState::Unhealthy
    } else {
        before
    }
}

/// A duration in Go's words: `1.5s`, `200ms`, `1m0s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60, duration.subsec_millis()) {
        (0, 0, millis) => format!("{millis}ms"),
        (0, seconds, 0) => format!("{seconds}s"),
        (0, seconds, millis) => {
            format!("{}s", f64::from(u32::try_from(seconds).unwrap_or(0)) + f64::from(millis) / 1e3)
        }
        (minutes, seconds, _) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use docker_types::container::{ContainerConfig, HealthConfig};

    use super::{HealthState, go_duration, judge, plan};

    #[test]
    fn a_verdict_changes_with_one_success_or_enough_failures() {
        use HealthState::{Healthy, Starting, Unhealthy};
        for (before, is_well, streak, after) in [
            (Starting, true, 0, Healthy),
            (Starting, false, 2, Starting),
            (Starting, false, 3, Unhealthy),
            (Healthy, false, 1, Healthy),
            (Healthy, false, 3, Unhealthy),
            (Unhealthy, true, 0, Healthy),
        ] {
            assert_eq!(judge(before, is_well, streak, 3), after);
        }
    }

    #[test]
    fn tests_are_commands_or_shell_lines() {
        let read = |test: &[&str]| {
            let test = test.iter().map(|word| (*word).to_owned()).collect();
            let health = HealthConfig { test, interval: 2_000_000, ..HealthConfig::default() };
            plan(&health, &ContainerConfig::default()).map(|plan| plan.command.join(" "))
        };
        assert_eq!(read(&["CMD", "a", "b"]).as_deref(), Some("a b"));
        assert_eq!(read(&["CMD-SHELL", "a || b"]).as_deref(), Some("/bin/sh -c a || b"));
        assert_eq!(read(&["NONE"]), None);
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["CMD"]), None);
    }

    #[test]
    fn durations_read_as_in_go() {
        for (millis, text) in [(200, "200ms"), (1000, "1s"), (1500, "1.5s"), (60_000, "1m0s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}

//! One task on its node.

use std::sync::Arc;

use types::limits::STOP_GRACE_PERIOD;
use types::task::ContainerStatus;
use types::{ServiceId, Task, TaskState, TaskStatus, TaskTemplate, Timestamp};

use crate::{Action, Backend, Event, Found, FoundState, Refusal, Started};

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    /// What the engine adds, such as the reason why a stop did not work.
    pub message: String,
}

/// Where the container stands, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    Preparing,
    Ready,
    Starting,
    /// Started, waiting for its first good health check.
    Warming,
    Running,
    /// Its health check failed; it is about to be stopped.
    Unwell,
    Stopping {
        because: Because,
    },
    Ended,
    Removing,
}

/// Why a container is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    Ordered,
    Unhealthy,
}

#[derive(Debug)]
pub(crate) struct Local {
    task: Arc<Task>,
    template: Arc<TaskTemplate>,
    desired: TaskState,
    /// The cluster has forgotten the task: nothing more is reported of it.
    dismissed: bool,
    phase: Phase,
    container: Option<String>,
    started: Started,
    status: TaskStatus,
    has_news: bool,
}

impl Local {
    pub(crate) fn new(
        task: Arc<Task>,
        template: Arc<TaskTemplate>,
        found: Option<Found>,
        now: Timestamp,
    ) -> Self {
        let (desired, status) = (task.desired_state, task.status.clone());
        let mut local = Self {
            task,
            template,
            desired,
            dismissed: false,
            phase: if status.state.is_terminal() { Phase::Ended } else { Phase::Accepted },
            container: None,
            started: Started::default(),
            status,
            has_news: false,
        };
        match found {
            Some(found) => local.adopt(found, now),
            // It ran here once, and nothing of it is left: it is not run a second time.
            None if local.status.state > TaskState::Ready && local.phase != Phase::Ended => {
                local.end(TaskState::Failed, "task: container is gone", now);
            }
            None => {}
        }
        local
    }

    /// Goes on with a container that outlived the daemon.
    fn adopt(&mut self, found: Found, now: Timestamp) {
        self.container = Some(found.container);
        if self.phase == Phase::Ended {
            // Given up while the node was away: what still runs is stopped, and nobody waits to hear of it.
            if let FoundState::Running { started, .. } = found.state {
                self.started = started;
                self.phase = Phase::Running;
            }
            return;
        }
        match found.state {
            FoundState::Created => self.phase = Phase::Ready,
            FoundState::Running { started, since } => {
                self.started = started;
                self.phase =
                    if self.started.awaits_health { Phase::Warming } else { Phase::Running };
                self.status.running_since.get_or_insert(since);
                if self.phase == Phase::Running {
                    self.report(TaskState::Running, "started", now);
                }
            }
            FoundState::Exited { exit } => {
                self.phase = Phase::Running;
                self.exited(&exit, now);
            }
        }
    }

    /// The task as this node knows it.
    pub(crate) fn held(&self) -> Arc<Task> {
        if self.task.desired_state == self.desired && self.task.status == self.status {
            return self.task.clone();
        }
        let (desired_state, status) = (self.desired, self.status.clone());
        Arc::new(Task { desired_state, status, ..Task::clone(&self.task) })
    }

    pub(crate) fn service(&self) -> ServiceId {
        self.task.service
    }

    pub(crate) fn template_key(&self) -> (ServiceId, u64) {
        (self.template.service, self.template.version)
    }

    /// Where the container is reached while there is one, and whether it is to be asked.
    pub(crate) fn backend(&self) -> Option<Backend> {
        let lives = matches!(
            self.phase,
            Phase::Warming | Phase::Running | Phase::Unwell | Phase::Stopping { .. }
        );
        let is_wanted = self.desired == TaskState::Running && !self.dismissed;
        let is_serving = self.phase == Phase::Running && is_wanted;
        let address = self.started.address.clone();
        let task = self.task.id;
        (lives && !address.is_empty()).then_some(Backend { task, address, is_serving })
    }

    pub(crate) fn set_desired(&mut self, desired: TaskState) {
        // What was once told to stop is not started again.
        self.desired = self.desired.max(desired);
    }

    pub(crate) fn dismiss(&mut self) {
        self.dismissed = true;
        self.desired = TaskState::Remove;
    }

    pub(crate) fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// Whether nothing is left to do or to keep.
    pub(crate) fn is_gone(&self) -> bool {
        self.dismissed && self.phase == Phase::Ended && self.container.is_none()
    }

    pub(crate) fn take_news(&mut self) -> Option<TaskStatus> {
        let tell = std::mem::take(&mut self.has_news) && !self.dismissed;
        tell.then(|| self.status.clone())
    }

    /// Takes note of what happened. What does not fit the phase was overtaken and is left out.
    pub(crate) fn note(&mut self, event: Event, now: Timestamp) {
        match (event, &self.phase) {
            (Event::Prepared { result, .. }, _) => self.prepared(result, now),
            (Event::Started { result, .. }, Phase::Starting) => self.has_started(result, now),
            (Event::Healthy { .. }, Phase::Warming) => self.runs(now),
            (Event::Unhealthy { .. }, Phase::Warming | Phase::Running) => {
                self.phase = Phase::Unwell
            }
            (
                Event::Exited { exit, .. },
                Phase::Starting | Phase::Warming | Phase::Running | Phase::Unwell,
            ) => self.exited(&exit, now),
            (Event::Stopped { exit, .. }, Phase::Stopping { because }) => {
                let because = *because;
                self.stopped(&exit, because, now);
            }
            _ => {}
        }
    }

    fn prepared(&mut self, result: Result<String, Refusal>, now: Timestamp) {
        match (result, &self.phase) {
            (Ok(container), Phase::Preparing) => {
                self.container = Some(container);
                self.phase = Phase::Ready;
                self.report(TaskState::Ready, "prepared", now);
            }
            // Told to stop meanwhile: the container is there and was never started.
            (Ok(container), _) => self.container = Some(container),
            (Err(refusal), Phase::Preparing) => {
                self.end(TaskState::Rejected, &refusal.message, now)
            }
            (Err(_), _) => {}
        }
    }

    fn has_started(&mut self, result: Result<Started, Refusal>, now: Timestamp) {
        match result {
            Ok(started) => {
                self.started = started;
                if self.started.awaits_health {
                    self.phase = Phase::Warming;
                } else {
                    self.runs(now);
                }
            }
            Err(refusal) => self.end(TaskState::Failed, &refusal.message, now),
        }
    }

    fn runs(&mut self, now: Timestamp) {
        self.phase = Phase::Running;
        self.status.running_since.get_or_insert(now);
        self.report(TaskState::Running, "started", now);
    }

    fn exited(&mut self, exit: &Exit, now: Timestamp) {
        if exit.code == 0 && exit.message.is_empty() {
            self.phase = Phase::Ended;
            self.report_exit(TaskState::Complete, "finished", exit, now);
            return;
        }
        self.phase = Phase::Ended;
        self.status.err = match exit.message.as_str() {
            "" => format!("task: non-zero exit ({})", exit.code),
            cause => format!("task: non-zero exit ({}): {cause}", exit.code),
        };
        self.report_exit(TaskState::Failed, "started", exit, now);
    }

    fn stopped(&mut self, exit: &Exit, because: Because, now: Timestamp) {
        self.phase = Phase::Ended;
        match because {
            Because::Ordered => self.report_exit(TaskState::Shutdown, "shutdown", exit, now),
            Because::Unhealthy => {
                self.status.err = "dockerexec: unhealthy container".into();
                self.report_exit(TaskState::Failed, "started", exit, now);
            }
        }
    }

    /// Takes the steps that are due.
    pub(crate) fn advance(&mut self, now: Timestamp) -> Option<Action> {
        if self.desired > TaskState::Running {
            return self.wind_down(now);
        }
        match self.phase {
            Phase::Accepted => {
                self.phase = Phase::Preparing;
                self.report(TaskState::Preparing, "preparing", now);
                Some(Action::Prepare { task: self.task.clone(), template: self.template.clone() })
            }
            Phase::Ready if self.desired == TaskState::Running => {
                self.phase = Phase::Starting;
                self.report(TaskState::Starting, "starting", now);
                let container = self.container.clone()?;
                Some(Action::Start { task: self.task.id, container })
            }
            Phase::Unwell => self.stop(Because::Unhealthy),
            _ => None,
        }
    }

    fn wind_down(&mut self, now: Timestamp) -> Option<Action> {
        match self.phase {
            Phase::Accepted | Phase::Preparing | Phase::Ready => {
                self.phase = Phase::Ended;
                self.report(TaskState::Shutdown, "shutdown", now);
                self.remove_when_dismissed()
            }
            Phase::Warming | Phase::Running => self.stop(Because::Ordered),
            Phase::Unwell => self.stop(Because::Unhealthy),
            // The answer to Start or Stop is on its way and brings us here again.
            Phase::Starting | Phase::Stopping { .. } | Phase::Removing => None,
            Phase::Ended => self.remove_when_dismissed(),
        }
    }

    fn stop(&mut self, because: Because) -> Option<Action> {
        self.phase = Phase::Stopping { because };
        let grace = self.template.task.container.stop_grace_period.unwrap_or(STOP_GRACE_PERIOD);
        let container = self.container.clone()?;
        Some(Action::Stop { task: self.task.id, container, grace })
    }

    /// An ended container is kept for its logs until the cluster forgets the task.
    fn remove_when_dismissed(&mut self) -> Option<Action> {
        if !self.dismissed && self.desired != TaskState::Remove {
            return None;
        }
        let container = self.container.take()?;
        self.phase = if self.dismissed { Phase::Removing } else { Phase::Ended };
        Some(Action::Remove { task: self.task.id, container })
    }

    fn end(&mut self, state: TaskState, err: &str, now: Timestamp) {
        self.phase = Phase::Ended;
        self.status.err = err.to_owned();
        let message = self.status.message.clone();
        self.report(state, &message, now);
    }

    fn report_exit(&mut self, state: TaskState, message: &str, exit: &Exit, now: Timestamp) {
        self.report(state, message, now);
        if let Some(container) = &mut self.status.container {
            container.exit_code = exit.code;
            container.pid = 0;
        }
    }

    /// Notes a new state to tell. States never go back.
    fn report(&mut self, state: TaskState, message: &str, now: Timestamp) {
        if !self.status.state.may_become(state) {
            return;
        }
        self.status.state = state;
        self.status.at = now;
        self.status.message = message.to_owned();
        self.status.ports = self.started.ports.clone();
        self.status.container = self.container.as_ref().map(|id| ContainerStatus {
            id: id.clone(),
            pid: self.started.pid,
            exit_code: 0,
            address: self.started.address.clone(),
        });
        self.has_news = true;
    }
}

//! What state a container is in.
//!
//! ```text
//!            start            exit
//!  created ───────▶ running ───────▶ exited ──start──▶ running
//!                   ▲   │ ▲            │
//!             unpause  pause restart delay over
//!                   │   ▼    └── restarting ◀── exit, when the restart policy says so
//!                   paused
//!  any ──remove──▶ removing ──▶ gone;   a removal that failed half way leaves it dead
//! ```

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A container's state, in Docker's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Created,
    Running,
    Paused,
    /// Ended, and waiting for its next start by the restart policy.
    Restarting,
    Removing,
    Exited,
    Dead,
}

impl Phase {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether a process exists.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Whether a container says that it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// No verdict yet.
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthState {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// All that changes in a container's life. Kept on disk, without the pid's meaning after a reboot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub phase: Phase,
    /// The first process, as the host sees it; zero when there is none.
    pub pid: u32,
    /// Of the last run. 128 plus the signal's number when a signal ended it.
    pub exit_code: i64,
    /// Why the last start went wrong.
    pub error: String,
    pub oom_killed: bool,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub health: Option<HealthState>,
    /// Starts by the restart policy since somebody last started it.
    pub restart_count: u64,
    /// Ends so far: tells one end from the next.
    pub exits: u64,
    /// Whether a person or an API client stopped it, which `unless-stopped` respects.
    pub stopped_by_user: bool,
    /// Set once, when the container is gone.
    #[serde(skip)]
    pub removed: bool,
}

impl Status {
    /// The text of `docker ps`: `Up 3 seconds (healthy)`, `Exited (137) 2 minutes ago`.
    pub fn describe(&self, now: Timestamp) -> String {
        let since = |moment: Option<Timestamp>| {
            let elapsed = moment.map_or(Duration::ZERO, |moment| {
                Duration::try_from(now.duration_since(moment)).unwrap_or_default()
            });
            HumanDuration(elapsed)
        };
        match self.phase {
            Phase::Running => match self.health {
                Some(HealthState::Starting) => {
                    format!("Up {} (health: starting)", since(self.started_at))
                }
                Some(health) => format!("Up {} ({})", since(self.started_at), health.name()),
                None => format!("Up {}", since(self.started_at)),
            },
            Phase::Paused => format!("Up {} (Paused)", since(self.started_at)),
            Phase::Restarting => {
                format!("Restarting ({}) {} ago", self.exit_code, since(self.finished_at))
            }
            Phase::Removing => "Removal In Progress".to_owned(),
            Phase::Dead => "Dead".to_owned(),
            Phase::Created => "Created".to_owned(),
            Phase::Exited if self.started_at.is_none() => "Created".to_owned(),
            Phase::Exited => format!("Exited ({}) {} ago", self.exit_code, since(self.finished_at)),
        }
    }
}

/// A duration in the one word Docker has for it.
#[derive(Clone, Copy, Debug)]
struct HumanDuration(Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        // Docker rounds hours to the nearest, and all else down.
        let hours = (seconds + 1800) / 3600;
        match (seconds, seconds / 60, hours) {
            (0, _, _) => f.write_str("Less than a second"),
            (1, _, _) => f.write_str("1 second"),
            (2..60, _, _) => write!(f, "{seconds} seconds"),
            (_, 1, _) => f.write_str("About a minute"),
            (_, minutes @ 2..60, _) => write!(f, "{minutes} minutes"),
            (_, _, ..=1) => f.write_str("About an hour"),
            (_, _, 2..48) => write!(f, "{hours} hours"),
            (_, _, 48..336) => write!(f, "{} days", hours / 24),
            (_, _, 336..1440) => write!(f, "{} weeks", hours / 24 / 7),
            (_, _, 1440..17520) => write!(f, "{} months", hours / 24 / 30),
            _ => write!(f, "{} years", seconds / 3600 / 24 / 365),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::{Timestamp, ToSpan};

    use super::{HealthState, HumanDuration, Phase, Status};

    #[test]
    fn durations_read_as_in_docker() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (45, "45 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (13 * 86400, "13 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (730 * 86400, "2 years"),
        ] {
            assert_eq!(HumanDuration(Duration::from_secs(seconds)).to_string(), text, "{seconds}");
        }
    }

    #[test]
    fn states_read_as_in_docker() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let ago = |seconds: i64| Some(now.checked_sub(seconds.seconds()).unwrap());
        let up = Status { phase: Phase::Running, started_at: ago(3), ..Status::default() };
        assert_eq!(up.describe(now), "Up 3 seconds");
        let well = Status { health: Some(HealthState::Healthy), ..up.clone() };
        assert_eq!(well.describe(now), "Up 3 seconds (healthy)");
        let starting = Status { health: Some(HealthState::Starting), ..up.clone() };
        assert_eq!(starting.describe(now), "Up 3 seconds (health: starting)");
        assert_eq!(
            Status { phase: Phase::Paused, ..up.clone() }.describe(now),
            "Up 3 seconds (Paused)"
        );
        let ended = Status { phase: Phase::Exited, exit_code: 137, finished_at: ago(120), ..up };
        assert_eq!(ended.describe(now), "Exited (137) 2 minutes ago");
        let again = Status { phase: Phase::Restarting, exit_code: 1, ..ended };
        assert_eq!(again.describe(now), "Restarting (1) 2 minutes ago");
        assert_eq!(Status::default().describe(now), "Created");
    }
}

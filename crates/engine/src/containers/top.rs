//! `docker top`: a container's processes as `ps` shows them.
//!
//! The usual form (`-ef`) is made from `/proc` here, so that a host without `ps` serves it too. Other
//! arguments run the host's `ps` and keep the lines of the container's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;

use docker_types::container::ContainerTop;
use runtime::cgroup::Cgroup;

use super::invalid::Invalid;
use super::status::Phase;
use super::{Containers, blocking};
use crate::error::{Attempt, Error};

const ARGUMENTS_DEFAULT: &str = "-ef";
const TITLES: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
/// Ticks in a second of `/proc/<pid>/stat`: USER_HZ is 100 on every Linux.
const TICKS_PER_SECOND: u64 = 100;
/// Largest output of `ps` that is read, in bytes.
const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;

impl Containers {
    /// The processes of a running container; `arguments` are those of ps(1), empty for `-ef`.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or arguments that `ps` refuses or that leave out the pid.
    pub async fn top(&self, name: &str, arguments: &str) -> Result<ContainerTop, Error> {
        let container = self.shared.registry.find(name)?;
        match container.phase() {
            Phase::Running | Phase::Paused => {}
            Phase::Restarting => return Err(Error::Restarting { id: container.id.clone() }),
            _ => return Err(container.not_running()),
        }
        let path = self.shared.cgroups_path(&container.record());
        let pids: BTreeSet<i32> = blocking(move || {
            Ok(Cgroup::new(&path)
                .map(|group| group.pids())
                .unwrap_or_default()
                .into_iter()
                .collect())
        })
        .await?;
        let arguments =
            if arguments.trim().is_empty() { ARGUMENTS_DEFAULT } else { arguments.trim() };
        let top = if arguments == ARGUMENTS_DEFAULT {
            blocking(move || Ok(full_list(&pids))).await?
        } else {
            run_ps(arguments, &pids).await?
        };
        self.shared.event(&container, "top", &[]);
        Ok(top)
    }
}

/// What `ps -ef` shows of these processes. Blocking.
fn full_list(pids: &BTreeSet<i32>) -> ContainerTop {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let names: BTreeMap<&str, &str> = passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next()?, fields.nth(1)?);
            Some((uid, name))
        })
        .collect();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime: f64 = uptime.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let processes = pids.iter().filter_map(|pid| describe(*pid, &names, uptime)).collect();
    ContainerTop { titles: TITLES.map(str::to_owned).to_vec(), processes }
}

/// One line; `None` for a process that has gone.
fn describe(pid: i32, names: &BTreeMap<&str, &str>, uptime: f64) -> Option<Vec<String>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    // The program's name may hold spaces and brackets; its last bracket ends it.
    let (head, tail) = stat.rsplit_once(')')?;
    let program = head.split_once('(')?.1;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let (parent, terminal) = (fields.get(1)?, number(4));
    let ticks = number(11) + number(12);
    let status = read("status")?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    let seconds = ticks / TICKS_PER_SECOND;
    #[allow(clippy::cast_precision_loss, reason = "a process's age in seconds is far below 2^52")]
    let age = (uptime - number(19) as f64 / TICKS_PER_SECOND as f64).max(0.0);
    Some(vec![
        names.get(uid).map_or(uid, |name| name).to_owned(),
        pid.to_string(),
        (*parent).to_owned(),
        usage(seconds, age).to_string(),
        start_time(age),
        terminal_name(terminal),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        if command.is_empty() { format!("[{program}]") } else { command },
    ])
}

/// Percent of a processor over the process's life, as `ps` counts it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 99")]
#[allow(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
fn usage(seconds: u64, age: f64) -> u8 {
    if age < 1.0 { 0 } else { (seconds as f64 * 100.0 / age).clamp(0.0, 99.0) as u8 }
}

/// `HH:MM` in UTC of a start within a day, `MonDD` of an earlier one.
fn start_time(age: f64) -> String {
    let now = jiff::Timestamp::now();
    let Ok(age) = std::time::Duration::try_from_secs_f64(age) else { return "?".to_owned() };
    let Ok(started) = now.checked_sub(age) else { return "?".to_owned() };
    let format = if age.as_secs() < 24 * 3600 { "%H:%M" } else { "%b%d" };
    started.strftime(format).to_string()
}

/// The kernel's number of a terminal in the words of `ps`.
fn terminal_name(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

/// Runs the host's `ps` and keeps the container's lines.
async fn run_ps(arguments: &str, pids: &BTreeSet<i32>) -> Result<ContainerTop, Error> {
    let refused = || Error::from(Invalid::PsArguments { options: arguments.to_owned() });
    let output = tokio::process::Command::new("ps")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .attempt(|| "run ps".to_owned())?;
    if !output.status.success() || output.stdout.len() > OUTPUT_BYTES_MAX {
        return Err(refused());
    }
    parse_ps(&String::from_utf8_lossy(&output.stdout), pids).ok_or_else(refused)
}

/// The table of `ps` without the lines of other processes; `None` without a column of pids.
fn parse_ps(text: &str, pids: &BTreeSet<i32>) -> Option<ContainerTop> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next()?.split_whitespace().map(str::to_owned).collect();
    let column = titles.iter().position(|title| title == "PID")?;
    let process = |line: &str| {
        let mut fields: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let pid: i32 = fields.get(column)?.parse().ok()?;
        // The last column is a command with spaces of its own.
        if fields.len() > titles.len() {
            let command = fields.split_off(titles.len() - 1).join(" ");
            fields.push(command);
        }
        pids.contains(&pid).then_some(fields)
    };
    let processes = lines.filter_map(process).collect();
    Some(ContainerTop { titles, processes })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{full_list, parse_ps, terminal_name};

    #[test]
    fn our_own_process_is_listed() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let top = full_list(&BTreeSet::from([pid]));
        assert_eq!(top.processes[0][1], pid.to_string());
        assert_eq!(top.processes[0].len(), top.titles.len());
    }

    #[test]
    fn the_last_column_of_ps_keeps_its_spaces() {
        let text = "  PID CMD\n    7 sleep 100 x\n    8 other\n";
        let top = parse_ps(text, &BTreeSet::from([7])).unwrap();
        assert_eq!(top.processes, [["7", "sleep 100 x"]]);
        assert_eq!(parse_ps("CMD\nsleep\n", &BTreeSet::from([7])), None);
        assert_eq!(terminal_name(0x8803), "pts/3");
        assert_eq!(terminal_name(0), "?");
    }
}

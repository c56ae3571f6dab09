//! Restart policies, rolling updates and rollbacks.

use e2e::Host;

use crate::sleeper;

/// A service whose task ends with `code` as soon as it runs.
fn ending(host: &Host, name: &str, code: &str, flags: &[&str]) {
    let base = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
    host.ok(&[&base[..], flags, &["busybox", "sh", "-c", &format!("exit {code}")]].concat());
}

/// State and error of a service's tasks, newest first.
fn history(host: &Host, service: &str) -> Vec<(String, String)> {
    let format = "{{.CurrentState}}|{{.Error}}";
    let rows = host.ok(&["service", "ps", "--no-trunc", "--format", format, service]);
    rows.lines()
        .map(|row| {
            let (state, error) = row.split_once('|').expect("two columns");
            (state.split(' ').next().unwrap_or("").to_owned(), error.to_owned())
        })
        .collect()
}

/// How many containers have ended.
fn ends(host: &Host) -> usize {
    let now = host.ok(&["info", "--format", "{{.SystemTime}}"]);
    let times = ["--since", "2020-01-01T00:00:00Z", "--until", &now];
    let filters = ["--filter", "type=container", "--filter", "event=die", "--format", "{{.ID}}"];
    host.ok(&[&["events"][..], &times, &filters].concat()).lines().count()
}

fn update_state(host: &Host, service: &str) -> String {
    host.ok(&["service", "inspect", service, "--format", "{{with .UpdateStatus}}{{.State}}{{end}}"])
}

#[test]
fn a_task_that_ended_well_is_restarted_only_under_any() {
    let host = Host::in_swarm();
    let delay = ["--restart-delay", "50ms", "--restart-max-attempts", "2"];
    ending(&host, "none", "0", &["--restart-condition", "none"]);
    ending(&host, "failure", "0", &[&["--restart-condition", "on-failure"][..], &delay].concat());
    ending(&host, "any", "0", &[&["--restart-condition", "any"][..], &delay].concat());
    for (service, tasks) in [("none", 1), ("failure", 1), ("any", 3)] {
        host.until(&format!("{service} has come to its end"), || {
            let history = history(&host, service);
            history.len() == tasks && history.iter().all(|(state, _)| state == "Complete")
        });
    }
}

#[test]
fn a_failed_task_is_restarted_as_often_as_allowed() {
    let host = Host::in_swarm();
    ending(&host, "none", "3", &["--restart-condition", "none"]);
    ending(
        &host,
        "failure",
        "3",
        &[
            "--restart-condition",
            "on-failure",
            "--restart-delay",
            "50ms",
            "--restart-max-attempts",
            "2",
        ],
    );
    for (service, tasks) in [("none", 1), ("failure", 3)] {
        host.until(&format!("{service} has come to its end"), || {
            let history = history(&host, service);
            history.len() == tasks
                && history.iter().all(|(state, error)| {
                    state == "Failed" && error == "\"task: non-zero exit (3)\""
                })
        });
    }
    assert_eq!(
        host.ok(&["service", "ls", "--format", "{{.Replicas}}", "--filter", "name=failure"]),
        "0/1"
    );
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let host = Host::in_swarm();
    ending(
        &host,
        "web",
        "1",
        &["--restart-delay", "100ms", "--restart-max-attempts", "1", "--restart-window", "1ms"],
    );
    host.until("more tasks came than attempts are allowed", || ends(&host) > 3);
}

#[test]
fn the_next_task_waits_for_the_restart_delay() {
    let host = Host::in_swarm();
    ending(&host, "web", "1", &["--restart-delay", "1h"]);
    host.until("the next task is ready and waits", || {
        let states: Vec<_> = history(&host, "web").into_iter().map(|(state, _)| state).collect();
        states == ["Ready", "Failed"]
    });
}

#[test]
fn finished_tasks_are_kept_as_long_as_the_history_limit_says() {
    let host = Host::in_swarm();
    host.ok(&["swarm", "update", "--task-history-limit", "2"]);
    ending(&host, "web", "1", &["--restart-delay", "20ms"]);
    host.until("many have ended and two are kept", || {
        ends(&host) > 5 && history(&host, "web").len() == 2
    });
}

#[test]
fn an_update_goes_on_by_its_parallelism_and_order() {
    let host = Host::in_swarm();
    let words =
        "--replicas 4 --update-parallelism 2 --update-order start-first --update-monitor 100ms";
    sleeper(&host, "web", &words.split_whitespace().collect::<Vec<_>>());
    host.until_running("web", 4);
    let before = host.running("web");
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--env-add", "A=1", "web"]);
    host.until("the update is completed", || update_state(&host, "web") == "completed");
    let after = host.running("web");
    assert_eq!(after.len(), 4);
    assert!(before.iter().all(|container| !after.contains(container)), "all are new");
    let shown = host.ok(&["service", "inspect", "--pretty", "web"]);
    assert!(shown.contains("UpdateStatus:\n State:\t\tcompleted\n Started:\t"), "{shown}");
    assert!(shown.contains(" Message:\tupdate completed\n"), "{shown}");
}

#[test]
fn an_update_that_fails_pauses_and_says_so() {
    let host = Host::in_swarm();
    sleeper(
        &host,
        "web",
        &["--replicas", "2", "--update-monitor", "3s", "--restart-delay", "100ms"],
    );
    host.until_running("web", 2);
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--args", "false", "web"]);
    host.until("the update is paused", || update_state(&host, "web") == "paused");
    let message = "{{.UpdateStatus.Message}}";
    let message = host.ok(&["service", "inspect", "web", "--format", message]);
    let (text, task) = message.rsplit_once(' ').expect("a task");
    assert_eq!(text, "update paused due to failure or early termination of task");
    assert_eq!(task.len(), 25, "{message}");
}

#[test]
fn an_update_that_fails_is_rolled_back_where_that_is_asked_for() {
    let host = Host::in_swarm();
    let words = "--replicas 2 --update-monitor 3s --update-failure-action rollback --rollback-monitor 100ms \
        --restart-delay 100ms";
    sleeper(&host, "web", &words.split_whitespace().collect::<Vec<_>>());
    host.until_running("web", 2);
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--args", "false", "web"]);
    host.until("the rollback is completed", || update_state(&host, "web") == "rollback_completed");
    assert_eq!(
        host.ok(&["service", "inspect", "web", "--format", "{{.UpdateStatus.Message}}"]),
        "rollback completed"
    );
    let args = "{{.Spec.TaskTemplate.ContainerSpec.Args}}";
    assert_eq!(host.ok(&["service", "inspect", "web", "--format", args]), "[sleep 100000]");
    host.until_running("web", 2);
}

#[test]
fn an_update_goes_on_over_failures_where_that_is_asked_for() {
    let host = Host::in_swarm();
    let words = "--replicas 2 --update-monitor 100ms --update-failure-action continue --restart-condition none";
    sleeper(&host, "web", &words.split_whitespace().collect::<Vec<_>>());
    host.until_running("web", 2);
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--args", "false", "web"]);
    host.until("the update is completed", || update_state(&host, "web") == "completed");
}

#[test]
fn a_rollback_brings_the_last_spec_back_once() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "0", "--env", "V=1"]);
    let env = || {
        host.ok(&[
            "service",
            "inspect",
            "web",
            "--format",
            "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
        ])
    };
    let refusal = host.refused(&["service", "rollback", "--detach", "web"]);
    assert!(refusal.contains("does not have a previous spec"), "{refusal}");
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--env-add", "V=2", "web"]);
    assert_eq!(env(), "[V=2]");
    host.ok(&["service", "rollback", "--detach", "web"]);
    assert_eq!(env(), "[V=1]");
    host.ok(&["service", "update", "--detach", "--rollback", "web"]);
    assert_eq!(env(), "[V=2]", "the spec before the rollback is the previous one");
}

#[test]
fn a_forced_update_replaces_tasks_of_an_unchanged_spec() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "1", "--update-monitor", "100ms"]);
    host.until_running("web", 1);
    let before = host.running("web");
    host.ok(&["service", "update", "--detach", "--no-resolve-image", "--force", "web"]);
    host.until("the task is another", || {
        let after = host.running("web");
        after.len() == 1 && after != before
    });
}

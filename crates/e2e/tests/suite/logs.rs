//! `service logs`: several replicas in one stream, and what its flags change.

use std::collections::BTreeSet;

use e2e::Host;

/// Two replicas that each wrote `one`, `two` and `three`.
fn talking() -> Host {
    let host = Host::in_swarm();
    let script = "echo one; echo two; echo three; exec sleep 100000";
    let base = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "talk",
        "--replicas",
        "2",
    ];
    let rest = ["--stop-signal", "SIGKILL", "--env", "A=b", "busybox", "sh", "-c", script];
    host.ok(&[&base[..], &rest].concat());
    host.until_running("talk", 2);
    host.until("all lines are there", || {
        host.ok(&["service", "logs", "talk"]).lines().count() == 6
    });
    host
}

#[test]
fn each_line_names_its_task_and_node() {
    let host = talking();
    let hostname = host.ok(&["info", "--format", "{{.Name}}"]);
    let tasks = host.ok(&["service", "ps", "--no-trunc", "--format", "{{.Name}}.{{.ID}}", "talk"]);
    let short: BTreeSet<_> =
        tasks.lines().map(|task| format!("{}@{hostname}", &task[..task.len() - 13])).collect();
    let lines = host.ok(&["service", "logs", "talk"]);
    let named: BTreeSet<_> = lines
        .lines()
        .map(|line| line.split_once("    | ").expect("a column").0.to_owned())
        .collect();
    assert_eq!(named, short);
    let whole = host.ok(&["service", "logs", "--no-trunc", "talk"]);
    assert!(tasks.lines().all(|task| whole.contains(&format!("{task}@{hostname} "))), "{whole}");
    let bare = host.ok(&["service", "logs", "--no-task-ids", "talk"]);
    assert!(bare.contains(&format!("talk.1@{hostname}    | one")), "{bare}");
    let node = host.node();
    let unresolved = host.ok(&["service", "logs", "--no-resolve", "talk"]);
    assert!(unresolved.contains(&format!("@{node}    | one")), "{unresolved}");
}

#[test]
fn lines_are_chosen_by_tail_and_since_and_shown_with_times_and_details() {
    let host = talking();
    let lines = |flags: &[&str]| {
        let printed = host.ok(&[&["service", "logs"][..], flags, &["talk"]].concat());
        let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&["--raw"]), ["one", "one", "three", "three", "two", "two"]);
    assert_eq!(lines(&["--raw", "--tail", "1"]), ["three", "three"]);
    assert_eq!(lines(&["--raw", "--tail", "0"]), Vec::<String>::new());
    assert_eq!(lines(&["--raw", "--since", "1h"]).len(), 6);
    assert_eq!(lines(&["--raw", "--since", "2100-01-01T00:00:00"]), Vec::<String>::new());
    let times = lines(&["--raw", "--timestamps", "--tail", "1"]);
    let (time, text) = times[0].split_once(' ').expect("a time");
    assert_eq!((time.len(), text), ("2026-01-01T00:00:00.000000000Z".len(), "three"));
    // The CLI drops the details that say where a line came from; what is left is a space.
    assert!(lines(&["--details", "--tail", "1"])[0].ends_with("|  three"));
    let task = host.ok(&["service", "ps", "-q", "--filter", "name=talk.2", "talk"]);
    assert_eq!(host.ok(&["service", "logs", "--raw", &task]), "one\ntwo\nthree");
}

#[test]
fn a_log_is_followed_over_all_replicas_and_those_that_come() {
    let host = talking();
    let follow = host.follow(&["service", "logs", "-f", "--no-task-ids", "talk"]);
    for _ in 0..6 {
        follow.line();
    }
    host.ok(&["service", "scale", "--detach", "talk=3"]);
    for expected in ["one", "two", "three"] {
        let line = follow.line();
        assert!(line.starts_with("talk.3@") && line.ends_with(expected), "{line}");
    }
}

#[test]
fn a_service_on_a_terminal_has_one_stream_of_raw_bytes() {
    let host = Host::in_swarm();
    let base = ["service", "create", "--detach", "--no-resolve-image", "--name", "term", "--tty"];
    let rest =
        ["--stop-signal", "SIGKILL", "busybox", "sh", "-c", "echo out; echo err >&2; sleep 100000"];
    host.ok(&[&base[..], &rest].concat());
    host.until_running("term", 1);
    let read = || host.docker(&["service", "logs", "--raw", "term"]).stdout;
    host.until("both lines are in one stream", || {
        read().contains("out\r\n") && read().contains("err\r\n")
    });
}

#[test]
fn nothing_to_read_from_is_said() {
    let host = talking();
    let (status, answer) = host.curl(&[], "/v1.41/services/talk/logs");
    assert!(status >= 400 && answer.contains("at least one"), "{status}: {answer}");
    let refusal = host.refused(&["service", "logs", "nothing"]);
    assert!(refusal.contains("no such task or service: nothing"), "{refusal}");
}

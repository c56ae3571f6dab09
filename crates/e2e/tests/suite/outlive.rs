//! Containers outlive the daemon.

use e2e::Host;

fn pid(host: &Host, container: &str) -> String {
    host.ok(&["inspect", container, "--format", "{{.State.Pid}}"])
}

#[test]
fn killing_the_daemon_disturbs_no_container_and_loses_no_log_line() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut host = Host::in_swarm();
    let script = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done";
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "count",
        "--replicas",
        "2",
        "--publish",
        "8080:80",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    host.until_running("count", 2);
    let before = host.running("count");
    let pids: Vec<_> = before.iter().map(|container| pid(&host, container)).collect();
    let counted = |host: &Host| host.ok(&["logs", &before[0]]).lines().count();
    host.until("lines are written", || counted(&host) > 5);
    let seen = counted(&host);
    host.kill();
    host.start();
    host.until("lines go on", || counted(&host) > seen + 20);
    let lines = host.ok(&["logs", &before[0]]);
    let expected: Vec<_> = (0..lines.lines().count()).map(|number| number.to_string()).collect();
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "no gap and nothing twice");
    let mut after = host.running("count");
    after.sort();
    let mut sorted = before.clone();
    sorted.sort();
    assert_eq!(after, sorted, "no task was restarted");
    assert_eq!(before.iter().map(|container| pid(&host, container)).collect::<Vec<_>>(), pids);
    let rows = host.ok(&["service", "ps", "count", "-q"]);
    assert_eq!(rows.lines().count(), 2, "no task was replaced: {rows}");
}

#[test]
fn an_exit_during_the_daemons_absence_is_reported_and_replaced() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut host = Host::in_swarm();
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--restart-delay",
        "100ms",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sleep",
        "100000",
    ]);
    host.until_running("web", 1);
    let container = host.running("web")[0].clone();
    let process = pid(&host, &container);
    host.kill();
    e2e::run(std::process::Command::new("kill").args(["-KILL", &process]));
    host.start();
    host.until("the exit is reported", || {
        host.ok(&["service", "ps", "--no-trunc", "web"]).contains("task: non-zero exit (137)")
    });
    host.until_running("web", 1);
    assert_eq!(host.ok(&["inspect", &container, "--format", "{{.State.ExitCode}}"]), "137");
}

#[test]
fn the_swarm_is_there_again_after_a_crash() {
    e2e::skep_only!("Docker refuses live restore in a swarm");
    let mut host = Host::in_swarm();
    for number in 0..20 {
        host.ok(&[
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            &format!("s{number}"),
            "--replicas",
            "0",
            "busybox",
        ]);
    }
    let before = host.ok(&["service", "ls", "--format", "{{.ID}} {{.Name}}"]);
    host.kill();
    host.start();
    assert_eq!(host.ok(&["service", "ls", "--format", "{{.ID}} {{.Name}}"]), before);
    host.stop();
    host.start();
    assert_eq!(host.ok(&["service", "ls", "--format", "{{.ID}} {{.Name}}"]), before);
}

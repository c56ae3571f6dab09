//! Services on one node: create, look, scale, update, remove, and what happens to their containers.

use e2e::Host;

use crate::sleeper;

#[test]
fn a_service_is_created_listed_inspected_scaled_and_removed() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "3", "--label", "tier=front", "--env", "A=b"]);
    host.until_running("web", 3);
    let row =
        host.ok(&["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}"]);
    assert_eq!(row, "web replicated 3/3 busybox:latest");
    assert_eq!(
        host.ok(&["service", "inspect", "web", "--format", "{{.Spec.Labels.tier}}"]),
        "front"
    );
    let pretty = host.ok(&["service", "inspect", "--pretty", "web"]);
    for part in ["Service Mode:\tReplicated", " Replicas:\t3", "ContainerSpec:", " Env:\t\tA=b"] {
        assert!(pretty.contains(part), "{part:?} in {pretty}");
    }
    let rows = host.ok(&[
        "service",
        "ps",
        "web",
        "--format",
        "{{.Name}} {{.DesiredState}} {{.CurrentState}}",
    ]);
    assert_eq!(rows.lines().filter(|row| row.contains("Running Running")).count(), 3, "{rows}");
    let before = host.running("web");
    assert_eq!(host.ok(&["service", "scale", "--detach", "web=4"]), "web scaled to 4");
    host.until_running("web", 4);
    let after = host.running("web");
    assert!(before.iter().all(|container| after.contains(container)), "scaling replaces no task");
    assert_eq!(host.ok(&["service", "scale", "--detach", "web=1"]), "web scaled to 1");
    host.until_running("web", 1);
    assert_eq!(host.ok(&["service", "rm", "web"]), "web");
    host.until("no container is left", || host.ok(&["ps", "-aq"]).is_empty());
    assert!(
        host.refused(&["service", "inspect", "web"])
            .to_lowercase()
            .contains("no such service: web")
    );
}

#[test]
fn the_progress_display_ends_when_the_service_has_converged() {
    let host = Host::in_swarm();
    let said = host.ok(&[
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "2",
        "busybox",
        "sleep",
        "1000",
    ]);
    assert!(said.contains("onverged"), "{said}");
    assert_eq!(host.running("web").len(), 2);
}

#[test]
fn a_killed_container_is_replaced_in_its_slot_and_history_shows_it() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "2", "--restart-delay", "100ms"]);
    host.until_running("web", 2);
    let victim = host.running("web")[0].clone();
    host.ok(&["kill", &victim]);
    host.until("another container runs", || {
        let running = host.running("web");
        running.len() == 2 && !running.contains(&victim)
    });
    let rows = host.ok(&["service", "ps", "--no-trunc", "web"]);
    let history = rows.lines().find(|row| row.contains(r"\_")).expect("history is shown");
    assert!(history.contains("Failed") && history.contains("task: non-zero exit (137)"), "{rows}");
}

#[test]
fn a_global_service_has_one_task_on_the_node() {
    let host = Host::in_swarm();
    sleeper(&host, "agent", &["--mode", "global"]);
    host.until_running("agent", 1);
    assert_eq!(host.ok(&["service", "ls", "--format", "{{.Mode}} {{.Replicas}}"]), "global 1/1");
}

#[test]
fn the_spec_reaches_the_container() {
    let host = Host::in_swarm();
    sleeper(
        &host,
        "web",
        &[
            "--env",
            "COLOUR={{.Service.Name}}-{{.Task.Slot}}",
            "--workdir",
            "/tmp",
            "--user",
            "nobody",
            "--hostname",
            "h-{{.Task.Slot}}",
            "--container-label",
            "k=v",
            "--limit-memory",
            "64M",
            "--limit-cpu",
            "0.5",
            "--limit-pids",
            "40",
            "--read-only",
            "--init",
            "--mount",
            "type=tmpfs,target=/scratch",
            "--mount",
            "type=volume,source=data,target=/data",
        ],
    );
    host.until_running("web", 1);
    let container = host.running("web")[0].clone();
    let inside = |command: &str| host.ok(&["exec", &container, "sh", "-c", command]);
    assert_eq!(inside("echo $COLOUR; pwd; id -un; hostname"), "web-1\n/tmp\nnobody\nh-1");
    assert!(
        host.docker(&["exec", "-u", "0", &container, "touch", "/x"])
            .stderr
            .contains("Read-only file system")
    );
    host.ok(&["exec", "-u", "0", &container, "touch", "/scratch/x", "/data/x"]);
    assert_eq!(
        host.ok(&[
            "inspect",
            &container,
            "--format",
            "{{.Config.Labels.k}} {{.HostConfig.Memory}}"
        ]),
        "v 67108864"
    );
    assert!(inside("cat /proc/1/cmdline").contains("init"), "the init process is the first");
    let limit = inside(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true",
    );
    assert_eq!(limit, "67108864", "the kernel keeps the limit");
    assert_eq!(host.ok(&["volume", "ls", "-q"]), "data");
}

#[test]
fn an_update_replaces_the_tasks_and_a_rollback_brings_the_old_ones_back() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "2", "--env", "V=1", "--update-monitor", "200ms"]);
    host.until_running("web", 2);
    let env = || {
        let running = host.running("web");
        let values =
            running.iter().map(|id| host.docker(&["exec", id, "sh", "-c", "echo $V"]).stdout);
        values.collect::<Vec<_>>()
    };
    host.ok(&["service", "update", "--detach", "--env-add", "V=2", "web"]);
    host.until("both tasks are new", || env() == ["2\n", "2\n"]);
    host.until("the update completes", || {
        host.ok(&["service", "inspect", "web", "--format", "{{.UpdateStatus.State}}"])
            == "completed"
    });
    host.ok(&["service", "rollback", "--detach", "web"]);
    host.until("both tasks are old again", || env() == ["1\n", "1\n"]);
}

#[test]
fn an_image_that_is_not_there_rejects_the_task_and_says_so() {
    let host = Host::in_swarm();
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "bad",
        "127.0.0.1:1/nope:v1",
    ]);
    host.until("the task is rejected", || {
        let rows = host.ok(&[
            "service",
            "ps",
            "--no-trunc",
            "--format",
            "{{.CurrentState}} {{.Error}}",
            "bad",
        ]);
        rows.contains("Rejected") && rows.contains("No such image: 127.0.0.1:1/nope:v1")
    });
}

#[test]
fn a_constraint_that_no_node_meets_is_explained() {
    let host = Host::in_swarm();
    sleeper(&host, "far", &["--constraint", "node.labels.zone==mars"]);
    host.until("the reason is shown", || {
        let rows = host.ok(&[
            "service",
            "ps",
            "--no-trunc",
            "--format",
            "{{.CurrentState}} {{.Error}}",
            "far",
        ]);
        rows.contains("Pending")
            && rows.contains("no suitable node (scheduling constraints not satisfied on 1 node)")
    });
    host.ok(&["node", "update", "--label-add", "zone=mars", &host.node()]);
    host.until_running("far", 1);
}

#[test]
fn logs_of_a_service_are_read_and_followed() {
    let host = Host::in_swarm();
    let script = "echo one; echo two >&2; while true; do sleep 1; done";
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "talk",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    host.until_running("talk", 1);
    host.until("both lines are there", || {
        let printed = host.docker(&["service", "logs", "talk"]);
        printed.stdout.contains("| one") && printed.stderr.contains("| two")
    });
    let raw = host.ok(&["service", "logs", "--raw", "talk"]);
    assert_eq!(raw, "one");
    let follow = host.follow(&["service", "logs", "--raw", "-f", "talk"]);
    assert_eq!(follow.line(), "one");
}

#[test]
fn published_ports_answer_on_every_address_and_are_balanced() {
    e2e::skep_only!("Docker needs IPVS for this, which not every kernel has");
    let host = Host::in_swarm();
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "3",
        "--publish",
        "8080:80",
        "whoami",
    ]);
    host.until_running("web", 3);
    for address in ["10.99.0.1", "127.0.0.1"] {
        host.until("three replicas answer", || {
            let answers = (0..12).filter_map(|_| host.ask(address, 8080));
            let names = answers.filter_map(|answer| answer.lines().next().map(str::to_owned));
            names.collect::<std::collections::BTreeSet<_>>().len() == 3
        });
    }
    let shown = host.ok(&["service", "ls", "--format", "{{.Ports}}"]);
    assert_eq!(shown, "*:8080->80/tcp");
    let refusal = host.refused(&[
        "service",
        "create",
        "--detach",
        "--name",
        "other",
        "--publish",
        "8080:80",
        "whoami",
    ]);
    assert!(refusal.contains("port '8080' is already in use by service 'web'"), "{refusal}");
    host.ok(&["service", "rm", "web"]);
    host.until("the port is closed", || host.ask("127.0.0.1", 8080).is_none());
}

#[test]
fn a_port_in_host_mode_is_the_tasks_own() {
    let host = Host::in_swarm();
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--publish",
        "mode=host,published=8081,target=80",
        "whoami",
    ]);
    host.until_running("web", 1);
    host.until("the port answers", || host.ask("10.99.0.1", 8081).is_some());
    sleeper(&host, "plain", &[]);
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "second",
        "--publish",
        "mode=host,published=8081,target=80",
        "whoami",
    ]);
    host.until("the second explains itself", || {
        let rows = host.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "second"]);
        rows.contains("host-mode port already in use on 1 node")
    });
}

#[test]
fn events_tell_of_services() {
    let host = Host::in_swarm();
    let since = host.ok(&["info", "--format", "{{.SystemTime}}"]);
    sleeper(&host, "web", &[]);
    host.until_running("web", 1);
    host.ok(&["service", "rm", "web"]);
    host.until("create and remove are told", || {
        let now = host.ok(&["info", "--format", "{{.SystemTime}}"]);
        let events = host.ok(&[
            "events",
            "--since",
            &since,
            "--until",
            &now,
            "--filter",
            "type=service",
            "--format",
            "{{.Action}}",
        ]);
        events.contains("create") && events.contains("remove")
    });
}

#[test]
fn a_raw_curl_creates_a_service_whatever_it_calls_its_body() {
    e2e::skep_only!("Docker wants the content type to be named");
    let host = Host::in_swarm();
    let body = r#"{"Name":"raw","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Command":["sleep","1000"],"StopSignal":"SIGKILL"}},"Mode":{"Replicated":{"Replicas":2}}}"#;
    let (status, answer) = host.curl(&["-d", body], "/services/create");
    assert_eq!(status, 201, "{answer}");
    host.until_running("raw", 2);
}

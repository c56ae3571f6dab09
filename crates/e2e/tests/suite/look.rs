//! What `ls`, `ps` and `inspect` show of services, tasks and nodes, with filters and formats.

use e2e::{Host, encoded};
use serde_json::Value;

use crate::sleeper;

/// Two services and what `web` shows of itself.
fn with_services() -> Host {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--replicas", "2", "--label", "tier=front", "--label", "team=a"]);
    sleeper(&host, "agent", &["--mode", "global", "--label", "tier=back"]);
    host.until_running("web", 2);
    host.until_running("agent", 1);
    host
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn services_are_filtered_by_name_id_label_and_mode() {
    let host = with_services();
    let id = host.ok(&["service", "inspect", "web", "--format", "{{.ID}}"]);
    let names = |filters: &[&str]| {
        let mut arguments = vec!["service", "ls", "--format", "{{.Name}}"];
        arguments.extend(filters.iter().flat_map(|filter| ["--filter", *filter]));
        sorted(&host.ok(&arguments)).join(" ")
    };
    for (filters, expected) in [
        (&["name=web"][..], "web"),
        (&["name=w"], "web"),
        (&["name=eb"], ""),
        (&["name=web", "name=agent"], "agent web"),
        (&["label=tier"], "agent web"),
        (&["label=tier=front"], "web"),
        (&["label=tier=front", "label=team=a"], "web"),
        (&["label=tier=front", "label=team=b"], ""),
        (&["mode=global"], "agent"),
        (&["mode=replicated"], "web"),
        (&["mode=global", "mode=replicated"], "agent web"),
        (&["name=web", "mode=global"], ""),
        (&[], "agent web"),
    ] {
        assert_eq!(names(filters), expected, "{filters:?}");
    }
    assert_eq!(names(&[&format!("id={id}")]), "web");
    assert_eq!(names(&[&format!("id={}", &id[..6])]), "web");
    let refusal = host.refused(&["service", "ls", "--filter", "colour=red"]);
    assert!(refusal.to_lowercase().contains("invalid filter 'colour'"), "{refusal}");
}

#[test]
fn services_are_listed_in_dockers_columns_and_formats() {
    let host = with_services();
    let table = host.ok(&["service", "ls"]);
    let head = table.lines().next().expect("a head");
    assert_eq!(
        head.split_whitespace().collect::<Vec<_>>(),
        ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]
    );
    let row = table.lines().find(|line| line.contains(" web ")).expect("a row");
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[1..], ["web", "replicated", "2/2", "busybox:latest"]);
    assert_eq!(words[0].len(), 12, "identifiers are cut");
    let id = host.ok(&["service", "ls", "-q", "--filter", "name=web"]);
    assert_eq!((id.len(), id.starts_with(words[0])), (12, true));
    let ids: Value = serde_json::from_str(&host.ok(&[
        "service",
        "ls",
        "--format",
        "{{json .}}",
        "--filter",
        "name=web",
    ]))
    .expect("JSON");
    assert_eq!(ids["Replicas"], "2/2");
}

#[test]
fn tasks_are_filtered_by_name_id_node_and_desired_state() {
    let host = with_services();
    let names = |filters: &[&str]| {
        let mut arguments = vec!["service", "ps", "--format", "{{.Name}}", "web", "agent"];
        arguments.extend(filters.iter().flat_map(|filter| ["--filter", *filter]));
        let printed = host.docker(&arguments);
        sorted(printed.stdout.trim_end()).join(" ")
    };
    let node = host.node();
    let agent = format!("agent.{node}");
    let everything = format!("{agent} web.1 web.2");
    assert_eq!(names(&[]), everything);
    assert_eq!(names(&["name=web.1"]), "web.1");
    assert_eq!(names(&["name=web"]), "web.1 web.2");
    assert_eq!(names(&["desired-state=running"]), everything);
    assert_eq!(names(&["desired-state=shutdown"]), "");
    assert_eq!(names(&[&format!("node={node}")]), everything);
    assert_eq!(names(&["node=self"]), everything);
    let id = host.ok(&["service", "ps", "-q", "--filter", "name=web.2", "web"]);
    assert_eq!(names(&[&format!("id={id}")]), "web.2");
    let refusal = host.refused(&["service", "ps", "--filter", "colour=red", "web"]);
    assert!(refusal.to_lowercase().contains("invalid filter 'colour'"), "{refusal}");
    let refusal = host.refused(&["service", "ps", "nothing"]);
    assert!(refusal.contains("no such service: nothing"), "{refusal}");
}

#[test]
fn tasks_are_listed_in_dockers_columns_and_formats() {
    let host = with_services();
    let table = host.ok(&["service", "ps", "web"]);
    let head = table.lines().next().expect("a head");
    let words: Vec<_> = head.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(
        words,
        ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"]
    );
    let format = "{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}} {{.Error}} {{.Ports}}";
    let hostname = host.ok(&["info", "--format", "{{.Name}}"]);
    let rows = host.ok(&["service", "ps", "--format", format, "web"]);
    for row in rows.lines() {
        assert!(
            row.trim_end().ends_with(&format!(" busybox:latest {hostname} Running")),
            "{row:?}"
        );
    }
    let rows =
        host.ok(&["service", "ps", "--no-resolve", "--format", "{{.Name}} {{.Node}}", "web"]);
    let service = host.ok(&["service", "inspect", "web", "--format", "{{.ID}}"]);
    let node = host.node();
    assert_eq!(sorted(&rows), [format!("{service}.1 {node}"), format!("{service}.2 {node}")]);
    let state = host.ok(&["service", "ps", "--format", "{{.CurrentState}}", "web"]);
    assert!(
        state.lines().all(|line| line.starts_with("Running ") && line.ends_with(" ago")),
        "{state}"
    );
}

#[test]
fn a_node_shows_its_tasks_and_itself() {
    let host = with_services();
    let rows = host.ok(&["node", "ps", "--format", "{{.Name}} {{.DesiredState}}"]);
    let node = host.node();
    assert_eq!(
        sorted(&rows),
        [format!("agent.{node} Running").as_str(), "web.1 Running", "web.2 Running"]
    );
    assert_eq!(
        host.ok(&["node", "ps", "self", "--filter", "name=web.1", "--format", "{{.Name}}"]),
        "web.1"
    );
    let hostname = host.ok(&["info", "--format", "{{.Name}}"]);
    let table = host.ok(&["node", "ls"]);
    let head: Vec<_> = table.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(
        head,
        ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER", "STATUS", "ENGINE", "VERSION"]
    );
    let row = table.lines().nth(1).expect("a row");
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[..6], [node.as_str(), "*", &hostname, "Ready", "Active", "Leader"]);
    let count = |filter: &str| host.ok(&["node", "ls", "-q", "--filter", filter]).lines().count();
    assert_eq!(count("membership=accepted"), 1);
    host.ok(&["node", "update", "--label-add", "zone=east", &node]);
    for (filter, expected) in [
        ("role=manager", 1),
        ("role=worker", 0),
        ("node.label=zone=east", 1),
        ("node.label=zone=west", 0),
        ("name=nobody", 0),
    ] {
        assert_eq!(count(filter), expected, "{filter}");
    }
    let pretty = host.ok(&["node", "inspect", "--pretty", "self"]);
    for part in [
        format!("ID:\t\t\t{node}\n"),
        "Labels:\n - zone=east\n".to_owned(),
        format!("Hostname:              \t{hostname}\n"),
        "Joined at:             \t20".to_owned(),
        "Status:\n State:\t\t\tReady\n Availability:         \tActive\n Address:\t\t10.99.0.1\n".to_owned(),
        "Manager Status:\n Address:\t\t10.99.0.1:2377\n Raft Status:\t\tReachable\n Leader:\t\tYes\n".to_owned(),
        "Platform:\n Operating System:\tlinux\n Architecture:\t\t".to_owned(),
        "Plugins:\n Log:\t\t".to_owned(),
        "TLS Info:\n TrustRoot:\n-----BEGIN CERTIFICATE-----\n".to_owned(),
        " Issuer Subject:\tMBMxETAPBgNVBAM".to_owned(),
    ] {
        assert!(pretty.contains(&part), "{part:?} in {pretty}");
    }
}

#[test]
fn a_service_is_described_for_people() {
    let host = Host::in_swarm();
    let words = "--replicas 2 --label a=b --constraint node.role==manager --env A=b --workdir /tmp \
        --user nobody --mount type=volume,source=v,target=/v --limit-memory 64M --reserve-cpu 0.1 \
        --publish mode=host,published=8090,target=80 --restart-condition none --update-delay 2s";
    sleeper(&host, "web", &words.split_whitespace().collect::<Vec<_>>());
    let id = host.ok(&["service", "inspect", "web", "--format", "{{.ID}}"]);
    let pretty = host.ok(&["service", "inspect", "--pretty", "web"]);
    let update = "UpdateConfig:\n Parallelism:\t1\n Delay:\t\t2s\n On failure:\tpause\n Monitoring Period: 5s\n \
        Max failure ratio: 0\n Update order:      stop-first\n";
    let resources = "Resources:\n Reservations:\n  CPU:\t\t0.1\n Limits:\n  Memory:\t64MiB\n";
    for part in [
        &format!(
            "ID:\t\t{id}\nName:\t\tweb\nLabels:\n a=b\nService Mode:\tReplicated\n Replicas:\t2\n"
        ),
        "Placement:\n Constraints:\t[node.role==manager]\n",
        update,
        "ContainerSpec:\n Image:\t\tbusybox:latest\n Args:\t\tsleep 100000 \n Env:\t\tA=b \n Dir:\t\t/tmp\n",
        "Mounts:\n Target:\t/v\n  Source:\tv\n  ReadOnly:\tfalse\n  Type:\t\tvolume\n",
        resources,
        "Endpoint Mode:\tvip\nPorts:\n PublishedPort = 8090\n  Protocol = tcp\n  TargetPort = 80\n  PublishMode = host",
    ] {
        assert!(pretty.contains(part), "{part:?} in {pretty}");
    }
}

#[test]
fn a_task_in_host_mode_shows_its_port() {
    let host = Host::in_swarm();
    sleeper(&host, "web", &["--publish", "mode=host,published=8090,target=80"]);
    host.until_running("web", 1);
    let ports = || host.ok(&["service", "ps", "--format", "{{.Ports}}", "web"]);
    host.until("the port is shown", || ports().contains("*:8090->80/tcp"));
}

#[test]
fn the_progress_display_asks_for_tasks_of_the_newest_spec() {
    let host = with_services();
    let filters = r#"{"service":["web"],"_up-to-date":["true"]}"#;
    let tasks = host.get(&format!("/v1.41/tasks?filters={}", encoded(filters)));
    assert_eq!(tasks.as_array().map(Vec::len), Some(2));
    let task = &tasks[0];
    for (place, expected) in [
        ("/Status/State", "running"),
        ("/Status/Message", "started"),
        ("/DesiredState", "running"),
        ("/Spec/ContainerSpec/Image", "busybox:latest"),
    ] {
        assert_eq!(task.pointer(place).and_then(Value::as_str), Some(expected), "{place}");
    }
    assert_eq!(task.pointer("/Status/ContainerStatus/ExitCode"), Some(&Value::from(0)));
}

//! The swarm of one node: init, tokens, settings, node, leave.

use e2e::Host;

#[test]
fn a_node_makes_a_swarm_and_leaves_it() {
    let host = Host::new();
    let refusal = host.refused(&["service", "ls"]);
    assert!(refusal.contains("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."), "{refusal}");
    assert_eq!(host.ok(&["info", "--format", "{{.Swarm.LocalNodeState}}"]), "inactive");
    let said = host.ok(&["swarm", "init", "--advertise-addr", "10.99.0.1"]);
    assert!(
        said.contains("is now a manager.") && said.contains("docker swarm join --token SWMTKN-1-"),
        "{said}"
    );
    assert_eq!(
        host.ok(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"]),
        "active true"
    );
    let refusal = host.refused(&["swarm", "init"]);
    assert!(refusal.contains("This node is already part of a swarm."), "{refusal}");
    let refusal = host.refused(&["swarm", "leave"]);
    assert!(
        refusal.contains("Removing the last manager erases all current state of the swarm."),
        "{refusal}"
    );
    host.ok(&["swarm", "leave", "--force"]);
    assert!(host.refused(&["node", "ls"]).contains("This node is not a swarm manager."));
    assert!(
        host.refused(&["swarm", "leave", "--force"]).contains("This node is not part of a swarm")
    );
}

#[test]
fn join_tokens_are_shown_and_rotated() {
    let host = Host::in_swarm();
    let worker = host.ok(&["swarm", "join-token", "-q", "worker"]);
    let manager = host.ok(&["swarm", "join-token", "-q", "manager"]);
    assert!(worker.starts_with("SWMTKN-1-") && worker.len() == 85, "{worker}");
    assert_ne!(worker, manager);
    let rotated = host.ok(&["swarm", "join-token", "-q", "--rotate", "worker"]);
    assert_ne!(rotated, worker);
    assert_eq!(host.ok(&["swarm", "join-token", "-q", "worker"]), rotated);
    assert_eq!(host.ok(&["swarm", "join-token", "-q", "manager"]), manager);
}

#[test]
fn settings_are_updated_and_bad_ones_refused() {
    let host = Host::in_swarm();
    host.ok(&["swarm", "update", "--task-history-limit", "2", "--dispatcher-heartbeat", "3s"]);
    let shown = host.ok(&["info", "--format", "{{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}} {{.Swarm.Cluster.Spec.Dispatcher.HeartbeatPeriod}}"]);
    assert_eq!(shown, "2 3s");
    let refusal = host.refused(&["swarm", "update", "--cert-expiry", "1s"]);
    assert!(refusal.contains("minimum certificate expiry time is: 1h0m0s"), "{refusal}");
}

#[test]
fn the_node_is_listed_inspected_and_labelled() {
    let host = Host::in_swarm();
    let format = "{{.Status}} {{.Availability}} {{.ManagerStatus}} {{.Self}}";
    let row = || host.ok(&["node", "ls", "--format", format]);
    host.until("it is listed as ready", || row() == "Ready Active Leader true");
    host.ok(&["node", "update", "--label-add", "zone=east", &host.node()]);
    assert_eq!(host.ok(&["node", "inspect", "self", "--format", "{{.Spec.Labels.zone}}"]), "east");
    let pretty = host.ok(&["node", "inspect", "--pretty", "self"]);
    for part in ["Availability:", "Ready", "Leader:", "Engine Version:", "TLS Info:"] {
        assert!(pretty.contains(part), "{part} in {pretty}");
    }
    let refusal = host.refused(&["node", "demote", &host.ok(&["node", "ls", "-q"])]);
    assert!(refusal.contains("attempting to demote the last manager of the swarm"), "{refusal}");
}

#[test]
fn a_drained_node_stops_its_tasks_and_a_pending_task_says_why() {
    let host = Host::in_swarm();
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--stop-grace-period",
        "1s",
        "busybox",
        "sleep",
        "1000",
    ]);
    host.until_running("web", 1);
    host.ok(&["node", "update", "--availability", "drain", &host.node()]);
    host.until_running("web", 0);
    let reason = "no suitable node (1 node not available for new tasks)";
    host.until("the reason is shown", || {
        host.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "web"]).contains(reason)
    });
    host.ok(&["node", "update", "--availability", "active", &host.node()]);
    host.until_running("web", 1);
}

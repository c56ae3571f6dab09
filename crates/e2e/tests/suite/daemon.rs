//! The daemon itself: its flags and settings file, its other name, and several of it side by side.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use e2e::Host;

#[test]
fn dockerds_flags_are_taken() {
    let words = "--debug --label tier=front --label zone=east --insecure-registry 10.9.9.9:5000 \
        --registry-mirror https://mirror.example.org --node-generic-resource gpu=2 --log-driver local \
        --log-level error --userland-proxy=false --live-restore=false --shutdown-timeout 5 \
        --max-concurrent-downloads 2 --default-ulimit nofile=900:900 --bip 172.30.0.1/16";
    let host = Host::with_flags(&words.split_whitespace().collect::<Vec<_>>());
    let info = host.get("/v1.41/info");
    assert_eq!(info["Debug"], true);
    assert_eq!(info["Labels"], serde_json::json!(["tier=front", "zone=east"]));
    assert_eq!(info["LoggingDriver"], "local");
    assert_eq!(info["DockerRootDir"], host.path("data").to_str().expect("text"));
    let registries = &info["RegistryConfig"];
    assert!(registries["IndexConfigs"].get("10.9.9.9:5000").is_some(), "{registries}");
    assert_eq!(registries["Mirrors"], serde_json::json!(["https://mirror.example.org/"]));
    let kept = std::fs::read_to_string(host.path("pid")).expect("the pid file is there");
    assert!(kept.trim().parse::<u32>().is_ok(), "{kept}");
    host.load_images();
    assert_eq!(host.ok(&["run", "--rm", "busybox", "sh", "-c", "ulimit -n"]), "900");
    let route = host.ok(&["run", "--rm", "busybox", "ip", "route"]);
    assert!(route.contains("default via 172.30.0.1"), "{route}");
    host.init();
    let node = host.get(&format!("/v1.41/nodes/{}", host.node()));
    let engine = &node["Description"]["Engine"]["Labels"];
    assert_eq!(*engine, serde_json::json!({"tier": "front", "zone": "east"}));
    let resources = &node["Description"]["Resources"]["GenericResources"];
    assert_eq!(
        resources[0]["DiscreteResourceSpec"],
        serde_json::json!({"Kind": "gpu", "Value": 2})
    );
}

#[test]
fn settings_are_read_from_a_file() {
    let mut host = Host::without_daemon();
    let file = host.path("daemon.json");
    let text = r#"{"labels": ["tier=front"], "debug": true, "log-driver": "local", "insecure-registries": ["10.9.9.9:5000"]}"#;
    std::fs::write(&file, text).expect("writes");
    host.start_with(&["--config-file", file.to_str().expect("text")]);
    let info = host.get("/v1.41/info");
    assert_eq!((&info["Debug"], &info["LoggingDriver"]), (&true.into(), &"local".into()));
    assert_eq!(info["Labels"], serde_json::json!(["tier=front"]));
}

#[test]
fn settings_that_nobody_knows_or_that_are_given_twice_stop_the_daemon() {
    for (text, flags, expected) in [
        (r#"{"colour": "red"}"#, &[][..], "colour"),
        (r#"{"debug": tru}"#, &[], "invalid"),
        (r#"{"log-driver": "local"}"#, &["--log-driver", "json-file"], "log-driver"),
    ] {
        let host = Host::without_daemon();
        let file = host.path("daemon.json");
        std::fs::write(&file, text).expect("writes");
        let flags = [&["--config-file", file.to_str().expect("text")], flags].concat();
        let failed = host.daemon_fails(&flags);
        assert!(failed.code != 0 && failed.stderr.contains(expected), "{text}: {failed:?}");
    }
}

#[test]
fn flags_that_mean_nothing_here_are_taken_with_a_warning() {
    e2e::skep_only!("they mean something to Docker");
    let words = "--containerd /run/none.sock --userland-proxy=false --iptables=true --storage-driver overlay2 \
        --selinux-enabled=false";
    let host = Host::with_flags(&words.split_whitespace().collect::<Vec<_>>());
    let log = std::fs::read_to_string(host.path("log")).expect("the log is there");
    for flag in ["containerd", "userland-proxy"] {
        assert!(log.contains(flag), "{flag} in {log}");
    }
}

#[test]
fn called_dockerd_it_is_the_daemon() {
    let mut host = Host::without_daemon();
    let program = host.path("dockerd");
    symlink(host.program(), &program).expect("links");
    host.start_as(&program, &[]);
    assert!(host.ok(&["version", "--format", "{{.Server.Version}}"]).contains('.'));
    let version = Command::new(&program).arg("--version").output().expect("runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains("version"), "{version:?}");
}

#[test]
fn several_daemons_run_side_by_side_on_one_host() {
    let first = Host::in_swarm();
    let mut second = Host::beside(&first);
    second.start_with(&["--bridge", "none"]);
    second.load_images();
    let id = |host: &Host| host.ok(&["info", "--format", "{{.ID}}"]);
    assert_ne!(id(&first), id(&second));
    first.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);
    second.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);
    second.ok(&["rm", "-f", "box"]);
    assert_eq!(first.ok(&["ps", "--format", "{{.Names}}"]), "box");
    assert_eq!(second.ok(&["ps", "-a", "--format", "{{.Names}}"]), "");
}

#[test]
fn a_second_daemon_does_not_take_the_first_ones_state() {
    let host = Host::new();
    let failed = host.daemon_fails(&[]);
    assert_ne!(failed.code, 0, "{failed:?}");
    assert!(
        host.ok(&["version", "--format", "{{.Server.Version}}"]).contains('.'),
        "the first goes on"
    );
}

#[test]
fn the_api_answers_on_tcp_too() {
    let host = Host::with_flags(&["-H", "tcp://127.0.0.1:2375"]);
    let answer = host.exec(&["curl", "-sS", "http://127.0.0.1:2375/_ping"]);
    assert_eq!(answer.stdout, "OK");
}

#[test]
fn the_daemon_ends_in_good_order_and_leaves_its_socket_to_the_next() {
    let mut host = Host::new();
    host.stop();
    let gone = host.command(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(!gone.expect("docker runs").success());
    assert!(!host.path("pid").exists(), "the pid file goes with the daemon");
    host.start();
}

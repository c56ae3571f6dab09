//! Containers and images without a swarm.

use e2e::{Host, Registry};

#[test]
fn a_container_runs_and_gives_its_output_and_its_exit_code() {
    let host = Host::new();
    host.load_images();
    assert_eq!(host.ok(&["run", "--rm", "busybox", "echo", "hello"]), "hello");
    let failed = host.docker(&["run", "--rm", "busybox", "sh", "-c", "echo oops >&2; exit 3"]);
    assert_eq!((failed.code, failed.stderr.trim()), (3, "oops"));
    let missing = host.docker(&["run", "--rm", "busybox", "no-such-command"]);
    assert_eq!(missing.code, 127);
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{}", missing.stderr);
    assert_eq!(host.ok(&["ps", "-aq"]), "", "--rm removes");
    host.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);
    for flags in [&["exec"][..], &["exec", "-i"]] {
        let missing = host.docker(&[flags, &["box", "no-such-command"]].concat());
        let said = format!("{}{}", missing.stdout, missing.stderr);
        assert_eq!(missing.code, 127, "{said}");
        assert!(said.contains("executable file not found in $PATH"), "{said}");
    }
}

#[test]
fn a_container_is_looked_into_stopped_and_removed() {
    let host = Host::new();
    host.load_images();
    host.ok(&[
        "run",
        "-d",
        "--name",
        "box1",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sh",
        "-c",
        "echo started; sleep 1000",
    ]);
    host.until("the log is there", || host.ok(&["logs", "box1"]) == "started");
    assert_eq!(host.ok(&["exec", "box1", "sh", "-c", "echo $((6*7))"]), "42");
    assert_eq!(host.docker(&["exec", "box1", "sh", "-c", "exit 5"]).code, 5);
    let status = host.ok(&["exec", "box1", "grep", "Seccomp:", "/proc/self/status"]);
    assert!(status.ends_with('2'), "exec'd processes are filtered too: {status}");
    assert_eq!(host.ok(&["inspect", "box1", "--format", "{{.State.Status}}"]), "running");
    assert!(host.ok(&["top", "box1"]).contains("sleep 1000"));
    let taken = host.refused(&["run", "-d", "--name", "box1", "busybox", "true"]);
    assert!(
        taken.contains("Conflict. The container name \"/box1\" is already in use by container"),
        "{taken}"
    );
    let refusal = host.refused(&["rm", "box1"]);
    assert!(
        refusal.contains("container is running") || refusal.contains("a running container"),
        "{refusal}"
    );
    host.ok(&["stop", "box1"]);
    let row = host.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
    assert!(row.starts_with("box1 Exited (137)"), "{row}");
    host.ok(&["rm", "box1"]);
    let gone = host.refused(&["inspect", "box1"]);
    assert!(
        gone.contains("No such object: box1") || gone.contains("no such object: box1"),
        "{gone}"
    );
}

#[test]
fn images_are_tagged_saved_loaded_and_removed() {
    let host = Host::new();
    host.load_images();
    host.ok(&["tag", "busybox", "other:v2"]);
    let archive = host.path("saved.tar");
    let archive = archive.to_str().expect("text");
    host.ok(&["save", "-o", archive, "other:v2"]);
    assert!(host.ok(&["rmi", "other:v2"]).contains("Untagged: other:v2"));
    assert_eq!(host.ok(&["load", "-i", archive]), "Loaded image: other:v2");
    assert_eq!(host.ok(&["run", "--rm", "other:v2", "echo", "again"]), "again");
    assert!(host.refused(&["rmi", "nothing"]).contains("No such image: nothing"));
    assert!(host.ok(&["history", "busybox"]).contains("IMAGE"));
}

#[test]
fn a_service_runs_an_image_from_a_registry_by_its_digest() {
    let host = Host::in_swarm();
    let registry = Registry::on(&host);
    host.ok(&["tag", "busybox", "127.0.0.1:5000/box:v1"]);
    let pushed = host.ok(&["push", "127.0.0.1:5000/box:v1"]);
    assert!(pushed.contains("v1: digest: sha256:"), "{pushed}");
    host.ok(&["rmi", "127.0.0.1:5000/box:v1", "busybox"]);
    host.ok(&[
        "service",
        "create",
        "--detach",
        "--name",
        "box",
        "--stop-signal",
        "SIGKILL",
        "127.0.0.1:5000/box:v1",
        "sleep",
        "1000",
    ]);
    host.until_running("box", 1);
    let image = host.ok(&[
        "service",
        "inspect",
        "box",
        "--format",
        "{{.Spec.TaskTemplate.ContainerSpec.Image}}",
    ]);
    assert!(image.starts_with("127.0.0.1:5000/box:v1@sha256:"), "{image}");
    drop(registry);
}

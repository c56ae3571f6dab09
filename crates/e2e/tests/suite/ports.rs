//! Published ports that somebody else has.

use std::process::{Child, Command, Stdio};

use e2e::{Host, skep_only};

/// A process of the host that listens on a port.
struct Holder(Child);

impl Holder {
    fn on(host: &Host, port: &str) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", host.name));
        command.args(["--", "/bin/busybox", "nc", "-ll", "-p", port, "-e", "/bin/true"]);
        let child = command.stdin(Stdio::null()).spawn().expect("nsenter runs");
        let local = format!(":{port}");
        host.until("the port is held", || {
            let listening = host.exec(&["ss", "-Htln"]).stdout;
            listening.split_whitespace().any(|word| word.ends_with(&local))
        });
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SERVICE: [&str; 7] =
    ["service", "create", "--detach", "--no-resolve-image", "--restart-delay", "1s", "--name"];

#[test]
fn a_container_does_not_start_without_its_port_and_says_who_has_it() {
    let host = Host::new();
    host.load_images();
    let holder = Holder::on(&host, "8080");
    let run = |port: &str| {
        host.docker(&["run", "-d", "--name", "web", "-p", &format!("{port}:80"), "whoami"])
    };
    let refused = run("8080");
    assert_eq!(refused.code, 125);
    for text in [
        "driver failed programming external connectivity on endpoint web (",
        "listen tcp4 0.0.0.0:8080: bind: address already in use",
    ] {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]), "web Created");
    drop(holder);
    host.ok(&["start", "web"]);
    let refused = host.refused(&["run", "-d", "-p", "8080:80", "--name", "other", "whoami"]);
    for text in [
        "driver failed programming external connectivity on endpoint other (",
        "Bind for 0.0.0.0:8080 failed: port is already allocated",
    ] {
        assert!(refused.contains(text), "{refused}");
    }
}

#[test]
fn a_task_in_host_mode_fails_with_the_reason_and_runs_once_the_port_is_free() {
    let host = Host::in_swarm();
    let holder = Holder::on(&host, "8080");
    let publish = "mode=host,published=8080,target=80";
    host.ok(&[&SERVICE[..], &["web", "--publish", publish, "whoami"]].concat());
    let errors = || host.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "web"]);
    host.until("the reason is shown", || {
        let errors = errors();
        errors
            .contains("starting container failed: driver failed programming external connectivity")
            && errors.contains("listen tcp4 0.0.0.0:8080: bind: address already in use")
    });
    drop(holder);
    host.until_running("web", 1);
    assert!(host.ask("127.0.0.1", 8080).is_some());
}

#[test]
fn a_task_whose_services_port_is_held_is_rejected_with_the_reason_until_it_is_free() {
    skep_only!("stock Docker does not notice: the service runs and never answers");
    let host = Host::in_swarm();
    let holder = Holder::on(&host, "8080");
    host.ok(&[&SERVICE[..], &["web", "--publish", "8080:80", "whoami"]].concat());
    let format = "{{.CurrentState}} {{.Error}}";
    let states = || host.ok(&["service", "ps", "--no-trunc", "--format", format, "web"]);
    host.until("the reason is shown", || {
        let states = states();
        let reason = "port 8080/tcp is held by another process on this host";
        states.lines().any(|line| line.starts_with("Rejected") && line.contains(reason))
    });
    drop(holder);
    host.until_running("web", 1);
    host.until("the service answers", || host.ask("127.0.0.1", 8080).is_some());
    host.ok(&["run", "-d", "--name", "box1", "-p", "8090:80", "whoami"]);
    host.ok(&[&SERVICE[..], &["late", "--publish", "8090:80", "whoami"]].concat());
    host.until("the reason is shown", || {
        let errors = host.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "late"]);
        errors.contains("port 8090/tcp is published by another container on this host")
    });
}

#[test]
fn a_running_service_keeps_its_port_against_processes_of_the_host() {
    skep_only!("stock Docker's own process holds the port");
    let host = Host::in_swarm();
    host.ok(&[&SERVICE[..], &["web", "--publish", "8080:80", "whoami"]].concat());
    host.until("the service answers", || host.ask("127.0.0.1", 8080).is_some());
    let taken = host.exec(&["timeout", "5", "/bin/busybox", "nc", "-l", "-p", "8080"]);
    assert!(taken.stderr.contains("Address already in use"), "{taken:?}");
}

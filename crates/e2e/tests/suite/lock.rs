//! Autolock: what a manager keeps is locked with a key that only operators have.

use e2e::{Host, Printed, is_skep, skep_only};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

const WORKER: &str = "Worker nodes can't be used to view or modify cluster state.";

pub(crate) fn local_state(host: &Host) -> String {
    host.ok(&["info", "--format", "{{.Swarm.LocalNodeState}}"])
}

pub(crate) fn unlock(host: &Host, key: &str) -> Printed {
    host.on_stdin(&["swarm", "unlock"], &format!("{key}\n"))
}

fn restart(host: &mut Host) {
    host.stop();
    host.start();
}

/// The file with the keys of this host's node.
fn keys(host: &Host) -> String {
    let file = if is_skep() { "identity.json" } else { "certificates/swarm-node.key" };
    let keys = std::fs::read_to_string(host.path("data/swarm").join(file));
    keys.expect("the node has keys")
}

/// The certificate of this host's node.
fn certificate(host: &Host) -> String {
    let file = if is_skep() { "identity.json" } else { "certificates/swarm-node.crt" };
    let text = std::fs::read_to_string(host.path("data/swarm").join(file));
    let text = text.expect("the node has a certificate");
    let end = text.find("-----END CERTIFICATE").expect("it is in PEM");
    text[..end].to_owned()
}

/// The files of this host's log.
fn log(host: &Host) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(host.path("data/swarm/raft")) else { return Vec::new() };
    let names = files.map(|file| file.expect("lists").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".log")).collect()
}

/// Whether they lie locked on its disk.
pub(crate) fn is_closed(host: &Host) -> bool {
    let keys = keys(host);
    keys.contains("ENCRYPTED PRIVATE KEY") || !keys.contains("PRIVATE KEY")
}

/// Joins the swarm of `manager`, whose network namespace it shares, on a port of its own.
fn join(host: &Host, manager: &Host, role: &str, port: u16) {
    let token = manager.ok(&["swarm", "join-token", "-q", role]);
    let address = format!("10.99.0.1:{port}");
    let flags = ["--listen-addr", &address, "--advertise-addr", &address];
    let arguments = [&["swarm", "join", "--token", &token][..], &flags, &["10.99.0.1:2377"]];
    host.ok(&arguments.concat());
}

#[test]
fn a_locked_manager_accepts_nothing_but_its_key() {
    let mut host = Host::new();
    let said = host.ok(&["swarm", "init", "--advertise-addr", "10.99.0.1", "--autolock"]);
    let told = "To unlock a swarm manager after it restarts, run the `docker swarm unlock`";
    assert!(said.contains(told), "{said}");
    let key = host.ok(&["swarm", "unlock-key", "-q"]);
    assert!(key.starts_with("SWMKEY-1-") && key.len() == 52 && said.contains(&key), "{key}");
    assert!(unlock(&host, &key).stderr.contains("swarm is not locked"));
    host.ok(&["service", "create", "--detach", "--name", "web", "--replicas", "0", "busybox"]);

    restart(&mut host);
    assert_eq!(local_state(&host), "locked");
    assert_eq!(host.ok(&["info", "--format", "{{.Swarm.Error}}"]), LOCKED);
    for arguments in [
        &["service", "ls"][..],
        &["node", "ls"],
        &["swarm", "unlock-key"],
        &["swarm", "join-token", "worker"],
        &["swarm", "update", "--autolock=false"],
    ] {
        let refusal = host.refused(arguments);
        assert!(refusal.contains(LOCKED), "{arguments:?}: {refusal}");
    }
    for arguments in [&["swarm", "init"][..], &["swarm", "join", "--token", "x", "10.99.0.1"]] {
        let refusal = host.refused(arguments);
        assert!(refusal.contains("This node is already part of a swarm."), "{refusal}");
    }
    let refusal = host.refused(&["swarm", "leave"]);
    assert!(refusal.contains("Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."), "{refusal}");
    let wrong = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8";
    for (key, words) in [
        (wrong, "swarm could not be unlocked: invalid key provided"),
        ("hello", "invalid key string"),
    ] {
        let refusal = unlock(&host, key).stderr;
        assert!(refusal.contains(words), "{refusal}");
    }
    assert_eq!(local_state(&host), "locked");

    let unlocked = unlock(&host, &key);
    assert_eq!(unlocked.code, 0, "{unlocked:?}");
    host.until("the swarm is there again", || host.docker(&["service", "ls", "-q"]).code == 0);
    assert_eq!(host.ok(&["service", "ls", "--format", "{{.Name}}"]), "web");
}

#[test]
fn a_locked_manager_can_be_given_up() {
    let mut host = Host::new();
    host.ok(&["swarm", "init", "--advertise-addr", "10.99.0.1", "--autolock"]);
    restart(&mut host);
    host.ok(&["swarm", "leave", "--force"]);
    assert_eq!(local_state(&host), "inactive");
    host.init();
    restart(&mut host);
    assert_eq!(local_state(&host), "active", "the new swarm is not locked");
}

#[test]
fn containers_run_on_while_their_manager_is_locked() {
    skep_only!("stock Docker's containers end with the daemon");
    let mut host = Host::in_swarm();
    host.ok(&["swarm", "update", "--autolock=true"]);
    super::sleeper(&host, "web", &[]);
    host.until_running("web", 1);
    let before = host.running("web");
    let key = host.ok(&["swarm", "unlock-key", "-q"]);
    host.until("the keys are locked", || is_closed(&host));
    restart(&mut host);
    assert_eq!(host.ok(&["ps", "-q", "--no-trunc"]), before[0]);
    assert_eq!(unlock(&host, &key).code, 0);
    host.until("the task is known again", || host.docker(&["service", "ls"]).code == 0);
    host.until_running("web", 1);
    let rows = host.ok(&["service", "ps", "--no-trunc", "web"]);
    assert_eq!(host.running("web"), before, "{rows}");
}

#[test]
fn autolock_is_turned_on_and_off_and_its_key_rotated() {
    let mut host = Host::new();
    host.init();
    assert!(host.refused(&["swarm", "unlock-key"]).contains("no unlock key is set"));
    assert!(!is_closed(&host));
    let (certificate, log) = (certificate(&host), log(&host));
    let said = host.ok(&["swarm", "update", "--autolock=true"]);
    assert!(said.contains("SWMKEY-1-"), "{said}");
    host.until("the keys are locked", || is_closed(&host));
    host.until("the key that lay open is no node's", || self::certificate(&host) != certificate);
    if is_skep() {
        let is_left = |name: &String| self::log(&host).contains(name);
        host.until("the log is written anew", || !log.iter().any(is_left));
    }
    let first = host.ok(&["swarm", "unlock-key", "-q"]);
    host.ok(&["swarm", "update", "--task-history-limit", "3"]);
    assert_eq!(host.ok(&["swarm", "unlock-key", "-q"]), first, "only a rotation changes it");
    let before = keys(&host);
    let second = host.ok(&["swarm", "unlock-key", "-q", "--rotate"]);
    assert_ne!(first, second);
    host.until("the keys are locked anew", || keys(&host) != before);
    restart(&mut host);
    let refusal = unlock(&host, &first).stderr;
    assert!(refusal.contains("invalid key provided"), "{refusal}");
    assert_eq!(unlock(&host, &second).code, 0);
    host.until("there is a leader", || host.docker(&["node", "ls"]).code == 0);
    host.ok(&["swarm", "update", "--autolock=false"]);
    host.until("the keys lie open", || !is_closed(&host));
    restart(&mut host);
    assert_eq!(local_state(&host), "active");
}

#[test]
fn every_manager_is_locked_and_no_worker() {
    skep_only!("stock Docker's daemons do not share a network namespace");
    let first = Host::new();
    first.ok(&["swarm", "init", "--advertise-addr", "10.99.0.1", "--autolock"]);
    let key = first.ok(&["swarm", "unlock-key", "-q"]);
    let (mut manager, mut worker) = (Host::beside(&first), Host::beside(&first));
    manager.start();
    worker.start();
    join(&manager, &first, "manager", 2378);
    assert!(is_closed(&manager), "it is locked before it says that it has joined");
    join(&worker, &first, "worker", 2379);
    assert!(!is_closed(&worker));

    restart(&mut worker);
    assert_eq!(local_state(&worker), "active");
    assert!(unlock(&worker, &key).stderr.contains("swarm is not locked"));
    let body = format!(r#"{{"UnlockKey":"{key}"}}"#);
    let (status, answer) = worker.post(&body, "/v1.41/swarm/unlock");
    assert!(status == 503 && answer.contains(WORKER), "{answer}");

    restart(&mut manager);
    assert_eq!(local_state(&manager), "locked");
    // It was away while the key was changed: the key it was locked with opens it, and then it is locked anew.
    let before = keys(&manager);
    assert_eq!(unlock(&manager, &key).code, 0);
    let rotated = manager.ok(&["swarm", "unlock-key", "-q", "--rotate"]);
    assert_ne!(rotated, key);
    manager.until("the follower's keys are locked anew", || keys(&manager) != before);
    restart(&mut manager);
    assert_eq!(unlock(&manager, &rotated).code, 0);

    // A demoted manager is a worker, which is never locked; a promoted worker is.
    let (demoted, promoted) = (manager.node(), worker.node());
    first.until("both managers are reachable", || {
        first.ok(&["node", "ls", "--format", "{{.ManagerStatus}}"]).contains("Reachable")
    });
    first.ok(&["node", "demote", &demoted]);
    manager.until("the demoted one's keys lie open", || !is_closed(&manager));
    first.ok(&["node", "promote", &promoted]);
    worker.until("the promoted one's keys are locked", || is_closed(&worker));
    restart(&mut manager);
    restart(&mut worker);
    assert_eq!((local_state(&manager), local_state(&worker)), ("active".into(), "locked".into()));
}

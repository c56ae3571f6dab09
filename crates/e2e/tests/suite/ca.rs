//! The swarm's root certificate: shown, rotated, given back, and asked for elsewhere.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Host, run, skep_only};
use serde_json::Value;

fn swarm(host: &Host) -> Value {
    host.get("/v1.41/swarm")
}

pub(crate) fn is_rotating(host: &Host) -> bool {
    swarm(host)["RootRotationInProgress"] == true
}

/// How many nodes show a certificate of the root that the swarm is at or goes to.
pub(crate) fn renewed(host: &Host) -> usize {
    let wanted = swarm(host)["TLSInfo"]["CertIssuerPublicKey"].clone();
    let nodes = host.get("/v1.41/nodes");
    let of = |node: &&Value| node["Description"]["TLSInfo"]["CertIssuerPublicKey"] == wanted;
    nodes.as_array().expect("a list").iter().filter(of).count()
}

/// Joins the swarm of `manager`, whose network namespace it shares, on a port of its own.
fn join(host: &Host, manager: &Host, role: &str, port: u16) {
    let token = manager.ok(&["swarm", "join-token", "-q", role]);
    let address = format!("10.99.0.1:{port}");
    let flags = ["--listen-addr", &address, "--advertise-addr", &address];
    let arguments = [&["swarm", "join", "--token", &token][..], &flags, &["10.99.0.1:2377"]];
    host.ok(&arguments.concat());
}

/// A root as an operator makes one; answers with the files of certificate and key.
fn own_root(host: &Host, name: &str) -> (String, String) {
    let path = |end: &str| host.path(&format!("{name}.{end}")).display().to_string();
    let (certificate, key) = (path("pem"), path("key"));
    let subject = format!("/O=Our company/CN={name}");
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj";
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).args([&subject, "-keyout", &key, "-out", &certificate]);
    run(&mut command);
    (certificate, key)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).expect("is there").trim().to_owned()
}

#[test]
fn the_root_is_shown_and_rotated_with_progress() {
    let host = Host::in_swarm();
    super::sleeper(&host, "web", &[]);
    host.until_running("web", 1);
    let running = host.running("web");
    let before = host.ok(&["swarm", "ca"]);
    assert!(before.starts_with("-----BEGIN CERTIFICATE-----"), "{before}");
    let token = host.ok(&["swarm", "join-token", "-q", "worker"]);
    let said = host.ok(&["swarm", "ca", "--rotate"]);
    for part in ["desired root digest: sha256:", "rotated TLS certificates:"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let after = host.ok(&["swarm", "ca"]);
    assert!(said.contains(&after) && after != before, "{said}");
    assert!(!is_rotating(&host) && renewed(&host) == 1);
    assert_ne!(host.ok(&["swarm", "join-token", "-q", "worker"]), token);
    let typed = host.on_terminal(&["swarm", "ca", "--rotate"], "");
    assert_eq!(typed.code, 0, "{typed:?}");
    assert!(typed.stdout.matches("1/1 nodes").count() >= 2, "{typed:?}");
    let quiet = host.ok(&["swarm", "ca", "--rotate", "--quiet"]);
    let last = host.ok(&["swarm", "ca"]);
    assert!(quiet.is_empty() && last != after, "{quiet}");
    assert_eq!(host.running("web"), running, "no task noticed");
}

#[test]
fn a_root_of_the_operators_own_is_taken_and_nonsense_refused() {
    let host = Host::in_swarm();
    let (certificate, key) = own_root(&host, "first");
    let (other, _) = own_root(&host, "second");
    let (certificate, key, other) = (certificate.as_str(), key.as_str(), other.as_str());
    let rotate = ["swarm", "ca", "--rotate", "--detach", "--ca-cert"];
    let elsewhere = ["--external-ca", "protocol=cfssl,url=https://127.0.0.1:1/sign"];
    for (flags, words) in [
        (&[other, "--ca-key", key][..], "certificate key mismatch"),
        (&[key, "--ca-key", key], "invalid root certificates:"),
        (
            &[other, elsewhere[0], elsewhere[1]],
            "there must be at least one valid, reachable external CA corresponding to",
        ),
    ] {
        let refusal = host.refused(&[&rotate[..], flags].concat());
        assert!(refusal.contains(words), "{flags:?}: {refusal}");
    }
    assert!(!is_rotating(&host));
    let files = ["--ca-cert", certificate, "--ca-key", key];
    host.ok(&[&["swarm", "ca", "--rotate", "--quiet"][..], &files].concat());
    assert_eq!(host.ok(&["swarm", "ca"]), read(certificate));
    let shown = swarm(&host)["Spec"]["CAConfig"].to_string();
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    host.ok(&["swarm", "update", "--task-history-limit", "3"]);
    assert_eq!(host.ok(&["swarm", "ca"]), read(certificate), "an update changes no root");
}

#[test]
fn a_node_that_is_away_keeps_a_rotation_open_until_it_is_back() {
    skep_only!("stock Docker's daemons do not share a network namespace");
    let first = Host::new();
    first.init();
    let (mut away, mut late) = (Host::beside(&first), Host::beside(&first));
    away.start();
    join(&away, &first, "worker", 2378);
    let (node, old) = (away.node(), first.ok(&["swarm", "ca"]));
    away.stop();
    let old_token = first.ok(&["swarm", "join-token", "-q", "worker"]);
    first.ok(&["swarm", "ca", "--rotate", "--detach"]);
    first.until("this node has its certificate", || renewed(&first) == 1);
    first.until("the other one counts as down", || {
        let told = first.docker(&["info"]);
        let told = told.stdout + &told.stderr;
        told.contains(
            "the rotation of the swarm's root certificate waits for nodes that are not there",
        ) && told.contains(&node)
    });
    assert!(is_rotating(&first));
    assert_eq!(first.ok(&["swarm", "join-token", "-q", "worker"]), old_token);

    // A second rotation takes the place of the first one; nodes can join meanwhile.
    first.ok(&["swarm", "ca", "--rotate", "--detach"]);
    first.until("this node has its certificate", || renewed(&first) == 1);
    late.start();
    join(&late, &first, "manager", 2379);
    first.until("the new node shows its certificate", || renewed(&first) == 2);
    assert!(is_rotating(&first));

    away.start();
    first.until("all have arrived", || !is_rotating(&first));
    assert_eq!(renewed(&first), 3);
    assert_ne!(first.ok(&["swarm", "ca"]), old);
    first.until("all trust the new root alone", || {
        let nodes = first.get("/v1.41/nodes");
        let root = swarm(&first)["TLSInfo"]["TrustRoot"].clone();
        let nodes = nodes.as_array().expect("a list");
        nodes.iter().all(|node| node["Description"]["TLSInfo"]["TrustRoot"] == root)
    });

    // Tokens name the new root, and the old ones open nothing any more.
    away.ok(&["swarm", "leave"]);
    let address = ["--listen-addr", "10.99.0.1:2378", "--advertise-addr", "10.99.0.1:2378"];
    let with = ["swarm", "join", "--token", &old_token];
    let refusal = away.refused(&[&with[..], &address, &["10.99.0.1:2377"]].concat());
    assert!(refusal.contains("remote CA does not match fingerprint."), "{refusal}");
    join(&away, &first, "worker", 2378);
}

#[test]
fn a_rotation_is_given_up_by_going_back_to_the_present_root() {
    skep_only!("stock Docker's daemons do not share a network namespace");
    let first = Host::new();
    first.init();
    let (certificate, key) = own_root(&first, "own");
    let files = ["--ca-cert", &certificate, "--ca-key", &key];
    first.ok(&[&["swarm", "ca", "--rotate", "--quiet"][..], &files].concat());
    let mut away = Host::beside(&first);
    away.start();
    join(&away, &first, "worker", 2378);
    away.stop();
    first.ok(&["swarm", "ca", "--rotate", "--detach"]);
    first.until("this node has its certificate", || renewed(&first) == 1);
    first.ok(&[&["swarm", "ca", "--rotate", "--detach"][..], &files].concat());
    assert!(!is_rotating(&first));
    first.until("this node is back as well", || renewed(&first) == 2);
    assert_eq!(first.ok(&["swarm", "ca"]), read(&certificate));
    away.start();
    first.until("both are ready", || {
        first.ok(&["node", "ls", "--format", "{{.Status}}"]) == "Ready\nReady"
    });
}

#[test]
fn certificates_take_the_life_that_is_set() {
    let host = Host::in_swarm();
    let life = |host: &Host| {
        let identity = std::fs::read_to_string(host.path("data/swarm/identity.json"));
        let identity: Value = serde_json::from_str(&identity.expect("is there")).expect("JSON");
        let pem: PathBuf = host.path("node.pem");
        std::fs::write(&pem, identity["certificate"].as_str().expect("PEM")).expect("written");
        let pem = pem.display().to_string();
        let dates = host.exec(&["openssl", "x509", "-in", &pem, "-noout", "-checkend", "7200"]);
        dates.code == 0
    };
    skep_only!("stock Docker keeps its certificate elsewhere");
    assert!(life(&host), "it lives for 90 days");
    host.ok(&["swarm", "ca", "--rotate", "--quiet", "--cert-expiry", "1h"]);
    let expiry = "{{.Swarm.Cluster.Spec.CAConfig.NodeCertExpiry}}";
    assert_eq!(host.ok(&["info", "--format", expiry]), "1h0m0s");
    assert!(!life(&host), "it lives for an hour");
}

/// Puts a certificate that has ended in place of the node's, signed as the swarm would.
fn expire(host: &Host, role: &str, root: &(String, String)) {
    let path = |name: &str| host.path(name).display().to_string();
    let file = host.path("data/swarm/identity.json");
    let mut identity: Value =
        serde_json::from_str(&read(&file.display().to_string())).expect("JSON");
    let key = identity["secrets"]["open"]["key"].as_str().expect("PEM");
    std::fs::write(path("node.key"), key).expect("written");
    std::fs::write(path("node.pem"), identity["certificate"].as_str().expect("PEM"))
        .expect("written");
    let openssl = |words: &str, more: &[&str]| {
        run(Command::new("openssl").args(words.split(' ')).args(more));
    };
    let name = ["-in", &path("node.pem"), "-noout", "-subject", "-nameopt", "RFC2253"];
    let name = Command::new("openssl").arg("x509").args(name).output().expect("runs").stdout;
    let name = String::from_utf8(name).expect("text");
    let part = |key: &str| {
        let found = name.trim().split([',', '=']).map(str::trim).skip_while(|word| *word != key);
        found.skip(1).map(str::to_owned).next().expect("is in the name")
    };
    let subject = format!("/O={}/OU=swarm-{role}/CN={}", part("O"), part("CN"));
    openssl("req -new -subj", &[&subject, "-key", &path("node.key"), "-out", &path("node.csr")]);
    std::fs::write(path("extensions"), "basicConstraints=CA:FALSE\n").expect("written");
    let (certificate, request) = (path("ended.pem"), path("node.csr"));
    let files = ["-in", &request, "-out", &certificate, "-CA", &root.0, "-CAkey", &root.1];
    openssl(
        "x509 -req -days 0 -CAcreateserial -extfile",
        &[&[path("extensions").as_str()][..], &files].concat(),
    );
    identity["certificate"] = format!("{}\n", read(&certificate)).into();
    std::fs::write(&file, identity.to_string()).expect("written");
    // Its last second counts in full.
    let made = Instant::now();
    host.until("the certificate has ended", || made.elapsed() > Duration::from_secs(2));
}

#[test]
fn expired_certificates_are_told_of_and_an_only_manager_renews_its_own() {
    skep_only!("stock Docker keeps its certificate elsewhere");
    let mut first = Host::new();
    first.init();
    let root = own_root(&first, "own");
    let files = ["--ca-cert", &root.0, "--ca-key", &root.1];
    first.ok(&[&["swarm", "ca", "--rotate", "--quiet"][..], &files].concat());
    let mut worker = Host::beside(&first);
    worker.start();
    join(&worker, &first, "worker", 2378);

    worker.stop();
    expire(&worker, "worker", &root);
    worker.start();
    let state = |host: &Host| host.ok(&["info", "--format", "{{.Swarm.LocalNodeState}}"]);
    let words = "Swarm certificates have expired. To replace them, leave the swarm and join again.";
    assert_eq!(state(&worker), "error");
    assert_eq!(worker.ok(&["info", "--format", "{{.Swarm.Error}}"]), words);
    assert!(worker.refused(&["node", "ls"]).contains(words));
    worker.ok(&["swarm", "leave"]);
    join(&worker, &first, "worker", 2378);
    assert_eq!(state(&worker), "active");

    first.stop();
    expire(&first, "manager", &root);
    first.start();
    first.until("it has signed a new one", || first.docker(&["node", "ls"]).code == 0);
    assert_eq!(state(&first), "active");
}

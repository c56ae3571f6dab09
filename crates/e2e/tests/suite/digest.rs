//! A service's image is pinned to the digest its registry has: by the client, or by the server for clients that do not.

use e2e::{Host, Registry};
use serde_json::{Value, json};

const IMAGE: &str = "127.0.0.1:5000/box:v1";

/// A swarm with a registry that has [`IMAGE`], and the image's digest.
fn with_registry() -> (Host, Registry, String) {
    let host = Host::in_swarm();
    let registry = Registry::on(&host);
    host.ok(&["tag", "busybox", IMAGE]);
    let pushed = host.ok(&["push", IMAGE]);
    let digest = pushed.split_whitespace().find(|word| word.starts_with("sha256:"));
    let digest = digest.expect("push tells the digest").to_owned();
    (host, registry, digest)
}

fn spec(image: &str) -> Value {
    let container = json!({"Image": image, "Args": ["sleep", "100000"], "StopSignal": "SIGKILL"});
    json!({
        "Name": "web", "TaskTemplate": {"ContainerSpec": container},
        "Mode": {"Replicated": {"Replicas": 0}}
    })
}

fn image_of(host: &Host) -> String {
    let spec = &host.get("/v1.41/services/web")["Spec"];
    let image = &spec["TaskTemplate"]["ContainerSpec"]["Image"];
    image.as_str().expect("an image").to_owned()
}

#[test]
fn the_server_pins_images_for_clients_that_are_too_old_to_do_it() {
    let (host, _registry, digest) = with_registry();
    let (status, answer) = host.post(&spec(IMAGE).to_string(), "/v1.29/services/create");
    assert_eq!(status, 201, "{answer}");
    assert_eq!(image_of(&host), format!("{IMAGE}@{digest}"));
    let version = host.get("/v1.41/services/web")["Version"]["Index"].clone();
    let mut changed = spec(IMAGE);
    changed["TaskTemplate"]["ForceUpdate"] = json!(1);
    let path = format!("/v1.29/services/web/update?version={version}");
    let (status, answer) = host.post(&changed.to_string(), &path);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(image_of(&host), format!("{IMAGE}@{digest}"));
}

#[test]
fn the_server_leaves_images_of_other_clients_as_they_are() {
    let (host, _registry, digest) = with_registry();
    let (status, answer) = host.post(&spec(IMAGE).to_string(), "/v1.41/services/create");
    assert_eq!(status, 201, "{answer}");
    assert_eq!(image_of(&host), IMAGE);
    host.ok(&[
        "service",
        "update",
        "--detach",
        "--no-resolve-image",
        "--image",
        "127.0.0.1:5000/box",
        "web",
    ]);
    assert_eq!(image_of(&host), "127.0.0.1:5000/box:latest");
    host.ok(&["service", "update", "--detach", "--image", IMAGE, "web"]);
    assert_eq!(image_of(&host), format!("{IMAGE}@{digest}"), "the command pins");
}

#[test]
fn an_image_that_no_registry_knows_is_warned_of() {
    let host = Host::in_swarm();
    let warning = "image 127.0.0.1:1/box:v1 could not be accessed on a registry to record\nits digest. Each node \
        will access 127.0.0.1:1/box:v1 independently,\npossibly leading to different nodes running different\n\
        versions of the image.\n";
    let (status, answer) =
        host.post(&spec("127.0.0.1:1/box:v1").to_string(), "/v1.29/services/create");
    assert_eq!(status, 201, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["Warnings"], json!([warning]));
    assert_eq!(image_of(&host), "127.0.0.1:1/box:v1");
    let base = ["service", "create", "--detach", "--replicas", "0", "--name", "other"];
    let printed = host.docker(&[&base[..], &["127.0.0.1:1/box:v1"]].concat());
    assert_eq!((printed.code, printed.stderr.trim_end()), (0, warning.trim_end()));
}

#[test]
fn a_raw_curl_without_a_version_gets_a_pinned_image() {
    e2e::skep_only!("Docker takes a path without a version for its newest");
    let (host, _registry, digest) = with_registry();
    let (status, answer) = host.curl(&["-d", &spec(IMAGE).to_string()], "/services/create");
    assert_eq!(status, 201, "{answer}");
    assert_eq!(image_of(&host), format!("{IMAGE}@{digest}"));
}

//! A registry that is open to all: what is pushed comes back the same, with the lines Docker shows.

use engine::images::event::ImageAction;
use engine::images::progress::Reporter;
use engine::images::reference::Reference;
use engine::registry;
use engine::registry::auth::Credentials;

use crate::node::{Node, layer};
use testbed::DockerRegistry;

/// Tells lines of one id from those of others, since layers go side by side.
fn about(lines: &[String], id: &str) -> Vec<String> {
    let prefix = format!("{id}: ");
    lines.iter().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
}

fn plain(lines: &[String]) -> Vec<&str> {
    let has_id = |l: &str| l.as_bytes().get(12) == Some(&b':') && !l[..12].contains(' ');
    lines.iter().map(String::as_str).filter(|l| !has_id(l)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_pulled_elsewhere_with_the_same_id_and_digest() {
    let registry = DockerRegistry::start();
    let name = format!("{}/team/app:1", registry.address);
    let (one, two) = (Node::new(), Node::new());
    let image = one.load(&name, &[layer("base", 3_000_000), layer("top", 1000)]);

    let (lines, result) = one.push(&name).await;
    result.unwrap();
    let pushed = one.images.find(&name).unwrap();
    let manifest = pushed.record.manifest.clone().unwrap();
    let summary = format!("1: digest: {} size: {}", manifest.digest, manifest.size);
    assert_eq!(
        plain(&lines),
        [
            &format!("The push refers to repository [{}/team/app]", registry.address),
            &summary,
            &format!(
                "Push {{ tag: \"1\", digest: \"{}\", size: {} }}",
                manifest.digest, manifest.size
            ),
        ]
    );
    for diff_id in &image.config.rootfs.diff_ids {
        assert_eq!(about(&lines, &diff_id.short()), ["Preparing", "Pushed"]);
    }

    let (lines, result) = two.pull(&name).await;
    result.unwrap();
    assert_eq!(
        plain(&lines),
        [
            "1: Pulling from team/app",
            &format!("Digest: {}", manifest.digest),
            &format!("Status: Downloaded newer image for {name}"),
        ]
    );
    for blob in &pushed.record.layers {
        assert_eq!(
            about(&lines, &blob.digest.short()),
            ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"]
        );
    }
    let pulled = two.images.find(&name).unwrap();
    assert_eq!((pulled.id, &pulled.config), (image.id, &image.config));
    let references: Vec<String> =
        two.images.references_of(&image.id).iter().map(Reference::to_string).collect();
    assert_eq!(
        references,
        [format!("{}/team/app@{}", registry.address, manifest.digest), name.clone()]
    );

    let (lines, result) = two.pull(&name).await;
    result.unwrap();
    assert_eq!(lines[2], format!("Status: Image is up to date for {name}"));
    let pinned = format!("{}/team/app@{}", registry.address, manifest.digest);
    let (lines, result) = two.pull(&pinned).await;
    result.unwrap();
    assert_eq!(lines[0], format!("{}: Pulling from team/app", manifest.digest));
    assert_eq!(lines[2], format!("Status: Image is up to date for {pinned}"));
    assert_eq!((one.leftovers(), two.leftovers()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_there_already_are_neither_sent_nor_fetched() {
    let registry = DockerRegistry::start();
    let address = &registry.address;
    let node = Node::new();
    let (base, top) = (layer("base", 5000), layer("top", 5000));
    let image = node.load(&format!("{address}/a:1"), std::slice::from_ref(&base));
    let app = node.load(&format!("{address}/b:1"), &[base.clone(), top.clone()]);
    node.push(&format!("{address}/a:1")).await.1.unwrap();
    let diff_ids = &app.config.rootfs.diff_ids;

    let (lines, result) = node.push(&format!("{address}/b:1")).await;
    result.unwrap();
    assert_eq!(about(&lines, &diff_ids[0].short()), ["Preparing", "Mounted from a"]);
    assert_eq!(about(&lines, &diff_ids[1].short()), ["Preparing", "Pushed"]);
    let (lines, result) = node.push(&format!("{address}/b:1")).await;
    result.unwrap();
    assert_eq!(about(&lines, &diff_ids[1].short()), ["Preparing", "Layer already exists"]);

    let blob = node.images.get(&app.id).unwrap().record.layers[0].digest;
    let digests = node.images.references_of(&app.id);
    assert!(digests.iter().any(|r| r.digest().is_some()));
    node.remove(&format!("{address}/b:1"));
    assert!(node.images.get(&app.id).is_none());
    let (lines, result) = node.pull(&format!("{address}/b:1")).await;
    result.unwrap();
    assert_eq!(about(&lines, &blob.short()), ["Already exists"]);
    assert_eq!(node.images.find(&format!("{address}/b:1")).unwrap().id, app.id);
    assert!(node.images.get(&image.id).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tags_of_a_repository_go_and_come_at_once() {
    let registry = DockerRegistry::start();
    let repository = format!("{}/multi", registry.address);
    let (one, two) = (Node::new(), Node::new());
    let image = one.load(&format!("{repository}:a"), &[layer("x", 100)]);
    one.images.tag(&image, &format!("{repository}:b").parse().unwrap()).unwrap();
    one.push(&repository).await.1.unwrap();
    two.pull(&repository).await.1.unwrap();
    for tag in ["a", "b"] {
        assert_eq!(two.images.find(&format!("{repository}:{tag}")).unwrap().id, image.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused_in_dockers_words() {
    let registry = DockerRegistry::start();
    let address = &registry.address;
    let node = Node::new();
    node.load(&format!("{address}/app:1"), &[layer("x", 100)]);
    node.push(&format!("{address}/app:1")).await.1.unwrap();
    for (name, message) in [
        (
            format!("{address}/app:2"),
            format!("manifest for {address}/app:2 not found: manifest unknown: manifest unknown"),
        ),
        (
            format!("{address}/none:1"),
            format!("manifest for {address}/none:1 not found: manifest unknown: manifest unknown"),
        ),
        (
            format!("{address}/app@sha256:{}", "0".repeat(64)),
            format!(
                "manifest for {address}/app@sha256:{} not found: manifest unknown: manifest unknown",
                "0".repeat(64)
            ),
        ),
    ] {
        let error = node.pull(&name).await.1.unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.kind(), engine::ErrorKind::NotFound);
    }
    for (name, message) in [
        (
            format!("{address}/none"),
            format!("An image does not exist locally with the tag: {address}/none"),
        ),
        (format!("{address}/app:2"), format!("tag does not exist: {address}/app:2")),
    ] {
        assert_eq!(node.push(&name).await.1.unwrap_err().to_string(), message);
    }
    drop(registry);
    let closed = node.pull("127.0.0.1:1/app:1").await.1.unwrap_err();
    assert_eq!(
        closed.to_string(),
        "Get \"http://127.0.0.1:1/v2/app/manifests/1\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_image_is_resolved_to_its_digest() {
    let registry = DockerRegistry::start();
    let name = format!("{}/app:1", registry.address);
    let node = Node::new();
    let image = node.load(&name, &[layer("x", 100)]);
    node.push(&name).await.1.unwrap();
    let reference: Reference = name.parse().unwrap();
    let resolved = node.images.resolve(&reference, &Credentials::default()).await.unwrap();
    let manifest = node.images.get(&image.id).unwrap().record.manifest.clone().unwrap();
    assert_eq!((resolved.digest, resolved.size), (manifest.digest, manifest.size));
    assert_eq!(resolved.platforms, [image.platform()]);
    let pinned = reference.pinned(resolved.digest);
    assert_eq!(pinned.familiar(), format!("{name}@{}", manifest.digest));
    node.pull(&pinned.to_string()).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_what_it_has_of_docker_hub() {
    let registry = DockerRegistry::start();
    let source = Node::new();
    let image = source.load("x:1", &[layer("x", 100)]);
    let name = format!("{}/library/x:1", registry.address);
    source.images.tag(&image, &name.parse().unwrap()).unwrap();
    source.push(&name).await.1.unwrap();

    let mirrors =
        ["http://127.0.0.1:1".to_owned(), format!("http://{}", registry.address)].to_vec();
    let node = Node::with(registry::Config { mirrors, ..registry::Config::default() });
    let mut events = node.images.subscribe();
    let (lines, result) = node.pull("x:1").await;
    result.unwrap();
    assert_eq!(lines[0], "1: Pulling from library/x");
    assert_eq!(node.images.find("x:1").unwrap().id, image.id);
    let event = events.recv().await.unwrap();
    assert_eq!((event.action, event.id.as_str()), (ImageAction::Pull, "x:1"));
    assert_eq!(event.attributes["name"], "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_be_removed_and_compressed_while_another_shares_its_layers() {
    let registry = DockerRegistry::start();
    let node = Node::new();
    let shared = layer("shared", 10_000);
    let name = format!("{}/one:1", registry.address);
    node.load(&name, std::slice::from_ref(&shared));
    let other = node.load("other:1", &[shared.clone(), layer("own", 10)]);
    node.push(&name).await.1.unwrap();
    node.remove(&name);
    let other = node.images.get(&other.id).unwrap();
    let mut archive = Vec::new();
    let saved = node.images.select_saved(&["other:1".to_owned()]).unwrap();
    node.images.save(&saved, &mut archive).unwrap();
    let elsewhere = Node::new();
    elsewhere.images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    assert_eq!(elsewhere.images.find("other:1").unwrap().id, other.id);
}

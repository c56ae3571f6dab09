//! Registries that break off, lie, send too much, or know only what we do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::images::digest::Digest;
use engine::registry;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;

use crate::node::{Node, config_of, layer};
use crate::server::{Body, Fake, Seen, respond};

/// An image as a registry has it.
struct Stored {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Stored {
    fn of(layers: Vec<Vec<u8>>) -> Self {
        let config = config_of(&layers);
        let blob = |kind: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
        };
        let tar = "application/vnd.oci.image.layer.v1.tar";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| blob(tar, l)).collect::<Vec<_>>(),
        });
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), config, layers }
    }

    /// What an honest registry answers.
    fn answer(&self, seen: &Seen) -> Response<Body> {
        if seen.path.starts_with("/v2/app/manifests/") {
            return respond(200, self.manifest.clone());
        }
        match self.blob(seen) {
            Some(bytes) => respond(200, bytes),
            None => respond(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
        }
    }

    fn blob(&self, seen: &Seen) -> Option<Vec<u8>> {
        let digest: Digest = seen.path.strip_prefix("/v2/app/blobs/")?.parse().ok()?;
        let mut blobs = self.layers.iter().chain([&self.config]);
        blobs.find(|b| Digest::of(b) == digest).cloned()
    }
}

/// The first `count` bytes of a body that promises more.
fn cut(bytes: &[u8], count: usize) -> Body {
    let pieces = [
        Ok(hyper::body::Frame::data(bytes[..count].to_vec().into())),
        Err(std::io::Error::other("cut off by the test")),
    ];
    StreamBody::new(futures::stream::iter(pieces)).boxed()
}

fn offset_of(seen: &Seen) -> Option<usize> {
    let range = seen.headers.get("range")?.to_str().ok()?;
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn partial(bytes: &[u8], offset: usize) -> Response<Body> {
    let mut response = respond(206, bytes[offset..].to_vec());
    let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
    response.headers_mut().insert("content-range", range.parse().unwrap());
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let stored = Stored::of(vec![layer("big", 4 << 20)]);
    let breaks = AtomicUsize::new(0);
    let registry = Fake::start(move |seen| match (stored.blob(seen), offset_of(seen)) {
        (Some(bytes), None) if bytes.len() > 1 << 20 => {
            breaks.fetch_add(1, Ordering::SeqCst);
            Response::new(cut(&bytes, 3 << 20))
        }
        (Some(bytes), Some(offset)) => partial(&bytes, offset),
        _ => stored.answer(seen),
    })
    .await;
    let node = Node::new();
    node.pull(&format!("{}/app:1", registry.address)).await.1.unwrap();
    let seen = registry.seen.lock().unwrap();
    let offsets: Vec<usize> = seen.iter().filter_map(offset_of).collect();
    assert_eq!(offsets.len(), 1);
    assert!(offsets[0] >= 1 << 20 && offsets[0] <= 3 << 20, "{offsets:?}");
    assert_eq!(node.leftovers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_resume_sends_all_again() {
    let stored = Stored::of(vec![layer("big", 4 << 20)]);
    let asked = AtomicUsize::new(0);
    let registry = Fake::start(move |seen| match stored.blob(seen) {
        Some(bytes) if bytes.len() > 1 << 20 && asked.fetch_add(1, Ordering::SeqCst) == 0 => {
            Response::new(cut(&bytes, 3 << 20))
        }
        _ => stored.answer(seen),
    })
    .await;
    let node = Node::new();
    node.pull(&format!("{}/app:1", registry.address)).await.1.unwrap();
    let seen = registry.seen.lock().unwrap();
    assert_eq!(seen.iter().filter_map(offset_of).count(), 1, "it was asked to resume");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_cancelled_is_continued_by_the_next() {
    let stored = Stored::of(vec![layer("big", 4 << 20)]);
    let registry = Fake::start(move |seen| match (stored.blob(seen), offset_of(seen)) {
        (Some(bytes), None) if bytes.len() > 1 << 20 => {
            let start = futures::stream::iter([Ok(hyper::body::Frame::data(
                bytes[..3 << 20].to_vec().into(),
            ))]);
            let silence = futures::stream::pending();
            Response::new(StreamBody::new(futures::StreamExt::chain(start, silence)).boxed())
        }
        (Some(bytes), Some(offset)) => partial(&bytes, offset),
        _ => stored.answer(seen),
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", registry.address);
    let partial_dir = node.path().join("images/partial");
    let has_partial = || std::fs::read_dir(&partial_dir).unwrap().count() == 1;
    {
        let pull = std::pin::pin!(node.pull(&name));
        // Until enough has come that it is worth keeping.
        let enough = async {
            while !std::fs::read_dir(node.path().join("images/tmp"))
                .unwrap()
                .any(|f| f.unwrap().metadata().is_ok_and(|m| m.len() >= 2 << 20))
            {
                tokio::task::yield_now().await;
            }
        };
        assert!(matches!(
            futures::future::select(pull, std::pin::pin!(enough)).await,
            futures::future::Either::Right(_)
        ));
    }
    while !has_partial() {
        tokio::task::yield_now().await;
    }
    node.pull(&name).await.1.unwrap();
    assert_eq!(registry.seen.lock().unwrap().iter().filter_map(offset_of).count(), 1);
    assert!(!has_partial());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_its_digest_says_leaves_nothing() {
    let honest = || Stored::of(vec![layer("x", 1000), layer("y", 1000)]);
    let bad = Digest::of(&honest().layers[1]);
    let tampered = Fake::start(move |seen| {
        let stored = honest();
        match stored.blob(seen) {
            Some(mut bytes) if Digest::of(&bytes) == bad => {
                bytes[600] ^= 1;
                respond(200, bytes)
            }
            _ => stored.answer(seen),
        }
    })
    .await;
    let node = Node::new();
    let error = node.pull(&format!("{}/app:1", tampered.address)).await.1.unwrap_err();
    assert_eq!(error.to_string(), format!("filesystem layer verification failed for digest {bad}"));
    assert_eq!((node.blobs(), node.leftovers()), (0, 0));

    let longer = Fake::start(move |seen| {
        let stored = honest();
        match stored.blob(seen) {
            Some(mut bytes) if Digest::of(&bytes) == bad => {
                bytes.extend([0; 100]);
                respond(200, bytes)
            }
            _ => stored.answer(seen),
        }
    })
    .await;
    let error = node.pull(&format!("{}/app:1", longer.address)).await.1.unwrap_err();
    assert_eq!(error.to_string(), format!("filesystem layer verification failed for digest {bad}"));

    let wanted = Digest::of(b"another manifest");
    let error = node.pull(&format!("{}/app@{wanted}", tampered.address)).await.1.unwrap_err();
    assert_eq!(error.to_string(), format!("manifest verification failed for digest {wanted}"));
    assert_eq!((node.blobs(), node.leftovers()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_no_image_for_this_machine_are_refused_clearly() {
    let index = json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, "digest": Digest::of(b"{}"),
          "platform": { "os": "linux", "architecture": "s390x" } },
    ]});
    let chart = json!({ "schemaVersion": 2, "layers": [], "config":
        { "mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2, "digest": Digest::of(b"{}") } });
    let host = engine::images::platform::Platform::host();
    for (document, message) in [
        (
            json!({ "schemaVersion": 1, "fsLayers": [] }).to_string(),
            "{name} is in the form of Docker's manifest schema 1, which is not supported; its author can push it anew in a current form".to_owned(),
        ),
        (index.to_string(), format!("no matching manifest for {host} in the manifest list entries")),
        (chart.to_string(), "unsupported media type \"application/vnd.cncf.helm.config.v1+json\": this is no image".to_owned()),
        ("[]".to_owned(), "invalid manifest: ".to_owned()),
        ("x".repeat(5 << 20), "registry answer has more than 4194304 bytes".to_owned()),
    ] {
        let registry = Fake::start(move |_| respond(200, document.clone())).await;
        let name = format!("{}/app:1", registry.address);
        let error = Node::new().pull(&name).await.1.unwrap_err().to_string();
        assert!(error.starts_with(&message.replace("{name}", &name)), "{error} / {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_for_this_machine() {
    let stored = Arc::new(Stored::of(vec![layer("x", 1000)]));
    let host = engine::images::platform::Platform::host();
    let entry = |digest: Digest, architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1, "digest": digest,
                "platform": { "os": "linux", "architecture": architecture } })
    };
    let digest = Digest::of(&stored.manifest);
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(Digest::of(b"other"), "s390x"), entry(digest, &host.architecture)] });
    let index = index.to_string();
    let expected = Digest::of(index.as_bytes());
    let registry = Fake::start(move |seen| {
        if seen.path == "/v2/app/manifests/1" || seen.path.ends_with(&expected.to_string()) {
            return respond(200, index.clone());
        }
        stored.answer(seen)
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", registry.address);
    let (lines, result) = node.pull(&name).await;
    result.unwrap();
    assert!(lines.contains(&format!("Digest: {expected}")));
    let image = node.images.find(&name).unwrap();
    assert_eq!(image.record.manifest.as_ref().unwrap().digest, digest);
    assert!(node.images.find(&format!("{}/app@{expected}", registry.address)).is_ok());
    let credentials = engine::registry::auth::Credentials::default();
    let resolved = node.images.resolve(&name.parse().unwrap(), &credentials).await.unwrap();
    assert_eq!((resolved.digest, resolved.platforms.len()), (expected, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_of_one_image_fetch_each_layer_once() {
    let stored = Stored::of((0..6).map(|n| layer(&"n".repeat(n + 1), 50_000)).collect());
    let registry = Fake::start(move |seen| stored.answer(seen)).await;
    let node = Node::new();
    let name = format!("{}/app:1", registry.address);
    let (one, two) = tokio::join!(node.pull(&name), node.pull(&name));
    one.1.unwrap();
    two.1.unwrap();
    let mut blobs = registry.paths("GET");
    blobs.retain(|p| p.contains("/blobs/"));
    let config = blobs.len() - 6;
    assert!(config <= 2, "six layers once each, the configuration at most twice: {blobs:?}");
    let mut lines = one.0.iter().chain(&two.0);
    assert!(lines.any(|l| l.ends_with(": Waiting")), "three at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_may_lie_elsewhere_and_errors_that_pass_are_tried_again() {
    let stored = Arc::new(Stored::of(vec![layer("x", 1000)]));
    let storage = {
        let stored = Arc::clone(&stored);
        Fake::start(move |_| respond(200, stored.layers[0].clone())).await
    };
    let (blob, target) =
        (Digest::of(&stored.layers[0]), format!("http://{}/x?signed=1", storage.address));
    let failures = AtomicUsize::new(0);
    let registry = Fake::start(move |seen| {
        if !seen.path.ends_with(&blob.to_string()) {
            return stored.answer(seen);
        }
        if failures.fetch_add(1, Ordering::SeqCst) == 0 {
            return respond(503, "busy");
        }
        let mut response = respond(307, "");
        response.headers_mut().insert("location", target.parse().unwrap());
        response
    })
    .await;
    Node::new().pull(&format!("{}/app:1", registry.address)).await.1.unwrap();
    assert_eq!(storage.paths("GET"), ["/x?signed=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_redirects_end() {
    let registry = Fake::start(|seen| {
        let mut response = respond(302, "");
        response.headers_mut().insert("location", format!("{}x", seen.path).parse().unwrap());
        response
    })
    .await;
    let error = Node::new().pull(&format!("{}/app:1", registry.address)).await.1.unwrap_err();
    assert!(error.to_string().ends_with(": too many redirects"), "{error}");
    assert_eq!(registry.paths("GET").len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_takes_blobs_in_one_piece_only_gets_them_so() {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let registry = Fake::start(move |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("HEAD", _) => respond(404, ""),
        ("POST", _) => {
            let mut response = respond(202, "");
            response.headers_mut().insert("location", "/upload?state=1".parse().unwrap());
            response
        }
        ("PATCH", _) => respond(405, ""),
        ("PUT", path) if path.starts_with("/upload?state=1&digest=") => {
            let digest = path.rsplit('=').next().unwrap().replace("%3A", ":");
            assert_eq!(Digest::of(&seen.body).to_string(), digest);
            count.fetch_add(1, Ordering::SeqCst);
            respond(201, "")
        }
        ("PUT", _) => respond(201, ""),
        _ => respond(200, ""),
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", registry.address);
    node.load(&name, &[layer("x", 300_000)]);
    node.push(&name).await.1.unwrap();
    assert_eq!(taken.load(Ordering::SeqCst), 2, "a layer and a configuration");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_lie_where_docker_looks_for_them() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let client_key = rcgen::KeyPair::generate().unwrap();
    let client = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let client = client.signed_by(&client_key, &issuer).unwrap();

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let server_key =
        rustls_pki_types::PrivateKeyDer::try_from(issuer.key().serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![ca.der().clone()], server_key)
        .unwrap();
    let stored = Stored::of(vec![layer("x", 1000)]);
    let registry = Fake::start_tls(Some(tls), move |seen| stored.answer(seen)).await;
    let name = format!("{}/app:1", registry.address);

    let error = Node::new().pull(&name).await.1.unwrap_err();
    assert!(error.to_string().starts_with("Get \"http"), "{error}");
    assert!(registry.seen.lock().unwrap().is_empty(), "no certificate, no answer");

    let certs = tempfile::tempdir().unwrap();
    let host = certs.path().join(&registry.address);
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(host.join("client.cert"), client.pem()).unwrap();
    std::fs::write(host.join("client.key"), client_key.serialize_pem()).unwrap();
    let certs_dir = Some(certs.path().to_owned());
    let node = Node::with(registry::Config { certs_dir, ..registry::Config::default() });
    node.pull(&name).await.1.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_reached_through_a_proxy() {
    let stored = Arc::new(Stored::of(vec![layer("x", 1000)]));
    let proxy = {
        let stored = Arc::clone(&stored);
        Fake::start(move |seen| {
            let is_known =
                seen.headers.get("proxy-authorization").is_some_and(|a| a == "Basic dTpw");
            match seen.path.strip_prefix("http://registry.invalid:5000") {
                Some(path) if is_known => {
                    stored.answer(&Seen { path: path.to_owned(), ..seen.clone() })
                }
                _ => respond(403, ""),
            }
        })
        .await
    };
    let address = format!("http://u:p@{}", proxy.address);
    let proxies = registry::proxy::Proxies {
        http: Some(address.parse().unwrap()),
        https: Some(address.parse().unwrap()),
        exempt: registry::proxy::Exempt::default(),
    };
    let insecure = vec!["registry.invalid:5000".parse().unwrap()];
    let node = Node::with(registry::Config { proxies, insecure, ..registry::Config::default() });
    node.pull("registry.invalid:5000/app:1").await.1.unwrap();
    let connects = proxy.paths("CONNECT");
    assert_eq!(connects, ["registry.invalid:5000"], "TLS was tried first, through a tunnel");
    let error = node.pull("secure.invalid/app:1").await.1.unwrap_err().to_string();
    assert!(error.ends_with("proxyconnect tcp: 403 Forbidden"), "{error}");
}

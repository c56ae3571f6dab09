//! Registries that ask who we are: by password, and by token as Docker Hub does.

use docker_types::image::AuthConfig;
use engine::registry::Registry;
use engine::registry::auth::Credentials;
use engine::{ErrorKind, registry};

use crate::node::{Node, layer};
use testbed::DockerRegistry;

use crate::server::{Fake, body, respond};
use crate::token::TokenServer;

/// `user` with the password `secret`, hashed by bcrypt.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn user(password: &str) -> AuthConfig {
    AuthConfig {
        username: "user".to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_passwords_takes_the_right_one_only() {
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let registry = DockerRegistry::with_auth(|_| {
        format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", htpasswd.display())
    });
    let name = format!("{}/app:1", registry.address);
    let url = format!("http://{}/v2/app", registry.address);
    let node = Node::new();
    node.load(&name, &[layer("x", 100)]);

    let blob = node.push(&name).await.1.unwrap_err().to_string();
    assert!(blob.starts_with(&format!("Head \"{url}/blobs/sha256:")), "{blob}");
    assert!(blob.ends_with(": no basic auth credentials"), "{blob}");
    let error = node.push_as(&name, user("wrong")).await.1.unwrap_err();
    assert_eq!(error.to_string(), "unauthorized: authentication required");
    node.push_as(&name, user("secret")).await.1.unwrap();

    let elsewhere = Node::new();
    let error = elsewhere.pull(&name).await.1.unwrap_err();
    assert_eq!(error.to_string(), format!("Get \"{url}/manifests/1\": no basic auth credentials"));
    let error = elsewhere.pull_as(&name, user("wrong")).await.1.unwrap_err();
    assert_eq!(error.to_string(), "unauthorized: authentication required");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    elsewhere.pull_as(&name, user("secret")).await.1.unwrap();

    let login = async |password: &str| {
        let auth = AuthConfig { serveraddress: registry.address.clone(), ..user(password) };
        Registry::new(registry::Config::default()).login(&Credentials::new(auth)).await
    };
    login("secret").await.unwrap();
    let refused = login("wrong").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "login attempt to http://{}/v2/ failed with status: 401 Unauthorized",
            registry.address
        )
    );
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_as_docker_hub_wants_it() {
    let tokens = TokenServer::start().await;
    let registry = DockerRegistry::with_auth(|_| tokens.registry_config());
    let address = &registry.address;
    let name = format!("{address}/team/app:1");
    let node = Node::new();
    node.load(&name, &[layer("x", 100), layer("y", 100)]);
    node.push_as(&name, user("secret")).await.1.unwrap();

    let asked = tokens.asked();
    assert!(asked.iter().all(|a| a.account.as_deref() == Some("user")), "{asked:?}");
    assert!(asked.iter().any(|a| a.scopes == ["repository:team/app:pull,push"]), "{asked:?}");
    assert!(asked.iter().all(|a| a.service == "test-registry"));
    assert!(asked.len() <= 2, "one token does for all layers: {asked:?}");

    // Another repository's blobs are mounted with a token for both.
    let other = format!("{address}/team/other:1");
    let image = node.images.find(&name).unwrap();
    node.images.tag(&image, &other.parse().unwrap()).unwrap();
    let (lines, result) = node.push_as(&other, user("secret")).await;
    result.unwrap();
    assert_eq!(lines.iter().filter(|l| l.ends_with("Mounted from team/app")).count(), 2);

    let elsewhere = Node::new();
    elsewhere.pull_as(&name, user("secret")).await.1.unwrap();
    assert_eq!(elsewhere.images.find(&name).unwrap().id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_reach_is_a_denial_and_a_wrong_password_is_said_to_be() {
    let tokens = TokenServer::start().await;
    let registry = DockerRegistry::with_auth(|_| tokens.registry_config());
    let node = Node::new();
    let private = format!("{}/team/app:1", registry.address);
    let error = node.pull(&private).await.1.unwrap_err();
    let short = format!("{}/team/app", registry.address);
    assert_eq!(
        error.to_string(),
        format!(
            "pull access denied for {short}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
        )
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let error = node.pull_as(&private, user("wrong")).await.1.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "Get \"http://{}/v2/team/app/manifests/1\": unauthorized: incorrect username or password",
            registry.address
        )
    );
    assert_eq!(error.kind(), ErrorKind::Unauthorized);

    // Anybody may read what is public.
    let public = format!("{}/public/app:1", registry.address);
    let error = node.pull(&public).await.1.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("manifest for {public} not found: manifest unknown: manifest unknown")
    );
    node.load(&public, &[layer("x", 100)]);
    let error = node.push(&public).await.1.unwrap_err();
    assert_eq!(error.to_string(), "denied: requested access to the resource is denied");

    let wrong = AuthConfig { registrytoken: "not.a.token".to_owned(), ..AuthConfig::default() };
    let error = node.pull_as(&public, wrong).await.1.unwrap_err();
    assert_eq!(error.to_string(), "unauthorized: authentication required");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_changed_for_an_access_token() {
    let realm = Fake::start(|seen| {
        let body = String::from_utf8(seen.body.to_vec()).unwrap();
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/token"));
        assert!(
            body.contains("grant_type=refresh_token") && body.contains("refresh_token=identity")
        );
        assert!(body.contains("scope=repository%3Aapp%3Apull&"), "{body}");
        respond(200, r#"{"access_token":"granted"}"#)
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", realm.address);
    let registry = Fake::start(move |seen| {
        if seen.headers.get("authorization").is_some_and(|a| a == "Bearer granted") {
            return respond(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
        }
        let mut response = respond(401, "");
        response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        response
    })
    .await;
    let auth = AuthConfig { identitytoken: "identity".to_owned(), ..AuthConfig::default() };
    let name = format!("{}/app:1", registry.address);
    let error = Node::new().pull_as(&name, auth).await.1.unwrap_err();
    assert!(error.to_string().contains("manifest unknown"), "{error}");
    assert_eq!(realm.paths("POST"), ["/token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_to_see_credentials() {
    let storage = Fake::start(|_| respond(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)).await;
    let elsewhere = format!("http://{}/blob", storage.address);
    let registry = Fake::start(move |seen| {
        if seen.headers.get("authorization").is_none() {
            let mut response = respond(401, "");
            response.headers_mut().insert("www-authenticate", "Basic realm=x".parse().unwrap());
            return response;
        }
        let mut response = http::Response::new(body(""));
        *response.status_mut() = http::StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert("location", elsewhere.parse().unwrap());
        response
    })
    .await;
    let name = format!("{}/app:1", registry.address);
    Node::new().pull_as(&name, user("secret")).await.1.unwrap_err();
    let seen = storage.seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|s| s.headers.get("authorization").is_none()));
}

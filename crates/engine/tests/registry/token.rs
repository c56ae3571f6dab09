//! A token server as the one of Docker Hub, for a registry that trusts its key.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::server::{Fake, Seen, respond};

/// What somebody asked a token for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) account: Option<String>,
    pub(crate) service: String,
    pub(crate) scopes: Vec<String>,
}

/// Knows `user` with the password `secret`, who may do all; others may read `public/`.
pub(crate) struct TokenServer {
    fake: Fake,
    asked: Arc<Mutex<Vec<Asked>>>,
    dir: tempfile::TempDir,
}

impl TokenServer {
    pub(crate) async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["tokens".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokens.crt"), certificate.pem()).unwrap();
        let signer =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der())
                .unwrap();
        let chain = STANDARD.encode(certificate.der());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let fake = Fake::start(move |seen| {
            let request = read(seen);
            log.lock().unwrap().push(request.clone());
            let authorization = seen.headers.get("authorization").map(|a| a.to_str().unwrap());
            let right = format!("Basic {}", STANDARD.encode("user:secret"));
            match authorization {
                Some(a) if a != right => {
                    respond(401, r#"{"details":"incorrect username or password"}"#)
                }
                known => {
                    let token = sign(&signer, &chain, &request, known.is_some());
                    respond(200, json!({ "token": token, "expires_in": 300 }).to_string())
                }
            }
        })
        .await;
        Self { fake, asked, dir }
    }

    /// The registry's configuration that sends clients here.
    pub(crate) fn registry_config(&self) -> String {
        format!(
            "auth: {{token: {{realm: 'http://{}/token', service: test-registry, issuer: tests, \
             rootcertbundle: {}}}}}\n",
            self.fake.address,
            self.dir.path().join("tokens.crt").display()
        )
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(seen: &Seen) -> Asked {
    let mut asked = Asked::default();
    let query = seen.path.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap();
        let value = value.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        match key {
            "account" => asked.account = Some(value),
            "service" => asked.service = value,
            "scope" => asked.scopes.push(value),
            other => panic!("odd parameter {other}"),
        }
    }
    asked
}

fn sign(signer: &EcdsaKeyPair, chain: &str, asked: &Asked, is_user: bool) -> String {
    let access: Vec<_> = asked
        .scopes
        .iter()
        .filter_map(|scope| {
            let mut parts = scope.split(':');
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let actions: Vec<&str> = match () {
                () if is_user => actions.split(',').collect(),
                () if name.starts_with("public/") => vec!["pull"],
                () => return None,
            };
            Some(json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [chain] });
    let claims = json!({
        "iss": "tests", "sub": "", "aud": "test-registry", "jti": "1",
        "nbf": now - 10, "iat": now, "exp": now + 300, "access": access,
    });
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = signer.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

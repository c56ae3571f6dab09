//! An external authority signs: a small server in place of cfssl, which can be made to misbehave.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ca::{NodeCertificate, Subject};
use consensus::DataKey;
use manager::{Bootstrap, Bootstrapped, Manager, Rotation, now};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rpc::{Identity, SharedIdentity};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use types::cluster::{ExternalCa, RootCa};
use types::node::Availability;
use types::{ClusterSpec, NodeId};

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Sign,
    /// As it should, but under a root of its own.
    SignUnderAnother,
    /// For another node than asked for.
    SignAnother,
    Complain,
    Babble,
    Fail,
    HangUp,
}

#[derive(Debug)]
struct Authority {
    root: RootCa,
    address: SocketAddr,
    manner: Mutex<Manner>,
}

impl Authority {
    async fn start() -> Arc<Self> {
        let root = ca::generate(seconds()).expect("generates");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let authority = Arc::new(Self { root, address, manner: Mutex::new(Manner::Sign) });
        let acceptor = TlsAcceptor::from(authority.tls());
        let own = authority.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().answer(acceptor.clone(), stream));
            }
        });
        authority
    }

    fn tls(&self) -> Arc<ServerConfig> {
        let key = KeyPair::from_pem(&self.root.key).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&self.root.certificate, key).expect("a root");
        let key = KeyPair::generate().expect("generates");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&key, &issuer).expect("signs").der().clone();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("certificate and key fit");
        Arc::new(config)
    }

    async fn answer(self: Arc<Self>, acceptor: TlsAcceptor, stream: TcpStream) {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("the body comes");
        let request: Value = serde_json::from_slice(&body).expect("JSON");
        let Some((status, answer)) = self.decide(&request) else { return };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all((head + &answer).as_bytes()).await.expect("is taken");
        let _ = stream.shutdown().await;
    }

    fn decide(&self, request: &Value) -> Option<(u16, String)> {
        let names = &request["subject"]["names"][0];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let role = match names["OU"].as_str() {
            Some("swarm-manager") => types::node::Role::Manager,
            _ => types::node::Role::Worker,
        };
        let mut subject = Subject {
            node: text(&request["subject"]["CN"]).parse().expect("a node"),
            role,
            cluster: text(&names["O"]).parse().expect("a cluster"),
        };
        assert_eq!(request["hosts"], json!([text(&names["OU"]), subject.node.to_string()]));
        let manner = *self.manner.lock().expect("whole");
        let other = ca::generate(seconds()).expect("generates");
        let root = match manner {
            Manner::SignUnderAnother => &other,
            _ => &self.root,
        };
        match manner {
            Manner::Complain => {
                let complaint = json!({"success": false, "result": null, "errors": [{"code": 1, "message": "policy forbids it"}]});
                return Some((200, complaint.to_string()));
            }
            Manner::Babble => return Some((200, "<html>welcome</html>".into())),
            Manner::Fail => return Some((500, String::new())),
            Manner::HangUp => return None,
            Manner::SignAnother => subject.node = NodeId::from_random(rand::random()),
            Manner::Sign | Manner::SignUnderAnother => {}
        }
        let request = text(&request["certificate_request"]);
        let signed = ca::sign(root.signer(), &request, &subject, 7_200, seconds());
        let signed = signed.expect("signs");
        Some((200, json!({"success": true, "result": {"certificate": signed}}).to_string()))
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().expect("whole") = manner;
    }

    fn external(&self) -> ExternalCa {
        ExternalCa {
            protocol: "cfssl".into(),
            url: format!("https://{}/api/v1/cfssl/sign", self.address),
            ca_cert: self.root.certificate.clone(),
            ..ExternalCa::default()
        }
    }
}

fn seconds() -> i64 {
    now().as_nanos() / 1_000_000_000
}

fn config(directory: &tempfile::TempDir) -> consensus::Config {
    let directory = directory.path().join("raft");
    consensus::Config { directory, raft_id: 1, keys: DataKey::new([7; 32]).into() }
}

fn first_node(spec: ClusterSpec, request: String) -> Bootstrap {
    Bootstrap {
        node: NodeId::from_random(1),
        raft_id: 1,
        address: "127.0.0.1:2377".into(),
        request,
        availability: Availability::Active,
        spec,
        unlock_key: None,
        data_path_port: 4_789,
        default_address_pools: vec!["10.0.0.0/8".into()],
        subnet_size: 24,
    }
}

async fn bootstrap(
    directory: &tempfile::TempDir,
    spec: ClusterSpec,
) -> Result<(Bootstrapped, String), manager::Error> {
    let (key, request) = ca::new_request().expect("generates");
    let made = Manager::bootstrap(&config(directory), first_node(spec, request)).await?;
    Ok((made, key))
}

fn with_external(external: ExternalCa) -> ClusterSpec {
    let mut spec = ClusterSpec::default();
    spec.ca.external = vec![external];
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_begins_with_a_root_whose_key_it_never_has() {
    let authority = Authority::start().await;
    let directory = tempfile::tempdir().expect("directory");
    let (made, _) = bootstrap(&directory, with_external(authority.external())).await.expect("made");
    assert_eq!(made.roots, authority.root.certificate);
    let digest = ca::issuer_digest(&made.roots, &made.certificate).expect("parses");
    assert_eq!(digest, authority.root.digest);
    let node = NodeCertificate::from_pem(&made.certificate).expect("parses").subject.node;
    assert_eq!(node, NodeId::from_random(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_misbehaves_is_not_believed() {
    let authority = Authority::start().await;
    for (manner, words) in [
        (Manner::SignUnderAnother, "is not signed by the swarm's root"),
        (Manner::SignAnother, "names another subject than was asked for"),
        (Manner::Complain, "it says: policy forbids it"),
        (Manner::Babble, "its answer is not cfssl's"),
        (Manner::Fail, "status 500"),
        (Manner::HangUp, "the external CA does not sign: https://"),
    ] {
        authority.behave(manner);
        let directory = tempfile::tempdir().expect("directory");
        let refusal = bootstrap(&directory, with_external(authority.external())).await;
        let refusal = refusal.expect_err("is refused").to_string();
        assert!(refusal.contains(words), "{manner:?}: {refusal}");
    }
    let impostor = Authority::start().await;
    let external = ExternalCa { url: impostor.external().url, ..authority.external() };
    let directory = tempfile::tempdir().expect("directory");
    let refusal = bootstrap(&directory, with_external(external)).await;
    let refusal = refusal.expect_err("is refused").to_string();
    assert!(refusal.contains("invalid peer certificate"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_external_authorities_are_checked() {
    let authority = Authority::start().await;
    let good = authority.external();
    for (external, words) in [
        (ExternalCa { protocol: "smoke".into(), ..good.clone() }, "unknown external CA protocol"),
        (ExternalCa { url: "http://ca/sign".into(), ..good.clone() }, "begins with https://"),
        (ExternalCa { ca_cert: String::new(), ..good.clone() }, "add cacert=FILE"),
        (ExternalCa { ca_cert: "hello".into(), ..good }, "it is no PEM certificate"),
    ] {
        let directory = tempfile::tempdir().expect("directory");
        let refusal = bootstrap(&directory, with_external(external)).await;
        let refusal = refusal.expect_err("is refused").to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_goes_to_an_external_root_that_is_reached() {
    let authority = Authority::start().await;
    let directory = tempfile::tempdir().expect("directory");
    let (made, key) = bootstrap(&directory, ClusterSpec::default()).await.expect("made");
    let identity = Identity { certificate: made.certificate, key, roots: made.roots.clone() };
    let identity = SharedIdentity::new(&identity).expect("is usable");
    let manager = Manager::open(&config(&directory), identity, &[]).await.expect("opens");
    manager.read().await.expect("there is a leader");
    let (_, request) = ca::new_request().expect("generates");
    let node = NodeId::from_random(1);
    let issued = manager.renew(node, request.clone()).await.expect("signs with the own key");
    assert_eq!(issued.roots, made.roots);

    let cluster = manager.cluster().expect("is there");
    let mut spec = cluster.spec.clone();
    spec.ca.signing_cert = authority.root.certificate.clone();
    let nowhere = ExternalCa { url: "https://127.0.0.1:1/sign".into(), ..authority.external() };
    spec.ca.external = vec![nowhere];
    let version = cluster.meta.version;
    let refusal = manager.update_cluster(version, spec.clone(), Rotation::default()).await;
    let refusal = refusal.expect_err("is refused").to_string();
    assert!(
        refusal.contains("there must be at least one valid, reachable external CA"),
        "{refusal}"
    );

    spec.ca.external.push(authority.external());
    manager.update_cluster(version, spec, Rotation::default()).await.expect("begins");
    let issued = manager.renew(node, request).await.expect("signs elsewhere");
    assert!(issued.roots.starts_with(&made.roots) && issued.roots.len() > made.roots.len());
    let digest = ca::issuer_digest(&issued.roots, &issued.certificate).expect("parses");
    assert_eq!(digest, authority.root.digest);
    assert_eq!(issued.certificate.matches("BEGIN CERTIFICATE").count(), 2, "with the way back");
    assert_eq!(manager.rotation_waits_for().len(), 1);
    assert_eq!(manager.cluster().expect("is there").root_ca.digest, cluster.root_ca.digest);
    manager.close().await;
}

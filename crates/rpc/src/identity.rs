//! Who a node is to others, and whom it believes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::watch;
use types::node::Role;
use types::{ClusterId, NodeId};

use crate::Error;
use crate::pipe::ALPN as PIPE_ALPN;

/// A node's certificate, its key, and the roots it trusts; all PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
    /// One root; two while the swarm goes from one to the next.
    pub roots: String,
}

impl std::fmt::Debug for Identity {
    /// Leaves the key out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A node at the other end, as its certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub role: Role,
    pub cluster: ClusterId,
}

impl Peer {
    /// The node of a connection's first certificate, which TLS has verified.
    pub(crate) fn of(certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let certificate = ca::NodeCertificate::from_der(certificates.first()?).ok()?;
        let ca::Subject { node, role, cluster } = certificate.subject;
        Some(Self { node, role, cluster })
    }
}

/// The certificates that the other end of a connection has shown, and who it is by them.
pub(crate) fn shown(tls: &rustls::CommonState) -> (Vec<CertificateDer<'static>>, Option<Peer>) {
    let shown = tls.peer_certificates().unwrap_or_default();
    let shown: Vec<_> = shown.iter().map(|shown| shown.clone().into_owned()).collect();
    let peer = Peer::of(&shown);
    (shown, peer)
}

/// The identity in use, made ready for TLS.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) cluster: ClusterId,
    /// What believes those who call.
    callers: Arc<dyn ClientCertVerifier>,
    /// What believes those who are called.
    called: Arc<WebPkiServerVerifier>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// The same for pipes.
    pub(crate) pipe: Arc<ClientConfig>,
}

/// A node's identity, which can be renewed while connections go on. New ones use the new one.
#[derive(Clone, Debug)]
pub struct SharedIdentity {
    ready: Arc<ArcSwap<Ready>>,
    replaced: watch::Sender<()>,
}

/// Which side of a connection the other one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Calls,
    IsCalled,
}

/// Longest sleep between two looks at a peer's certificate: clocks are set and hosts sleep.
const LOOK_INTERVAL: Duration = Duration::from_secs(60 * 60);

impl SharedIdentity {
    /// # Errors
    /// [`Error::Identity`] when certificate, key or roots cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        let ready = Arc::new(ArcSwap::from_pointee(Ready::new(identity)?));
        Ok(Self { ready, replaced: watch::Sender::new(()) })
    }

    /// Puts a renewed identity in place of the present one.
    ///
    /// # Errors
    /// As [`SharedIdentity::new`]; the present one stays then.
    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        self.ready.store(Arc::new(Ready::new(identity)?));
        self.replaced.send_replace(());
        Ok(())
    }

    pub(crate) fn ready(&self) -> Arc<Ready> {
        self.ready.load_full()
    }

    /// Waits until a peer's certificates are not believed any more: their life has ended, or their root was given up.
    /// A connection does not outlive what it began with.
    pub(crate) async fn distrust(
        &self,
        certificates: &[CertificateDer<'static>],
        side: Side,
    ) -> String {
        let mut replaced = self.replaced.subscribe();
        loop {
            if let Err(error) = self.ready().verify(certificates, side) {
                return error.to_string();
            }
            let end =
                certificates.first().and_then(|first| ca::NodeCertificate::from_der(first).ok());
            let left = end.map_or(0, |end| end.not_after.saturating_sub(seconds_now()));
            // Its last second counts in full.
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1);
            tokio::select! {
                changed = replaced.changed() => if changed.is_err() { std::future::pending().await },
                () = tokio::time::sleep(left.min(LOOK_INTERVAL)) => {}
            }
        }
    }
}

fn seconds_now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
const ALPN: &[u8] = b"h2";

impl Ready {
    fn new(identity: &Identity) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Identity(reason);
        let parsed = ca::NodeCertificate::from_pem(&identity.certificate)
            .map_err(|error| unusable(error.to_string()))?;
        let chain = certificates(&identity.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())
            .map_err(|error| unusable(format!("key: {error}")))?;
        let roots = Arc::new(root_store(&identity.roots)?);
        let tls = |error: rustls::Error| unusable(error.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let called = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(tls)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        server.alpn_protocols = vec![ALPN.to_vec(), PIPE_ALPN.to_vec()];
        // A resumed session would be judged by a certificate that may have been replaced since.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(tls)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let mut pipe = client.clone();
        pipe.alpn_protocols = vec![PIPE_ALPN.to_vec()];
        Ok(Self {
            cluster: parsed.subject.cluster,
            callers: verifier,
            called,
            server: Arc::new(server),
            client: Arc::new(client),
            pipe: Arc::new(pipe),
        })
    }
}

impl Ready {
    /// Whether a peer's certificates would be believed now.
    fn verify(&self, shown: &[CertificateDer<'static>], side: Side) -> Result<(), rustls::Error> {
        let Some((first, others)) = shown.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let now = UnixTime::now();
        match side {
            Side::Calls => self.callers.verify_client_cert(first, others, now).map(drop),
            Side::IsCalled => {
                let name = manager_name();
                self.called.verify_server_cert(first, others, &name, &[], now).map(drop)
            }
        }
    }
}

/// The name that every manager answers to.
pub(crate) fn manager_name() -> ServerName<'static> {
    ServerName::try_from(ca::server_name(Role::Manager)).expect("a plain name")
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Identity(error.to_string()))
}

fn root_store(pem: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in certificates(pem)? {
        store.add(root).map_err(|error| Error::Identity(error.to_string()))?;
    }
    Ok(store)
}

/// TLS of a node that has no certificate yet and trusts `roots`, or, without them, whoever answers: what it hears then
/// counts only once it is compared with a digest.
pub(crate) fn anonymous(roots: Option<&str>) -> Result<Arc<ClientConfig>, Error> {
    let tls = |error: rustls::Error| Error::Identity(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(tls)?;
    let mut config = match roots {
        Some(roots) => builder.with_root_certificates(root_store(roots)?).with_no_client_auth(),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider())))
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS towards who is no node, and has a certificate of one of `roots` (PEM) or of a public authority.
pub(crate) fn outside(
    roots: &[&str],
    identity: Option<&SharedIdentity>,
) -> Result<Arc<ClientConfig>, Error> {
    let mut store = RootCertStore::empty();
    store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for root in roots {
        store.roots.extend(root_store(root)?.roots);
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Identity(error.to_string()))?
        .with_root_certificates(store);
    Ok(Arc::new(match identity {
        Some(identity) => builder
            .with_client_cert_resolver(identity.ready().client.client_auth_cert_resolver.clone()),
        None => builder.with_no_client_auth(),
    }))
}

/// Takes any certificate. Only for reading the root, which is then compared with the join token's digest.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

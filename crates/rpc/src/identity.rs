//! Who a node is to others, and whom it believes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use types::node::Role;
use types::{ClusterId, NodeId};

use crate::Error;

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

/// The identity in use, made ready for TLS.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) cluster: ClusterId,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

/// A node's identity, which can be renewed while connections go on. New ones use the new one.
#[derive(Clone, Debug)]
pub struct SharedIdentity(Arc<ArcSwap<Ready>>);

impl SharedIdentity {
    /// # Errors
    /// [`Error::Identity`] when certificate, key or roots cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Ready::new(identity)?))))
    }

    /// Puts a renewed identity in place of the present one.
    ///
    /// # Errors
    /// As [`SharedIdentity::new`]; the present one stays then.
    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        self.0.store(Arc::new(Ready::new(identity)?));
        Ok(())
    }

    pub(crate) fn ready(&self) -> Arc<Ready> {
        self.0.load_full()
    }
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
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
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
        Ok(Self {
            cluster: parsed.subject.cluster,
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
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

//! TLS towards registries: whom to trust, and who we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::config::Endpoint;
use super::error::Error;

/// Where distributions keep the certificates they trust; the first that is there counts.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Files in one host's directory of certificates that are looked at.
const CERTIFICATE_FILES_MAX: usize = 64;

/// The configuration for one endpoint.
///
/// # Errors
/// Files of the host's certificate directory that cannot be read or used.
pub(super) fn client_config(
    endpoint: &Endpoint,
    certs_dir: Option<&Path>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of the default versions");
    let files = HostFiles::find(endpoint, certs_dir);
    let builder = if endpoint.is_insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
    } else {
        builder.with_root_certificates(roots(&files.authorities)?)
    };
    match files.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect);
            let bad = |source| Error::Certificate { path: certificate.clone(), source };
            let chain = chain.map_err(bad)?;
            let key_der = PrivateKeyDer::from_pem_file(&key)
                .map_err(|source| Error::Certificate { path: key, source })?;
            builder
                .with_client_auth_cert(chain, key_der)
                .map_err(|source| Error::UseCertificate { path: certificate, source })
        }
    }
}

/// What the system trusts, and the host's own authorities. Without a system bundle, Mozilla's list
/// as it was when this was built.
fn roots(authorities: &[PathBuf]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let bundle = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    if let Some(bundle) = bundle
        && let Ok(certificates) = CertificateDer::pem_file_iter(bundle)
    {
        roots.add_parsable_certificates(certificates.flatten());
    }
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for path in authorities {
        let bad = |source| Error::Certificate { path: path.clone(), source };
        for certificate in CertificateDer::pem_file_iter(path).map_err(bad)? {
            roots
                .add(certificate.map_err(bad)?)
                .map_err(|source| Error::UseCertificate { path: path.clone(), source })?;
        }
    }
    Ok(roots)
}

/// What an administrator has laid down for one registry: `*.crt` are authorities, `*.cert` with the
/// `*.key` of the same name is who we are.
#[derive(Default)]
struct HostFiles {
    authorities: Vec<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl HostFiles {
    fn find(endpoint: &Endpoint, certs_dir: Option<&Path>) -> Self {
        let mut files = Self::default();
        let Some(dir) = certs_dir.map(|dir| dir.join(&endpoint.authority)) else { return files };
        let Ok(entries) = fs::read_dir(dir) else { return files };
        let mut paths: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).take(CERTIFICATE_FILES_MAX).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => files.authorities.push(path),
                Some("cert") if files.client.is_none() => {
                    let key = path.with_extension("key");
                    files.client = Some((path, key));
                }
                _ => {}
            }
        }
        files
    }
}

/// Takes any certificate, as asked for by `--insecure-registry`. Signatures are still checked, so
/// that the connection is with whoever holds the certificate.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl NoVerification {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.0.signature_verification_algorithms
    }
}

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

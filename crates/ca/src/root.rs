//! The root certificate: ECDSA P-256, named `swarm-ca`, valid for 20 years as Docker's.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use types::cluster::RootCa;
use types::node::TlsInfo;
use x509_parser::pem::parse_x509_pem;

use crate::Error;
use crate::token::{JoinToken, digest, new_secret};

const VALID_YEARS: i32 = 20;

/// Makes a new root with new tokens. `now` is in seconds since 1970.
pub fn generate(now: i64) -> Result<RootCa, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "swarm-ca");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Backdated by an hour: clocks of nodes differ.
    let start = time::OffsetDateTime::from_unix_timestamp(now - 3600).map_err(|_| Error::Parse)?;
    params.not_before = start;
    params.not_after = start.replace_year(start.year() + VALID_YEARS).unwrap_or(start);
    let certificate = params.self_signed(&key)?;
    let digest = digest(certificate.der());
    Ok(RootCa {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        worker_token: JoinToken::new(&digest, &new_secret()).to_string(),
        manager_token: JoinToken::new(&digest, &new_secret()).to_string(),
        digest,
        ..RootCa::default()
    })
}

/// The digest of a root, as join tokens carry it.
///
/// # Errors
/// [`Error::Parse`] for what is no certificate.
pub fn digest_of(root: &str) -> Result<String, Error> {
    let (_, pem) = parse_x509_pem(root.as_bytes()).map_err(|_| Error::Parse)?;
    pem.parse_x509().map_err(|_| Error::Parse)?;
    Ok(digest(&pem.contents))
}

/// What nodes and `swarm inspect` say about the root they trust.
pub fn tls_info(root: &RootCa) -> Result<TlsInfo, Error> {
    let (_, pem) = parse_x509_pem(root.certificate.as_bytes()).map_err(|_| Error::Parse)?;
    let certificate = pem.parse_x509().map_err(|_| Error::Parse)?;
    Ok(TlsInfo {
        trust_root: root.certificate.clone(),
        issuer_subject: certificate.subject().as_raw().to_vec(),
        issuer_public_key: certificate.public_key().raw.to_vec(),
    })
}

/// What a node says of its certificate and the roots it trusts; both PEM.
///
/// # Errors
/// [`Error::Parse`] for what is no certificate.
pub fn node_tls_info(roots: &str, certificate: &str) -> Result<TlsInfo, Error> {
    let node = crate::NodeCertificate::from_pem(certificate)?;
    let issuer = roots_in(roots)?.into_iter().find(|root| root.subject == node.issuer_subject);
    let issuer = issuer.ok_or(Error::Parse)?;
    Ok(TlsInfo {
        trust_root: roots.to_owned(),
        issuer_subject: issuer.subject,
        issuer_public_key: issuer.public_key,
    })
}

struct Root {
    subject: Vec<u8>,
    public_key: Vec<u8>,
}

fn roots_in(pem: &str) -> Result<Vec<Root>, Error> {
    let mut roots = Vec::new();
    for pem in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let pem = pem.map_err(|_| Error::Parse)?;
        let certificate = pem.parse_x509().map_err(|_| Error::Parse)?;
        roots.push(Root {
            subject: certificate.subject().as_raw().to_vec(),
            public_key: certificate.public_key().raw.to_vec(),
        });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_names_itself_and_pins_its_tokens() {
        let root = generate(1_700_000_000).expect("generates");
        let info = tls_info(&root).expect("parses");
        assert!(info.issuer_subject.windows(8).any(|window| window == b"swarm-ca"));
        let token: JoinToken = root.worker_token.parse().expect("well formed");
        assert_eq!(token.digest, root.digest);
        assert_ne!(root.worker_token, root.manager_token);
    }
}

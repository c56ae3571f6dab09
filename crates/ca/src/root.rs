//! The root certificate: ECDSA P-256, named `swarm-ca`, valid for 20 years as Docker's.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use types::cluster::RootCa;
use types::node::TlsInfo;
use x509_parser::pem::{Pem, parse_x509_pem};

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

/// The root of an external authority, which has its key, with new tokens. `now` is in seconds since 1970.
///
/// # Errors
/// [`Error::NotARoot`].
pub fn of_external(certificate: &str, now: i64) -> Result<RootCa, Error> {
    let certificate = normalized(certificate)?;
    crate::rotation::check_root(&certificate, now)?;
    let digest = digest_of(&certificate)?;
    Ok(RootCa {
        certificate,
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

/// The certificate in `found` (PEM) when it is the one that a token names and nothing is shown with it.
///
/// # Errors
/// [`Error::Parse`] when it is not among them.
pub fn pinned(found: &str, wanted: &str) -> Result<String, Error> {
    let alone = normalized(found).map_err(|_| Error::Parse)?;
    match digest_of(&alone)? == wanted {
        true => Ok(alone),
        false => Err(Error::Parse),
    }
}

/// What `swarm inspect` says about the root that the swarm is at, or goes to.
pub fn tls_info(root: &RootCa) -> Result<TlsInfo, Error> {
    let trust_root = root.signer().certificate;
    let parsed = certificates(trust_root)?;
    let certificate = parsed.first().ok_or(Error::Parse)?;
    let certificate = certificate.parse_x509().map_err(|_| Error::Parse)?;
    Ok(TlsInfo {
        trust_root: trust_root.to_owned(),
        issuer_subject: certificate.subject().as_raw().to_vec(),
        issuer_public_key: certificate.public_key().raw.to_vec(),
    })
}

/// What a node says of its certificate and the roots it trusts; both PEM.
///
/// # Errors
/// [`Error::Parse`] for what is no certificate, and for one of another root.
pub fn node_tls_info(roots: &str, certificate: &str) -> Result<TlsInfo, Error> {
    let issuer = issuer(roots, certificate)?;
    let issuer = issuer.parse_x509().map_err(|_| Error::Parse)?;
    Ok(TlsInfo {
        trust_root: roots.to_owned(),
        issuer_subject: issuer.subject().as_raw().to_vec(),
        issuer_public_key: issuer.public_key().raw.to_vec(),
    })
}

/// The digest of the root that a node's certificate is signed by; both PEM.
///
/// # Errors
/// As [`node_tls_info`].
pub fn issuer_digest(roots: &str, certificate: &str) -> Result<String, Error> {
    Ok(digest(&issuer(roots, certificate)?.contents))
}

/// What has signed `certificate`: a root, or, when its root is given up, what is shown behind it. Roots may all have
/// the same name, so only the signature tells.
fn issuer(roots: &str, certificate: &str) -> Result<Pem, Error> {
    let mut shown = certificates(certificate)?.into_iter();
    let leaf = shown.next().ok_or(Error::Parse)?;
    let leaf = leaf.parse_x509().map_err(|_| Error::Parse)?;
    for pem in certificates(roots)?.into_iter().chain(shown) {
        let root = pem.parse_x509().map_err(|_| Error::Parse)?;
        if leaf.verify_signature(Some(root.public_key())).is_ok() {
            return Ok(pem);
        }
    }
    Err(Error::Parse)
}

/// One certificate as we keep it: PEM alone, with a line feed at its end.
pub(crate) fn normalized(pem: &str) -> Result<String, Error> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let (begin, end) = (pem.find(BEGIN), pem.find(END));
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(Error::NotARoot("it is no PEM certificate"));
    };
    if pem.matches(BEGIN).count() != 1 || begin > end {
        return Err(Error::ManyRoots);
    }
    Ok(format!("{}\n", pem[begin..end + END.len()].replace('\r', "")))
}

/// Every certificate of a PEM text.
pub(crate) fn certificates(pem: &str) -> Result<Vec<Pem>, Error> {
    Pem::iter_from_buffer(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| Error::Parse)
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

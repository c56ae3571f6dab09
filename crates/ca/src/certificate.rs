//! Certificates of nodes: who a node is, in which role, of which swarm.
//!
//! CN is the node, OU its role, O the swarm, as in Docker Swarm. The role stands in the names as well, so that a client
//! that asks for a manager by its fixed name is answered by nobody else.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _,
};
use types::cluster::Signer;
use types::node::Role;
use types::{ClusterId, NodeId};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;
use crate::root::{certificates, normalized};

const MANAGER: &str = "swarm-manager";
const WORKER: &str = "swarm-worker";

/// Backdated by an hour: clocks of nodes differ.
const BACKDATED_SECONDS: i64 = 3_600;

/// The name that a node of this role answers to in TLS.
pub fn server_name(role: Role) -> &'static str {
    match role {
        Role::Manager => MANAGER,
        Role::Worker => WORKER,
    }
}

/// A new key and the request to have it signed, both PEM. The key never leaves the node.
pub fn new_request() -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((key.serialize_pem(), request.pem()?))
}

/// What a certificate says of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub node: NodeId,
    pub role: Role,
    pub cluster: ClusterId,
}

/// A certificate's subject and life, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    pub subject: Subject,
    pub not_before: i64,
    pub not_after: i64,
    /// DER of the name and the public key of who signed it.
    pub issuer_subject: Vec<u8>,
}

/// Signs the key of `request` for `subject`. Nothing else that the request asks for is granted.
///
/// `now` and `lifetime` are seconds. Answers with PEM: the certificate, and behind it what those need who do not know
/// the issuer yet.
///
/// # Errors
/// [`Error::Request`] for what is no request or is not signed with its own key.
pub fn sign(
    signer: Signer<'_>,
    request: &str,
    subject: &Subject,
    lifetime: i64,
    now: i64,
) -> Result<String, Error> {
    let request = CertificateSigningRequestParams::from_pem(request).map_err(|_| Error::Request)?;
    let issuer = Issuer::from_ca_cert_pem(signer.certificate, KeyPair::from_pem(signer.key)?)?;
    let role = server_name(subject.role);
    let names = vec![role.to_owned(), subject.node.to_string()];
    let mut params = CertificateParams::new(names)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, subject.cluster.to_string());
    name.push(DnType::OrganizationalUnitName, role);
    name.push(DnType::CommonName, subject.node.to_string());
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = time_at(now - BACKDATED_SECONDS)?;
    params.not_after = time_at(now + lifetime)?;
    let leaf = params.signed_by(&request.public_key, &issuer)?.pem();
    Ok(leaf + signer.intermediate.unwrap_or_default())
}

/// Looks at what an external authority has issued for `request`; all PEM. Answers as [`sign`].
///
/// # Errors
/// [`Error::BadIssue`] when it is not what was asked for: nodes would not believe it, or believe too much.
pub fn check_issued(
    signer: Signer<'_>,
    request: &str,
    subject: &Subject,
    issued: &str,
    now: i64,
) -> Result<String, Error> {
    let no_certificate = |_| Error::BadIssue("is no PEM certificate alone");
    let leaf = normalized(issued).map_err(no_certificate)?;
    let parsed = certificates(&leaf).map_err(no_certificate)?;
    let parsed = parsed.first().ok_or(Error::BadIssue("is no PEM certificate alone"))?;
    let parsed = parsed.parse_x509().map_err(|_| Error::BadIssue("is no PEM certificate alone"))?;
    let node = NodeCertificate::from_pem(&leaf);
    if node.ok().is_none_or(|node| node.subject != *subject) {
        return Err(Error::BadIssue("names another subject than was asked for"));
    }
    if parsed.is_ca() {
        return Err(Error::BadIssue("may sign others"));
    }
    let wanted = CertificateSigningRequestParams::from_pem(request).map_err(|_| Error::Request)?;
    if wanted.public_key.subject_public_key_info() != parsed.public_key().raw {
        return Err(Error::BadIssue("is for another key than was asked for"));
    }
    let root = certificates(signer.certificate)?;
    let root = root.first().ok_or(Error::Parse)?.parse_x509().map_err(|_| Error::Parse)?;
    if parsed.verify_signature(Some(root.public_key())).is_err() {
        return Err(Error::BadIssue("is not signed by the swarm's root"));
    }
    let role = server_name(subject.role);
    let names = parsed.subject_alternative_name().ok().flatten();
    let is_role = |name: &GeneralName<'_>| *name == GeneralName::DNSName(role);
    if names.is_none_or(|names| !names.value.general_names.iter().any(is_role)) {
        return Err(Error::BadIssue("does not have the role among its names"));
    }
    let validity = parsed.validity();
    if !(validity.not_before.timestamp()..validity.not_after.timestamp()).contains(&now) {
        return Err(Error::BadIssue("is not valid now: compare the clocks"));
    }
    Ok(leaf + signer.intermediate.unwrap_or_default())
}

fn time_at(seconds: i64) -> Result<time::OffsetDateTime, Error> {
    time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Parse)
}

impl NodeCertificate {
    /// # Errors
    /// [`Error::Parse`] for what is no certificate of a swarm's node.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Error::Parse)?;
        let subject = certificate.subject();
        let first = |mut names: std::vec::IntoIter<String>| names.next().ok_or(Error::Parse);
        let text = |names: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            let texts: Vec<_> =
                names.iter().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
            first(texts.into_iter())
        };
        let node = text(subject.iter_common_name().collect())?;
        let role = text(subject.iter_organizational_unit().collect())?;
        let cluster = text(subject.iter_organization().collect())?;
        let role = match role.as_str() {
            MANAGER => Role::Manager,
            WORKER => Role::Worker,
            _ => return Err(Error::Parse),
        };
        Ok(Self {
            subject: Subject {
                node: node.parse().map_err(|_| Error::Parse)?,
                role,
                cluster: cluster.parse().map_err(|_| Error::Parse)?,
            },
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            issuer_subject: certificate.issuer().as_raw().to_vec(),
        })
    }

    /// # Errors
    /// [`Error::Parse`] for what is no certificate of a swarm's node.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| Error::Parse)?;
        Self::from_der(&pem.contents)
    }

    /// When to ask for the next certificate: at 50 to 80 % of its life, so that a swarm's nodes do not ask all at once.
    /// `random` is any number.
    pub fn renew_at(&self, random: u64) -> i64 {
        let life = self.not_after - self.not_before;
        let per_mille = 500 + i64::try_from(random % 300).expect("below 300");
        self.not_before + life / 1_000 * per_mille + life % 1_000 * per_mille / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn subject(role: Role) -> Subject {
        Subject { node: NodeId::from_random(7), role, cluster: ClusterId::from_random(9) }
    }

    #[test]
    fn a_signed_certificate_says_who_the_node_is() {
        let root = crate::generate(NOW).expect("generates");
        let (_, request) = new_request().expect("generates");
        for role in [Role::Worker, Role::Manager] {
            let pem = sign(root.signer(), &request, &subject(role), 7_200, NOW).expect("signs");
            let read = NodeCertificate::from_pem(&pem).expect("parses");
            assert_eq!(read.subject, subject(role));
            assert_eq!((read.not_before, read.not_after), (NOW - 3_600, NOW + 7_200));
        }
    }

    #[test]
    fn what_is_no_request_is_not_signed() {
        let root = crate::generate(NOW).expect("generates");
        let (key, request) = new_request().expect("generates");
        let cut = &request[..request.len() / 2];
        for request in ["", "hello", cut, &key, &root.certificate] {
            let signed = sign(root.signer(), request, &subject(Role::Worker), 1, NOW);
            assert!(signed.is_err(), "{request}");
        }
    }

    /// DER: a tag, a length below 256, and what is inside.
    fn der(tag: u8, inside: &[&[u8]]) -> Vec<u8> {
        let inside = inside.concat();
        let length = u8::try_from(inside.len()).expect("short");
        let header = if length < 128 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [header, inside].concat()
    }

    /// A request that is signed as it should be, with a subject that says what it likes.
    fn request_of(subject: &[u8]) -> String {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("generates");
        let version = [0x02, 0x01, 0x00];
        let info = der(0x30, &[&version, subject, &key.subject_public_key_info(), &[0xa0, 0x00]]);
        let signature = rcgen::SigningKey::sign(&key, &info).expect("signs");
        let ecdsa_with_sha256 =
            [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        let signature = der(0x03, &[&[0], &signature]);
        let request = der(0x30, &[&info, &ecdsa_with_sha256, &signature]);
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let lines = lines.join("\n");
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n")
    }

    #[test]
    fn what_a_request_calls_itself_does_no_harm() {
        let root = crate::generate(NOW).expect("generates");
        let part = der(0x30, &[&[0x06, 0x03, 0x55, 0x04, 0x03], &[0x0c, 0x01, b'x']]);
        let odd = der(0x30, &[&[0x06, 0x03, 0x55, 0x04, 0x03], &[0x30, 0x00]]);
        for name in [
            der(0x30, &[]),
            der(0x30, &[&der(0x31, &[&part])]),
            der(0x30, &[&der(0x31, &[])]),
            der(0x30, &[&der(0x31, &[&part, &part])]),
            der(0x30, &[&der(0x31, &[&odd])]),
        ] {
            let wanted = subject(Role::Worker);
            match sign(root.signer(), &request_of(&name), &wanted, 7_200, NOW) {
                Ok(signed) => {
                    let read = NodeCertificate::from_pem(&signed).expect("parses");
                    assert_eq!(read.subject, wanted, "{name:?}");
                }
                Err(error) => assert!(matches!(error, Error::Request), "{name:?}: {error}"),
            }
        }
    }

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_life() {
        let certificate = NodeCertificate {
            subject: subject(Role::Worker),
            not_before: NOW,
            not_after: NOW + 1_000,
            issuer_subject: Vec::new(),
        };
        for random in [0, 1, 299, 300, u64::MAX] {
            assert!((NOW + 500..NOW + 800).contains(&certificate.renew_at(random)), "{random}");
        }
    }

    #[test]
    fn a_root_is_no_nodes_certificate() {
        let root = crate::generate(NOW).expect("generates");
        assert!(NodeCertificate::from_pem(&root.certificate).is_err());
    }
}

//! From one root to the next: the old root signs the new one, so that nodes that know one of them believe both.
//!
//! ```text
//! old root ── signs ──► new root, cross-signed ── signs ──► certificates of nodes
//! ```
//! While the swarm is on its way, nodes trust both roots and certificates are of the new one. Tokens name the old one
//! until every node has a certificate of the new one.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SubjectPublicKeyInfo,
};
use types::cluster::{CaSpec, ExternalCa, RootCa, RootRotation};
use types::node::TlsInfo;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;

use crate::Error;
use crate::root::{certificates, digest_of, generate, normalized, tls_info};
use crate::token::{JoinToken, new_secret};

/// Least life of a root that the swarm goes to: a year, as in Docker.
const ROOT_LIFE_MIN_SECONDS: i64 = 365 * 24 * 60 * 60;

/// What new settings mean for the root.
#[derive(Debug)]
pub enum Change {
    Keep,
    /// The root's key has come to the swarm.
    TakeKey(String),
    GoTo(Box<RootRotation>),
    /// The present root stays, and the one that was on its way is given up.
    GoBack,
}

/// What the settings in `spec` mean for `root`. `now` is in seconds since 1970.
///
/// # Errors
/// [`Error::NotARoot`] and its kin for a root that cannot be gone to.
pub fn plan(root: &RootCa, spec: &CaSpec, now: i64) -> Result<Change, Error> {
    if spec.signing_cert.trim().is_empty() {
        return match (spec.signing_key.trim().is_empty(), spec.force_rotate == root.forced) {
            (false, _) => Err(Error::KeyWithoutCertificate),
            (true, true) => Ok(Change::Keep),
            (true, false) => {
                let RootCa { certificate, key, digest, .. } = generate(now)?;
                go_to(root, RootRotation { certificate, key, digest, ..RootRotation::default() })
            }
        };
    }
    let certificate = normalized(&spec.signing_cert)?;
    let key = match spec.signing_key.trim() {
        "" => String::new(),
        key => key_of(&certificate, key)?,
    };
    let digest = digest_of(&certificate)?;
    if root.rotation.as_ref().is_some_and(|rotation| rotation.digest == digest) {
        return Ok(Change::Keep);
    }
    if digest == root.digest {
        return Ok(match (root.rotation.is_some(), root.key.is_empty() && !key.is_empty()) {
            (_, true) => Change::TakeKey(key),
            (true, false) => Change::GoBack,
            (false, false) => Change::Keep,
        });
    }
    check_root(&certificate, now)?;
    if key.is_empty() && externals_for(spec, &certificate, false).next().is_none() {
        return Err(Error::NoExternal("next"));
    }
    go_to(root, RootRotation { certificate, key, digest, ..RootRotation::default() })
}

fn go_to(root: &RootCa, mut next: RootRotation) -> Result<Change, Error> {
    next.cross_signed = cross_sign(root, &next.certificate)?;
    Ok(Change::GoTo(Box::new(next)))
}

/// The external authorities that hold the key of `certificate`. Those that name no certificate hold the present one's.
pub fn externals_for<'a>(
    spec: &'a CaSpec,
    certificate: &'a str,
    is_present: bool,
) -> impl Iterator<Item = &'a ExternalCa> {
    let digest = digest_of(certificate).ok();
    spec.external.iter().filter(move |external| match external.ca_cert.trim() {
        "" => is_present,
        named => digest.is_some() && digest_of(named).ok() == digest,
    })
}

/// Writes a planned change into the root.
pub fn change(root: &mut RootCa, change: Change, spec: &CaSpec) {
    root.forced = spec.force_rotate;
    match change {
        Change::Keep => {}
        Change::TakeKey(key) => {
            root.key = key;
            root.rotation = None;
        }
        Change::GoTo(next) => root.rotation = Some(*next),
        Change::GoBack => root.rotation = None,
    }
}

/// Whether a node that describes itself so has a certificate of the root that the swarm goes to, or is at.
pub fn is_of_newest(root: &RootCa, node: &TlsInfo) -> Result<bool, Error> {
    let wanted = tls_info(root)?;
    Ok(node.issuer_subject == wanted.issuer_subject
        && node.issuer_public_key == wanted.issuer_public_key)
}

/// Every node has a certificate of the new root: it takes the old one's place, and tokens name it.
pub fn finish(root: &mut RootCa) {
    let Some(next) = root.rotation.take() else { return };
    let token = || JoinToken::new(&next.digest, &new_secret()).to_string();
    *root = RootCa {
        worker_token: token(),
        manager_token: token(),
        certificate: next.certificate,
        key: next.key,
        digest: next.digest,
        rotation: None,
        forced: root.forced,
    };
}

/// Whether certificates that nodes believe can be signed under this one.
pub(crate) fn check_root(pem: &str, now: i64) -> Result<(), Error> {
    let refuse = |reason| Err(Error::NotARoot(reason));
    let parsed = certificates(pem).map_err(|_| Error::NotARoot("it is no PEM certificate"))?;
    let [parsed] = &parsed[..] else { return Err(Error::ManyRoots) };
    let certificate = parsed.parse_x509().map_err(|_| Error::Parse)?;
    let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|is| is.value.ca);
    let may_sign = certificate.key_usage().ok().flatten().is_none_or(|is| is.value.key_cert_sign());
    if !is_ca || !may_sign {
        return refuse("it may not sign certificates");
    }
    if certificate.verify_signature(None).is_err() {
        return refuse("it is not signed with its own key");
    }
    let validity = certificate.validity();
    if validity.not_after.timestamp() <= now {
        return Err(Error::RootNotValid("it has expired"));
    }
    if validity.not_before.timestamp() > now {
        return Err(Error::RootNotValid("it is not valid yet"));
    }
    if validity.not_after.timestamp() - now < ROOT_LIFE_MIN_SECONDS {
        return Err(Error::RootEndsSoon);
    }
    name_of(&certificate).map(drop)
}

/// The certificate's key, as we keep it.
fn key_of(certificate: &str, key: &str) -> Result<String, Error> {
    let key = KeyPair::from_pem(key).map_err(|_| Error::NotAKey)?;
    let parsed = certificates(certificate)?;
    let parsed = parsed.first().ok_or(Error::Parse)?.parse_x509().map_err(|_| Error::Parse)?;
    match key.subject_public_key_info() == parsed.public_key().raw {
        true => Ok(key.serialize_pem()),
        false => Err(Error::OtherKey),
    }
}

/// The new root `next` (PEM), signed by the old one, with the same name and key.
fn cross_sign(old: &RootCa, next: &str) -> Result<String, Error> {
    if old.key.is_empty() {
        return Err(Error::KeyElsewhere);
    }
    let issuer = Issuer::from_ca_cert_pem(&old.certificate, KeyPair::from_pem(&old.key)?)?;
    let parsed = certificates(next)?;
    let parsed = parsed.first().ok_or(Error::Parse)?.parse_x509().map_err(|_| Error::Parse)?;
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name_of(&parsed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = parsed.validity().not_before.to_datetime();
    params.not_after = parsed.validity().not_after.to_datetime();
    let signed = params.signed_by(&key, &issuer)?.pem();
    let made = certificates(&signed)?;
    let made = made.first().ok_or(Error::Parse)?.parse_x509().map_err(|_| Error::Parse)?;
    match made.subject().as_raw() == parsed.subject().as_raw() {
        true => Ok(signed),
        false => Err(Error::NotARoot(UNUSUAL_NAME)),
    }
}

const UNUSUAL_NAME: &str = "its subject is written in an unusual way";

/// The subject, attribute by attribute.
fn name_of(certificate: &X509Certificate<'_>) -> Result<DistinguishedName, Error> {
    let unusual = || Error::NotARoot(UNUSUAL_NAME);
    let mut name = DistinguishedName::new();
    for part in certificate.subject().iter_rdn() {
        let mut attributes = part.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err(unusual());
        };
        let kind: Vec<u64> = attribute.attr_type().iter().ok_or_else(unusual)?.collect();
        let text = attribute.as_str().map_err(|_| unusual())?;
        let value = match attribute.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| unusual())?)
            }
            _ => return Err(unusual()),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn rotate(root: &mut RootCa, spec: &CaSpec) -> Result<(), Error> {
        let planned = plan(root, spec, NOW)?;
        change(root, planned, spec);
        Ok(())
    }

    fn to(root: &RootCa, with_key: bool) -> CaSpec {
        let signing_key = if with_key { root.key.clone() } else { String::new() };
        CaSpec { signing_cert: root.certificate.clone(), signing_key, ..CaSpec::default() }
    }

    fn forced(count: u64) -> CaSpec {
        CaSpec { force_rotate: count, ..CaSpec::default() }
    }

    fn node_of(root: &RootCa) -> TlsInfo {
        let subject = crate::Subject {
            node: types::NodeId::from_random(1),
            role: types::node::Role::Worker,
            cluster: types::ClusterId::from_random(2),
        };
        let (_, request) = crate::new_request().expect("generates");
        let certificate = crate::sign(root.signer(), &request, &subject, 7_200, NOW);
        crate::node_tls_info(&root.trust_bundle(), &certificate.expect("signs")).expect("parses")
    }

    #[test]
    fn a_rotation_goes_to_a_new_root_and_ends_with_new_tokens() {
        let mut root = generate(NOW).expect("generates");
        let first = root.clone();
        let early = node_of(&root);
        rotate(&mut root, &forced(1)).expect("begins");
        assert!(root.rotation.is_some());
        assert_eq!((&root.digest, &root.worker_token), (&first.digest, &first.worker_token));
        assert!(root.trust_bundle().starts_with(&first.certificate), "tokens name the first");
        assert!(!is_of_newest(&root, &early).expect("compares"));
        let late = node_of(&root);
        assert!(is_of_newest(&root, &late).expect("compares"));
        rotate(&mut root, &forced(1)).expect("changes nothing");
        let next = root.rotation.clone().expect("goes on");
        finish(&mut root);
        assert_eq!((&root.digest, &root.certificate), (&next.digest, &next.certificate));
        assert!(root.worker_token.contains(&next.digest) && root.rotation.is_none());
        assert!(is_of_newest(&root, &late).expect("compares"));
        assert_eq!(root.trust_bundle(), next.certificate);
    }

    #[test]
    fn a_second_rotation_takes_the_place_of_the_first() {
        let mut root = generate(NOW).expect("generates");
        let first = root.digest.clone();
        rotate(&mut root, &forced(1)).expect("begins");
        let second = root.rotation.clone().expect("begun").digest;
        let half_way = node_of(&root);
        rotate(&mut root, &forced(2)).expect("begins");
        let third = root.rotation.clone().expect("begun").digest;
        assert!(first != second && second != third && root.digest == first);
        assert!(!is_of_newest(&root, &half_way).expect("compares"));
    }

    #[test]
    fn a_rotation_is_given_up_by_asking_for_the_present_root() {
        let mut root = generate(NOW).expect("generates");
        let first = root.clone();
        rotate(&mut root, &forced(1)).expect("begins");
        let mut back = to(&first, true);
        back.force_rotate = 1;
        rotate(&mut root, &back).expect("goes back");
        assert!(root.rotation.is_none() && root.digest == first.digest);
        // What stands in the settings from now on asks for nothing more.
        back.signing_key.clear();
        assert!(matches!(plan(&root, &back, NOW), Ok(Change::Keep)));
    }

    #[test]
    fn a_root_of_the_operators_own_is_gone_to() {
        let mut root = generate(NOW).expect("generates");
        let own = generate(NOW).expect("generates");
        rotate(&mut root, &to(&own, true)).expect("begins");
        assert_eq!(root.rotation.as_ref().expect("begun").digest, own.digest);
        // The settings come back without the key with each update.
        rotate(&mut root, &to(&own, false)).expect("changes nothing");
        assert_eq!(root.rotation.as_ref().expect("goes on").key, own.key);
        finish(&mut root);
        rotate(&mut root, &to(&own, false)).expect("changes nothing");
        assert!(root.rotation.is_none() && root.key == own.key);
    }

    #[test]
    fn a_root_without_its_key_needs_an_external_authority() {
        let mut root = generate(NOW).expect("generates");
        let own = generate(NOW).expect("generates");
        let mut spec = to(&own, false);
        assert!(matches!(plan(&root, &spec, NOW), Err(Error::NoExternal(_))));
        let external =
            |ca_cert: &str| ExternalCa { ca_cert: ca_cert.into(), ..ExternalCa::default() };
        spec.external = vec![external(""), external(&root.certificate)];
        assert!(matches!(plan(&root, &spec, NOW), Err(Error::NoExternal(_))));
        spec.external.push(external(&own.certificate));
        rotate(&mut root, &spec).expect("begins");
        finish(&mut root);
        assert!(root.key.is_empty());
        assert!(matches!(plan(&root, &forced(1), NOW), Err(Error::KeyElsewhere)));
        // With its key the root is the swarm's own again.
        rotate(&mut root, &to(&own, true)).expect("takes the key");
        rotate(&mut root, &forced(1)).expect("begins");
    }

    #[test]
    fn what_cannot_be_a_root_is_refused() {
        let root = generate(NOW).expect("generates");
        let other = generate(NOW).expect("generates");
        let expired = generate(NOW - 30 * 365 * 86_400).expect("generates");
        let early = generate(NOW + 86_400).expect("generates");
        let aged = generate(NOW - 7_100 * 86_400).expect("generates");
        let (_, request) = crate::new_request().expect("generates");
        let subject = crate::Subject {
            node: types::NodeId::from_random(1),
            role: types::node::Role::Manager,
            cluster: types::ClusterId::from_random(2),
        };
        let leaf = crate::sign(root.signer(), &request, &subject, 7_200, NOW).expect("signs");
        let two = format!("{}{}", root.certificate, other.certificate);
        let cut = &other.certificate[..other.certificate.len() / 2];
        for (certificate, key) in [
            ("", other.key.as_str()),
            ("hello", &other.key),
            (cut, &other.key),
            (&two, &other.key),
            (&leaf, &other.key),
            (&expired.certificate, &expired.key),
            (&early.certificate, &early.key),
            (&aged.certificate, &aged.key),
            (&other.certificate, &root.key),
            (&other.certificate, "hello"),
            (&other.certificate, &other.certificate),
        ] {
            let spec = CaSpec {
                signing_cert: certificate.into(),
                signing_key: key.into(),
                ..CaSpec::default()
            };
            let planned = plan(&root, &spec, NOW);
            assert!(planned.is_err(), "{certificate}: {planned:?}");
        }
    }

    #[test]
    fn names_keep_their_form_when_they_are_cross_signed() {
        let mut root = generate(NOW).expect("generates");
        let key = KeyPair::generate().expect("generates");
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().expect("plain")));
        name.push(DnType::OrganizationName, "Bienenstöcke");
        name.push(DnType::CommonName, "our own root");
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signs").pem();
        let own = RootCa { certificate, key: key.serialize_pem(), ..RootCa::default() };
        rotate(&mut root, &to(&own, true)).expect("begins");
        assert!(is_of_newest(&root, &node_of(&root)).expect("compares"));
    }
}

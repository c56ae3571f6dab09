//! External authorities: certificates signed by who has the root's key, asked for in cfssl's protocol.

use std::time::Duration;

use ca::Subject;
use rpc::SharedIdentity;
use serde::{Deserialize, Serialize};
use tracing::warn;
use types::cluster::{ExternalCa, RootCa};

use crate::error::{Code, Error};

/// How long each of them may take. A node that asks waits longer than for two.
const SIGN_TIMEOUT: Duration = Duration::from_secs(12);

/// How long one may take to answer at all.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// What is posted to cfssl's `sign`.
#[derive(Serialize)]
struct SignRequest<'a> {
    certificate_request: &'a str,
    /// Names the certificate answers to.
    hosts: [String; 2],
    subject: SubjectNames,
}

#[derive(Serialize)]
struct SubjectNames {
    #[serde(rename = "CN")]
    node: String,
    names: [Name; 1],
}

#[derive(Serialize)]
struct Name {
    #[serde(rename = "O")]
    cluster: String,
    #[serde(rename = "OU")]
    role: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    success: bool,
    #[serde(default)]
    result: Option<Signed>,
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    message: String,
}

/// Whether one of them answers.
pub(crate) async fn is_reachable(
    externals: &[&ExternalCa],
    root: &RootCa,
    identity: Option<&SharedIdentity>,
) -> bool {
    let bundle = root.trust_bundle();
    for external in externals {
        let roots = [bundle.as_str(), &external.ca_cert];
        match rpc::reach(&external.url, &roots, identity, REACH_TIMEOUT).await {
            Ok(()) => return true,
            Err(error) => warn!(%error, "the external CA is not reached"),
        }
    }
    false
}

/// Asks one after the other until one signs. What it signed is not looked at here.
///
/// # Errors
/// What the last one said.
pub(crate) async fn sign(
    externals: &[&ExternalCa],
    root: &RootCa,
    identity: Option<&SharedIdentity>,
    request: &str,
    subject: &Subject,
) -> Result<String, Error> {
    let role = ca::server_name(subject.role);
    let body = SignRequest {
        certificate_request: request,
        hosts: [role.to_owned(), subject.node.to_string()],
        subject: SubjectNames {
            node: subject.node.to_string(),
            names: [Name { cluster: subject.cluster.to_string(), role }],
        },
    };
    let body = serde_json::to_vec(&body).expect("plain data");
    let bundle = root.trust_bundle();
    let mut refusal = String::new();
    for external in externals {
        let roots = [bundle.as_str(), &external.ca_cert];
        let posted = rpc::post_json(&external.url, &roots, identity, &body, SIGN_TIMEOUT).await;
        match posted.map_err(|error| error.to_string()).and_then(|answer| read(&answer)) {
            Ok(certificate) => return Ok(certificate),
            Err(reason) => {
                warn!(url = external.url, reason, "the external CA does not sign");
                refusal = reason;
            }
        }
    }
    Err(Error::new(Code::Unavailable, format!("the external CA does not sign: {refusal}")))
}

fn read(answer: &[u8]) -> Result<String, String> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "its answer is not cfssl's".to_owned())?;
    match answer {
        Answer { success: true, result: Some(signed), .. } => Ok(signed.certificate),
        Answer { errors, .. } => {
            let messages: Vec<_> = errors.into_iter().map(|complaint| complaint.message).collect();
            Err(format!("it says: {}", messages.join("; ")))
        }
    }
}

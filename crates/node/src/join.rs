//! A node's first talk with a swarm: it learns the root, compares it with its token, and asks for a certificate.

use std::time::Duration;

use apiserver::ApiError;
use ca::JoinToken;
use http::StatusCode;
use manager::Error;
use manager::methods::{self, IssueRequest, Issued};
use rpc::{Channel, Identity};
use types::node::Availability;

const ROOT_TIMEOUT: Duration = Duration::from_secs(5);
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often each manager is asked for the root before the join fails; the network may just be coming up.
const ROOT_ATTEMPTS: usize = 3;
const ROOT_RETRY: Duration = Duration::from_millis(500);

const NO_TOKEN: &str =
    "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster";

/// What a swarm admits a node with.
pub(crate) struct Admission {
    pub(crate) issued: Issued,
    pub(crate) identity: Identity,
}

/// Asks the manager at `remote` for admission.
///
/// # Errors
/// When it cannot be reached, is of another swarm than the token, or does not take the token.
pub(crate) async fn admit(
    remote: &str,
    token: &str,
    availability: Availability,
) -> Result<Admission, ApiError> {
    // Docker's words: to join without a token is no mistake of its form.
    if token.is_empty() {
        return Err(ApiError::bad_request(NO_TOKEN));
    }
    let parsed: JoinToken =
        token.parse().map_err(|error: ca::Error| ApiError::bad_request(error.to_string()))?;
    let root = fetch_root(remote).await?;
    let root = ca::pinned(&root, &parsed.digest).map_err(|_| {
        failed(format!("remote CA does not match fingerprint. Expected: {}", parsed.digest))
    })?;
    let (key, request) = ca::new_request().map_err(|error| failed(error.to_string()))?;
    let channel =
        Channel::anonymous(remote, Some(&root)).map_err(|error| failed(error.to_string()))?;
    let request = IssueRequest { token: token.to_owned(), request, availability };
    let issued = channel.call::<_, Issued, Error>(methods::CA_ISSUE, &request, ISSUE_TIMEOUT).await;
    let issued = issued.map_err(|error| failed(error.to_string()))??;
    let identity =
        Identity { certificate: issued.certificate.clone(), key, roots: issued.roots.clone() };
    Ok(Admission { issued, identity })
}

/// The root that answers at `remote`, whoever that is.
async fn fetch_root(remote: &str) -> Result<String, ApiError> {
    let channel = Channel::anonymous(remote, None).map_err(|error| failed(error.to_string()))?;
    let mut last = String::new();
    for attempt in 0..ROOT_ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(ROOT_RETRY).await;
        }
        match channel.call::<_, String, Error>(methods::CA_ROOT, &(), ROOT_TIMEOUT).await {
            Ok(root) => return Ok(root?),
            Err(error) => last = error.to_string(),
        }
    }
    Err(failed(last))
}

fn failed(message: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

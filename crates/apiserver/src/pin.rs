//! Pins the image of a service to what its registry has now, for clients that do not do it themselves.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use engine::images::reference::Reference;
use engine::registry::auth::Credentials;
use http::request::Parts;
use tracing::warn;
use types::ServiceSpec;

use crate::state::ApiState;
use crate::version::{ApiVersion, Unversioned};

/// Since then clients ask the registry themselves, or were told not to.
const CLIENTS_PIN: ApiVersion = ApiVersion::new(1, 30);

/// How long a registry may keep a request waiting; the service is made without its word then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether this client leaves images to us: it is older than clients that pin, or it names no version, as people with
/// `curl` do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PinsImages(bool);

impl<S: Sync> FromRequestParts<S> for PinsImages {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let version = parts.extensions.get::<ApiVersion>();
        let is_unversioned = parts.extensions.get::<Unversioned>().is_some();
        Ok(Self(is_unversioned || version.is_some_and(|version| *version < CLIENTS_PIN)))
    }
}

impl PinsImages {
    /// Pins the image where that is ours to do; answers with what the client has to be warned of.
    pub(crate) async fn pin(self, state: &ApiState, spec: &mut ServiceSpec) -> Vec<String> {
        let container = &mut spec.task.container;
        if !self.0 || container.image.is_empty() {
            return Vec::new();
        }
        let asked = digest_of(state, &container.image, &container.registry_auth);
        let pinned = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(pinned) => pinned,
            Err(_) => Err(format!("the registry did not answer for {} s", PATIENCE.as_secs())),
        };
        match pinned {
            Ok(image) => {
                container.image = image;
                Vec::new()
            }
            Err(error) => {
                warn!("unable to pin image {} to digest: {error}", container.image);
                vec![warning(&container.image)]
            }
        }
    }
}

/// `name:tag@digest`; what has a digest stays as it is.
async fn digest_of(state: &ApiState, image: &str, auth: &str) -> Result<String, String> {
    let reference = image.parse::<Reference>().map_err(|error| error.to_string())?.or_latest();
    if reference.digest().is_some() {
        return Ok(image.to_owned());
    }
    let credentials = Credentials::from_header(auth).map_err(|error| error.to_string())?;
    let resolved = state.engine.images.resolve(&reference, &credentials).await;
    let resolved = resolved.map_err(|error| error.to_string())?;
    Ok(reference.pinned(resolved.digest).familiar())
}

/// Docker's words.
fn warning(image: &str) -> String {
    format!(
        "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} \
         independently,\npossibly leading to different nodes running different\nversions of the image.\n"
    )
}

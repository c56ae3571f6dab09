//! What a registry has under a name, without pulling it: how a service's image is pinned.

use super::config::{CONFIG_BYTES_MAX, ImageConfig};
use super::digest::Digest;
use super::error::{Error, json_error};
use super::manifest::{Document, media_type};
use super::platform::Platform;
use super::pull::{label_of, may_be_elsewhere};
use super::reference::Reference;
use super::store::Images;
use crate::registry::auth::Credentials;
use crate::registry::{Access, Session};

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Of the index, or of the manifest where there is none.
    pub digest: Digest,
    pub media_type: String,
    /// Of the document, in bytes.
    pub size: u64,
    /// What it runs on.
    pub platforms: Vec<Platform>,
}

impl Images {
    /// Asks a registry whether it takes these credentials.
    ///
    /// # Errors
    /// Its refusal, in its own words.
    pub async fn login(&self, credentials: &Credentials) -> Result<(), Error> {
        Ok(self.0.registry.login(credentials).await?)
    }

    /// Asks the registry what `reference` leads to now.
    ///
    /// # Errors
    /// In Docker's words, as for a pull.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Resolved, Error> {
        let reference = reference.clone().or_latest();
        let (domain, path) = (reference.domain(), reference.path());
        let sessions = self.0.registry.sessions(domain, path, Access::Pull, credentials)?;
        let mut last = Error::NoSuchImage(reference.familiar());
        for session in sessions {
            match resolve_from(&session, &reference).await {
                Ok(resolved) => {
                    self.0.registry.remember(&session);
                    return Ok(resolved);
                }
                Err(error) => {
                    let go_on = may_be_elsewhere(&session, &error);
                    last = error;
                    if !go_on {
                        break;
                    }
                }
            }
        }
        Err(match last {
            Error::Registry(error) => error.for_pull(&reference).into(),
            error => error,
        })
    }
}

async fn resolve_from(session: &Session, reference: &Reference) -> Result<Resolved, Error> {
    let fetched = session.manifest(&label_of(reference)).await?;
    let document = Document::parse(&fetched.bytes).map_err(json_error("manifest"))?;
    let (declared, platforms) = match document {
        Document::Schema1 => return Err(Error::Schema1(reference.familiar())),
        Document::Index(index) => {
            let platforms = index.manifests.into_iter().filter_map(|d| d.platform);
            // Attestations stand in the index for a platform that there is not.
            (index.media_type, platforms.filter(|p| p.os != "unknown").collect())
        }
        Document::Manifest(manifest) => {
            let config = session.small_blob(&manifest.config.digest, CONFIG_BYTES_MAX).await?;
            let config: ImageConfig =
                serde_json::from_slice(&config).map_err(json_error("image configuration"))?;
            let platform = Platform {
                architecture: config.architecture,
                os: config.os,
                os_version: config.os_version,
                variant: config.variant,
            };
            (manifest.media_type, vec![platform])
        }
    };
    let media_type = match (declared.is_empty(), fetched.media_type.is_empty()) {
        (false, _) => declared,
        (true, false) => fetched.media_type,
        (true, true) => media_type::OCI_MANIFEST.to_owned(),
    };
    Ok(Resolved { digest: fetched.digest, media_type, size: fetched.bytes.len() as u64, platforms })
}

//! Manifests and tags of a repository.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;

use super::error::Error;
use super::session::{Call, Session, error_of, join, read_body};
use crate::images::digest::Digest;
use crate::images::manifest::{MANIFEST_BYTES_MAX, media_type};

/// Pages of a list of tags that are followed.
const TAG_PAGES_MAX: usize = 1000;
/// Largest page of a list of tags, in bytes.
const TAG_PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Forms that we can read, in the order of preference. Schema 1 is named so that its refusal is ours
/// and clear.
const ACCEPTED: [&str; 6] = [
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
    media_type::DOCKER_SCHEMA1_SIGNED,
    media_type::DOCKER_SCHEMA1,
];
/// Digest of the manifest in an answer, as the registry sees it.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest or index as the registry sent it.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub bytes: Bytes,
    /// Of the bytes, computed here.
    pub digest: Digest,
    /// As the registry declared it.
    pub media_type: String,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Session {
    /// Fetches what a tag or digest leads to.
    ///
    /// # Errors
    /// [`Error::ManifestVerification`] when the content is not what was asked for.
    pub async fn manifest(&self, reference: &str) -> Result<Fetched, Error> {
        let url = self.url(&format!("manifests/{reference}"));
        let response = self.get(Method::GET, url, accept()).await?;
        let media_type = text(response.headers(), &header::CONTENT_TYPE);
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = read_body(response.into_body(), MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        match reference.parse::<Digest>() {
            Ok(expected) if expected != digest => Err(Error::ManifestVerification(expected)),
            _ => Ok(Fetched { bytes, digest, media_type }),
        }
    }

    /// The digest that a tag stands for, where the registry tells without sending the manifest.
    /// Registries that count downloads do not count this.
    pub async fn manifest_digest(&self, tag: &str) -> Result<Option<Digest>, Error> {
        let url = self.url(&format!("manifests/{tag}"));
        let response = self.get(Method::HEAD, url, accept()).await?;
        Ok(text(response.headers(), &CONTENT_DIGEST).parse().ok())
    }

    /// All tags of the repository.
    pub async fn tags(&self) -> Result<Vec<String>, Error> {
        let mut url = self.url("tags/list?n=1000");
        let mut tags = Vec::new();
        for _ in 0..TAG_PAGES_MAX {
            let response = self.get(Method::GET, url.clone(), HeaderMap::new()).await?;
            let next = next_page(response.headers());
            let body = read_body(response.into_body(), TAG_PAGE_BYTES_MAX).await?;
            let page: Tags = serde_json::from_slice(&body)
                .map_err(|_| Error::BadAnswer("list of tags is not JSON"))?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                Some(next) => url = join(&url, &next)?,
                None => break,
            }
        }
        Ok(tags)
    }

    /// Stores a manifest under a tag or digest. Its blobs must be there.
    pub async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(media_type);
        headers.insert(header::CONTENT_TYPE, value.map_err(|_| Error::BadAnswer("media type"))?);
        let body = || Full::new(bytes.clone()).map_err(|never| match never {}).boxed();
        let url = self.url(&format!("manifests/{reference}"));
        let call = Call { method: Method::PUT, url, headers, body: &body };
        let response = self.call(&call).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            _ => Err(error_of(response).await),
        }
    }
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for form in ACCEPTED {
        headers.append(header::ACCEPT, HeaderValue::from_static(form));
    }
    headers
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// `Link: <address>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let (address, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| address.to_owned())
}

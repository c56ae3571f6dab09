//! Blobs of a repository: reading from any offset, and the two or three steps of writing.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::auth::form;
use super::error::{Error, Transport};
use super::session::{Call, Session, error_of, join, no_body, read_body};
use super::transport::{Body, transport_error};
use crate::images::digest::Digest;

/// A download that brings nothing for this long is broken off and resumed.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The content of a blob on its way here.
#[derive(Debug)]
pub struct Download {
    body: Incoming,
    url: String,
    /// Where in the blob the content begins; 0 when the registry does not resume.
    pub offset: u64,
}

/// What became of the wish to upload a blob.
#[derive(Debug)]
pub(crate) enum Upload {
    /// The registry has taken it from another repository.
    Mounted,
    /// It is to be sent here.
    Session(String),
}

/// Makes the content to upload, once for each attempt.
pub(crate) type Content<'a> = &'a (dyn Fn() -> Body + Send + Sync);

impl Session {
    /// Begins to read a blob, from `offset` on if the registry can do that.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<Download, Error> {
        let url = self.url(&format!("blobs/{digest}"));
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(header::RANGE, range.expect("digits are a valid header"));
        }
        let call = Call { method: Method::GET, url: url.clone(), headers, body: &no_body };
        let response = self.call(&call).await?;
        match response.status() {
            StatusCode::OK => Ok(Download { body: response.into_body(), url, offset: 0 }),
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), offset) => {
                Ok(Download { body: response.into_body(), url, offset })
            }
            StatusCode::PARTIAL_CONTENT => Err(Error::BadAnswer("another range than asked for")),
            _ => Err(error_of(response).await),
        }
    }

    /// Reads a whole blob of at most `max` bytes and checks it.
    pub async fn small_blob(&self, digest: &Digest, max: u64) -> Result<Bytes, Error> {
        let bytes = read_body(self.blob(digest, 0).await?.body, max).await?;
        if Digest::of(&bytes) != *digest {
            return Err(Error::ManifestVerification(*digest));
        }
        Ok(bytes)
    }

    /// Where a blob is, for messages.
    pub(crate) fn url_of(&self, digest: &Digest) -> String {
        self.url(&format!("blobs/{digest}"))
    }

    /// Whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let url = self.url(&format!("blobs/{digest}"));
        let call = Call { method: Method::HEAD, url, headers: HeaderMap::new(), body: &no_body };
        let response = self.call(&call).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(error_of(response).await),
        }
    }

    /// Asks to upload a blob, or to take it from the repository `source` of the same registry.
    pub(crate) async fn start_upload(
        &self,
        digest: &Digest,
        source: Option<&str>,
    ) -> Result<Upload, Error> {
        let mut url = self.url("blobs/uploads/");
        if let Some(source) = source {
            let pairs = form(&[("mount", &digest.to_string()), ("from", source)]);
            url = format!("{url}?{pairs}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        let call = Call { method: Method::POST, url: url.clone(), headers, body: &no_body };
        let response = self.call(&call).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Upload::Mounted),
            StatusCode::ACCEPTED => Ok(Upload::Session(location(&url, response.headers())?)),
            _ => Err(error_of(response).await),
        }
    }

    /// Sends a blob of `size` bytes to the address that [`Session::start_upload`] gave, streamed in
    /// one piece, and has the registry check it.
    pub(crate) async fn upload(
        &self,
        address: &str,
        digest: &Digest,
        size: u64,
        content: Content<'_>,
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, octets);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        let patch = Call {
            method: Method::PATCH,
            url: address.to_owned(),
            headers: headers.clone(),
            body: content,
        };
        let response = self.call(&patch).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                let address = location(address, response.headers())?;
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                self.finish_upload(&address, digest, headers, &no_body).await
            }
            // A registry that takes blobs in the last step only.
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                self.finish_upload(address, digest, headers, content).await
            }
            _ => Err(error_of(response).await),
        }
    }

    async fn finish_upload(
        &self,
        address: &str,
        digest: &Digest,
        headers: HeaderMap,
        content: Content<'_>,
    ) -> Result<(), Error> {
        let separator = if address.contains('?') { '&' } else { '?' };
        let url = format!("{address}{separator}{}", form(&[("digest", &digest.to_string())]));
        let call = Call { method: Method::PUT, url, headers, body: content };
        let response = self.call(&call).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK => Ok(()),
            _ => Err(error_of(response).await),
        }
    }
}

impl Download {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Also when nothing came for a minute.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let failed =
            |source| Error::Transport { method: Method::GET, url: self.url.clone(), source };
        loop {
            let frame = match tokio::time::timeout(STALL_TIMEOUT, self.body.frame()).await {
                Err(_) => {
                    return Err(failed(Transport::Stalled { seconds: STALL_TIMEOUT.as_secs() }));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(failed(transport_error(error.into()))),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers say nothing about the content.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// `Content-Range: bytes 100-199/200`.
fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let start = range.and_then(|r| r.strip_prefix("bytes ")).and_then(|r| r.split('-').next());
    start.and_then(|s| s.trim().parse().ok()) == Some(offset)
}

fn location(asked: &str, headers: &HeaderMap) -> Result<String, Error> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    join(asked, location.ok_or(Error::BadAnswer("upload without location"))?)
}

//! API versions: the `/vX.Y` prefix, the window we speak, and what a handler may ask about its client.

use std::convert::Infallible;
use std::fmt;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use crate::error::ApiError;

/// A version of the Docker Engine API, ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    pub(crate) major: u16,
    pub(crate) minor: u16,
}

/// Marks a request whose path names no version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unversioned;

impl ApiVersion {
    /// The newest we speak, and what an unversioned path means.
    pub(crate) const NEWEST: Self = Self::new(1, 51);
    /// The oldest we speak: the first with services (Docker 1.12).
    pub(crate) const OLDEST: Self = Self::new(1, 24);

    pub(crate) const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// The version as a header's value.
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("digits and a dot are a valid header")
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self::NEWEST))
    }
}

/// Splits `/v1.41/info` into the version and `/info`; a path without a version means the newest.
///
/// # Errors
/// 400 with Docker's text when the version lies outside the window.
pub(crate) fn strip_prefix(uri: &Uri) -> Result<(ApiVersion, Option<Uri>), ApiError> {
    let Some((text, rest)) = versioned(uri.path()) else {
        return Ok((ApiVersion::NEWEST, None));
    };
    let Some(version) = ApiVersion::parse(text) else {
        return Err(ApiError::page_not_found());
    };
    if version < ApiVersion::OLDEST {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
            ApiVersion::OLDEST
        )));
    }
    if version > ApiVersion::NEWEST {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            ApiVersion::NEWEST
        )));
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let path_and_query = PathAndQuery::try_from(path_and_query)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok((version, Some(Uri::from(path_and_query))))
}

/// The text of the version and the path after it, when the path has the form `/v<digits and dots>/…`.
fn versioned(path: &str) -> Option<(&str, &str)> {
    let after = path.strip_prefix("/v")?;
    let slash = after.find('/')?;
    let (text, rest) = after.split_at(slash);
    let numeric = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    numeric.then_some((text, rest))
}

#[cfg(test)]
mod tests {
    use super::{ApiVersion, strip_prefix};

    fn strip(path: &str) -> Result<(ApiVersion, Option<String>), String> {
        strip_prefix(&path.parse().unwrap())
            .map(|(version, uri)| (version, uri.map(|uri| uri.to_string())))
            .map_err(|error| format!("{} {}", error.status.as_u16(), error.message))
    }

    #[test]
    fn the_prefix_is_taken_off_and_the_window_is_kept() {
        assert_eq!(strip("/info"), Ok((ApiVersion::NEWEST, None)));
        assert_eq!(strip("/volumes/v1"), Ok((ApiVersion::NEWEST, None)));
        assert_eq!(
            strip("/v1.41/info?a=b"),
            Ok((ApiVersion::new(1, 41), Some("/info?a=b".into())))
        );
        assert_eq!(strip("/v1.24/_ping"), Ok((ApiVersion::new(1, 24), Some("/_ping".into()))));
        assert_eq!(
            strip("/v1.18/info").unwrap_err(),
            "400 client version 1.18 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        assert_eq!(
            strip("/v1.99/info").unwrap_err(),
            "400 client version 1.99 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(strip("/v1/info").unwrap_err(), "404 page not found");
    }
}

//! Request bodies that are JSON, read within a limit and refused in Docker's words.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// Largest JSON body in bytes: a config of 1000 KiB in base64 several times over; no request needs more.
pub(crate) const JSON_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A JSON body that must be declared as such. An absent body is the type's default, as in Docker.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body whatever its `Content-Type` says: tutorials post services with a bare `curl -d`,
/// which calls the body a form.
#[derive(Debug)]
pub(crate) struct LenientJson<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read_declared(request).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        decode(&body).map(Self)
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for LenientJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        decode(&read(request).await?).map(Self)
    }
}

/// The whole body, which must be declared as JSON unless it is empty.
///
/// # Errors
/// As [`read`], and 400 for another `Content-Type`.
pub(crate) async fn read_declared(request: Request) -> Result<Bytes, ApiError> {
    let declared = check_content_type(request.headers());
    let body = read(request).await?;
    if !body.is_empty() {
        declared?;
    }
    Ok(body)
}

/// The whole body, within [`JSON_BODY_BYTES_MAX`].
///
/// # Errors
/// 413 beyond the limit, 400 when the client breaks off.
pub(crate) async fn read(request: Request) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), JSON_BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("request body is larger than {JSON_BODY_BYTES_MAX} bytes"),
        )),
        Err(error) => Err(ApiError::bad_request(format!("error reading request body: {error}"))),
    }
}

/// # Errors
/// 400 in the words of Go's JSON decoder.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::bad_request("invalid JSON: got EOF while reading request body"));
    }
    let mut decoder = serde_json::Deserializer::from_slice(body);
    let value = T::deserialize(&mut decoder).map_err(|error| {
        ApiError::bad_request(format!("invalid JSON: {}", go_text(&error, body)))
    })?;
    match decoder.end() {
        Ok(()) => Ok(value),
        Err(_) => Err(ApiError::bad_request("unexpected content after JSON")),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or(""));
    let media_type = value.split(';').next().unwrap_or("").trim();
    if media_type.is_empty() {
        return Err(ApiError::bad_request(format!(
            "malformed Content-Type header ({value}): mime: no media type"
        )));
    }
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "unsupported Content-Type header ({value}): must be 'application/json'"
    )))
}

/// What Go's decoder says of the same mistake, as far as the place of the error tells it.
fn go_text(error: &serde_json::Error, body: &[u8]) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Eof => "unexpected EOF".to_owned(),
        Category::Syntax => match byte_at(body, error.line(), error.column()) {
            Some(byte) => {
                format!("invalid character {:?} looking for beginning of value", char::from(byte))
            }
            None => error.to_string(),
        },
        Category::Data | Category::Io => error.to_string(),
    }
}

/// The byte at a line and column that both begin at one.
fn byte_at(body: &[u8], line: usize, column: usize) -> Option<u8> {
    body.split(|byte| *byte == b'\n')
        .nth(line.checked_sub(1)?)?
        .get(column.checked_sub(1)?)
        .copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::body::Body;
    use axum::extract::{FromRequest, Request};

    use super::{Json, LenientJson, decode};

    fn refusal(body: &str) -> String {
        decode::<BTreeMap<String, u32>>(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn bad_json_is_refused_in_dockers_words() {
        assert_eq!(refusal(""), "invalid JSON: got EOF while reading request body");
        assert_eq!(refusal(r#"{"a":1"#), "invalid JSON: unexpected EOF");
        assert_eq!(
            refusal("nonsense"),
            "invalid JSON: invalid character 'o' looking for beginning of value"
        );
        assert_eq!(refusal(r#"{"a":1} x"#), "unexpected content after JSON");
        assert!(refusal(r#"{"a":"b"}"#).starts_with("invalid JSON: invalid type: string"));
    }

    #[tokio::test]
    async fn a_form_content_type_is_refused_unless_the_route_is_lenient() {
        let request = |kind: &str| {
            Request::post("/").header("content-type", kind).body(Body::from(r#"{"a":1}"#)).unwrap()
        };
        let strict = Json::<BTreeMap<String, u32>>::from_request(request("text/plain"), &()).await;
        assert_eq!(
            strict.unwrap_err().message,
            "unsupported Content-Type header (text/plain): must be 'application/json'"
        );
        Json::<BTreeMap<String, u32>>::from_request(
            request("application/json; charset=utf-8"),
            &(),
        )
        .await
        .unwrap();
        let form = request("application/x-www-form-urlencoded");
        LenientJson::<BTreeMap<String, u32>>::from_request(form, &()).await.unwrap();
        let empty =
            Json::<BTreeMap<String, u32>>::from_request(Request::new(Body::empty()), &()).await;
        assert!(empty.unwrap().0.is_empty());
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused() {
        let body = Body::from(vec![b' '; super::JSON_BODY_BYTES_MAX + 1]);
        let error = LenientJson::<u32>::from_request(Request::new(body), &()).await.unwrap_err();
        assert_eq!(error.status.as_u16(), 413);
    }
}

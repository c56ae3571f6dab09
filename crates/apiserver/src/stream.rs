//! Answers that grow: progress of a pull, events, statistics. One JSON object a line, each sent as it comes.
//!
//! hyper flushes whenever the body has nothing more to give, so a line is never held back. When the client
//! goes away the body is dropped, and with it the stream and whatever produces it.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use serde::Serialize;
use serde_json::json;

use crate::error::ApiError;

/// One JSON object a line, with 200 at once.
pub(crate) fn json_lines<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    respond("application/json", items.map(|item| line(&item)))
}

/// Progress of an action that may fail: a failure before the first line is the answer's status, a later
/// one is a last line with `errorDetail`, which is what clients look for.
///
/// # Errors
/// Whatever the stream begins with, when it begins with an error.
pub(crate) async fn progress<T, S>(items: S) -> Result<Response, ApiError>
where
    T: Serialize + Send + 'static,
    S: Stream<Item = Result<T, ApiError>> + Send + 'static,
{
    let mut items = Box::pin(items);
    let first = match items.next().await {
        Some(Ok(first)) => Some(Ok(first)),
        Some(Err(error)) => return Err(error),
        None => None,
    };
    let all = stream::iter(first).chain(items).map(|item| match item {
        Ok(item) => line(&item),
        Err(error) => {
            line(&json!({ "errorDetail": { "message": error.message }, "error": error.message }))
        }
    });
    Ok(respond("application/json", all))
}

/// Bytes as they come, of any media type.
pub(crate) fn respond(
    media_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    let body = Body::from_stream(chunks.map(Ok::<_, std::convert::Infallible>));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn line<T: Serialize>(item: &T) -> Bytes {
    let mut line =
        serde_json::to_vec(item).expect("our answers have text keys and no fallible encoders");
    line.extend_from_slice(b"\r\n");
    line.into()
}

//! `/_ping`: whether the daemon answers, and what kind of daemon it is.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};

use crate::state::ApiState;

/// The classic builder's number: we do not offer BuildKit.
const BUILDER_VERSION: &str = "1";

pub(crate) fn routes() -> Router<ApiState> {
    Router::new().route("/_ping", get(ping))
}

/// `HEAD` is answered by the same handler: the body is dropped on the way out.
async fn ping(State(state): State<ApiState>) -> Response {
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate")),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (HeaderName::from_static("builder-version"), HeaderValue::from_static(BUILDER_VERSION)),
        (HeaderName::from_static("swarm"), HeaderValue::from_static(state.swarm_status())),
    ];
    (headers, "OK").into_response()
}

//! The route table: one file per noun.
//!
//! A file exposes `routes()`, which is merged here. A handler takes what it needs as extractors, calls the
//! engine or the manager, and answers `Result<_, ApiError>`.

mod ping;

use axum::Router;

use crate::error::ApiError;
use crate::state::ApiState;

pub(crate) fn router(state: ApiState) -> Router {
    Router::new()
        .merge(ping::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(state)
}

async fn unknown() -> ApiError {
    ApiError::page_not_found()
}

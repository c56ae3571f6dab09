//! The route table: one file per noun.
//!
//! A file exposes `routes()`, which is merged here. A handler takes what it needs as extractors, calls the
//! engine or the manager, and answers `Result<_, ApiError>`.

mod backup;
mod containers;
mod distribution;
mod events;
mod exec;
mod images;
mod networks;
mod nodes;
mod ping;
mod services;
mod swarm;
mod system;
mod tasks;
mod volumes;

use std::collections::BTreeMap;

use axum::Router;

use crate::error::ApiError;
use crate::query::Query;
use crate::state::ApiState;

pub(crate) fn router(state: ApiState) -> Router {
    Router::new()
        .merge(backup::routes())
        .merge(containers::routes())
        .merge(distribution::routes())
        .merge(events::routes())
        .merge(exec::routes())
        .merge(images::routes())
        .merge(networks::routes())
        .merge(nodes::routes())
        .merge(ping::routes())
        .merge(services::routes())
        .merge(swarm::routes())
        .merge(system::routes())
        .merge(tasks::routes())
        .merge(volumes::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(state)
}

async fn unknown() -> ApiError {
    ApiError::page_not_found()
}

/// The `version` of an update: the one the caller has read.
///
/// # Errors
/// 400 where it is no number.
fn object_version(query: &Query, kind: &str) -> Result<u64, ApiError> {
    let text = query.text("version");
    text.parse().map_err(|_| {
        let reason = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        ApiError::bad_request(format!("invalid {kind} version '{text}': {reason}"))
    })
}

/// Whether a filter is absent, or one of its values begins `text`.
fn any_prefix(values: &[String], text: &str) -> bool {
    values.is_empty() || values.iter().any(|value| text.starts_with(value.as_str()))
}

/// Whether a filter is absent, or one of its values is `text`.
fn any_equal(values: &[String], text: &str) -> bool {
    values.is_empty() || values.iter().any(|value| value == text)
}

/// Whether the labels hold every `key` and `key=value` of a filter.
fn all_labels(values: &[String], labels: &BTreeMap<String, String>) -> bool {
    values.iter().all(|wanted| match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    })
}

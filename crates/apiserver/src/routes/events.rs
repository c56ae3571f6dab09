//! `/events`.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use engine::events::EventQuery;
use futures::StreamExt;

use crate::error::ApiError;
use crate::logs::moment;
use crate::query::Query;
use crate::state::ApiState;
use crate::stream;

const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

pub(crate) fn routes() -> Router<ApiState> {
    Router::new().route("/events", get(events))
}

async fn events(State(state): State<ApiState>, query: Query) -> Result<Response, ApiError> {
    let (since, until) = (moment(&query, "since")?, moment(&query, "until")?);
    if let (Some(since), Some(until)) = (since, until)
        && until < since
    {
        return Err(ApiError::bad_request(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            query.text("since"),
            query.text("until")
        )));
    }
    let query = EventQuery { since, until, filters: query.filters(&FILTERS)?.into_map() };
    // An end in the past asks for history, all of it where no beginning is named.
    let query = match query {
        EventQuery { since: None, until: Some(until), filters } => {
            EventQuery { since: Some(jiff::Timestamp::UNIX_EPOCH), until: Some(until), filters }
        }
        query => query,
    };
    Ok(stream::json_lines(state.engine.events.follow(query).map(|event| (*event).clone())))
}

//! From the API's objects to the cluster's, and back.

mod container;
pub mod network;
pub mod node;
pub mod service;
pub mod swarm;
pub mod task;

use std::time::Duration;

use types::{Meta, Timestamp};

use crate::swarm::ObjectVersion;
use crate::time::Time;

/// A request holds a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} cannot be negative")]
    Negative { what: &'static str },
    #[error("invalid {what}: \"{value}\"")]
    Unknown { what: &'static str, value: String },
    #[error("must specify a service mode: Replicated or Global")]
    TwoModes,
    #[error("{0}")]
    Missing(&'static str),
}

/// A duration of the API, in nanoseconds.
fn duration(nanos: i64, what: &'static str) -> Result<Duration, Error> {
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| Error::Negative { what })
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A moment as the API writes it.
pub fn time(at: Timestamp) -> Time {
    jiff::Timestamp::from_nanosecond(i128::from(at.as_nanos())).ok().into()
}

fn version(meta: &Meta) -> ObjectVersion {
    ObjectVersion { index: meta.version }
}

/// One word of a fixed set; the empty text is the set's first.
fn word<T: Copy>(what: &'static str, value: &str, words: &[(&str, T)]) -> Result<T, Error> {
    if value.is_empty() {
        return Ok(words[0].1);
    }
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    found
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| Error::Unknown { what, value: value.to_owned() })
}

/// The word that stands for a value.
fn word_for<T: PartialEq>(value: &T, words: &[(&'static str, T)]) -> String {
    let found = words.iter().find(|(_, meaning)| meaning == value);
    found.map_or("", |(word, _)| word).to_owned()
}

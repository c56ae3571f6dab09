//! Virtual time, and hosts whose clocks are wrong.

use types::Timestamp;

/// Milliseconds since the run began.
pub(crate) type Millis = u64;

/// When every run begins: 2026-01-01.
const EPOCH_NANOS: i64 = 1_767_225_600_000_000_000;

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Milliseconds it is ahead.
    pub(crate) ahead: i64,
}

impl Clock {
    pub(crate) fn read(self, now: Millis) -> Timestamp {
        let millis = i64::try_from(now).expect("runs are short") + self.ahead;
        Timestamp::from_nanos(EPOCH_NANOS + millis * 1_000_000)
    }

    /// When this clock will show `at`.
    pub(crate) fn until(self, at: Timestamp) -> Millis {
        let millis = (at.as_nanos() - EPOCH_NANOS).div_euclid(1_000_000) + 1 - self.ahead;
        u64::try_from(millis).unwrap_or(0)
    }
}

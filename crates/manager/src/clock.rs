//! The manager's clock, the only one of the control plane.

use std::time::{SystemTime, UNIX_EPOCH};

use types::Timestamp;

/// The wall clock. A clock before 1970 counts as 1970.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

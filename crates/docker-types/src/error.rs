//! The body of every answer that is not a success.

use serde::{Deserialize, Serialize};

/// `{"message": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    pub message: String,
}

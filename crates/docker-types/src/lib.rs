//! Docker Engine API types: what goes over the HTTP edge, field for field as Docker's clients expect it.
//!
//! Go's rules hold on input: an absent field and a `null` are the zero value. On output each type writes
//! what Docker writes: zero values where Docker has no `omitempty`, `null` for its nil maps and lists.

#[macro_use]
mod object;
mod error;

pub use error::ErrorResponse;
pub use object::nullable;

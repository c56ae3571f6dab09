//! Docker Engine API types: what goes over the HTTP edge, field for field as Docker's clients expect it.
//!
//! Go's rules hold on input: an absent field and a `null` are the zero value. On output each type writes
//! what Docker writes: zero values where Docker has no `omitempty`, `null` for its nil maps and lists.

#[macro_use]
mod object;

pub mod container;
pub mod convert;
pub mod error;
pub mod event;
pub mod exec;
pub mod image;
pub mod mount;
pub mod network;
pub mod node;
pub mod service;
pub mod stats;
pub mod swarm;
pub mod system;
pub mod task;
pub mod time;
pub mod volume;
pub mod words;

pub use object::{Empty, is_zero, nullable};

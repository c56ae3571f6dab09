//! Pull and push against registries: Debian's `docker-registry`, open, with passwords and with
//! tokens, and registries of our own that misbehave.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod auth;
mod faults;
mod node;
mod open;
mod server;
mod token;

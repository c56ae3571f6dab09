//! Docker-compatible HTTP: the edge where Docker Engine API requests become calls of the engine and the manager.
//!
//! `server` accepts connections and gives every answer the headers clients look for, `routes/` holds one file
//! per noun, and the rest are the parts that routes share: query, filters, JSON bodies, hijacked streams, errors.

mod error;
mod filters;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hangup;
mod hijack;
mod json;
mod listen;
mod logs;
mod pin;
mod progress;
mod query;
mod routes;
mod server;
mod state;
mod stream;
mod streams;
mod swarm;
mod swarm_logs;
mod tls;
mod version;

pub use error::{ApiError, Error};
pub use listen::Listen;
pub use server::{Config, Server};
pub use state::ApiState;
pub use swarm::{Answer, NetworkMembers, Swarm};
pub use tls::TlsFiles;

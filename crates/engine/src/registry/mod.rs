//! Client of image registries, by the OCI distribution specification and what Docker's own added.
//!
//! Written on hyper rather than taken ready-made: downloads resume where they broke off, mirrors are
//! asked first, certificates come from where Docker looks for them, and errors read as Docker's do.

pub mod auth;
pub(crate) mod blob;
mod challenge;
pub mod config;
mod error;
mod login;
mod lookup;
pub mod manifest;
pub mod proxy;
mod session;
mod tls;
mod transport;

pub use config::Config;
pub use error::Error;
pub use session::{Access, Registry, Session};
pub(crate) use transport::Body;

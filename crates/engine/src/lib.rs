//! One node's local engine: images, containers, volumes, exec, logs, events.

mod config;
pub mod containers;
pub mod db;
mod error;
pub mod events;
pub mod images;
pub mod logs;
pub mod names;
pub mod registry;
pub mod volumes;

pub use config::Config;
pub use error::{Error, ErrorKind};

/// The engine of one node.
#[derive(Debug, Default)]
pub struct Engine {}

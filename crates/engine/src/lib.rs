//! One node's local engine: images, containers, volumes, exec, logs, events.

pub mod db;
mod error;
pub mod images;
pub mod registry;

pub use error::{Error, ErrorKind};

/// The engine of one node.
#[derive(Debug, Default)]
pub struct Engine {}

//! One node's local engine: images, containers, volumes, exec, logs, events.

mod error;

pub use error::{Error, ErrorKind};

/// The engine of one node.
#[derive(Debug, Default)]
pub struct Engine {}

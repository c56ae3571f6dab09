//! One node's local engine: images, containers, volumes, exec, logs, events.

mod beneath;
mod config;
pub mod containers;
pub mod db;
mod engine;
mod error;
pub mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod images;
pub mod logs;
pub mod names;
pub mod networks;
pub mod registry;
pub mod swarm;
mod sys;
mod system;
pub mod times;
pub mod volumes;

pub use config::Config;
pub use engine::Engine;
pub use error::{Error, ErrorKind};
pub use system::Host;

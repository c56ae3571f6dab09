//! Images of this node: where they come from, what they consist of, and the root file systems that
//! containers get from them.

pub mod change;
pub mod config;
pub mod digest;
pub mod error;
pub mod event;
pub mod manifest;
pub mod platform;
pub mod progress;
pub mod reference;

pub mod archive;
pub mod blobs;
pub mod compression;
pub mod import;
mod layers;
pub mod load;
pub mod rootfs;
pub mod state;
pub mod store;
pub mod unpack;

pub use error::{Error, ErrorKind};
pub use state::Image;
pub use store::{Config, Images};

#[cfg(test)]
mod testing;

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
mod glob;
pub mod import;
mod inspect;
mod layers;
pub mod list;
pub mod load;
pub mod remove;
pub mod rootfs;
pub mod save;
pub mod state;
pub mod store;
pub mod unpack;

pub use error::Error;
pub use state::Image;
pub use store::{Config, Images};

#[cfg(test)]
mod testing;

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
mod compress;
pub mod compression;
mod download;
mod glob;
pub mod import;
mod inspect;
mod layers;
pub mod list;
pub mod load;
pub mod pull;
pub mod push;
mod reaper;
pub mod remove;
pub mod resolve;
pub mod rootfs;
pub mod save;
pub mod state;
pub mod store;
mod transfer;
pub mod unpack;

pub use error::Error;
pub use state::Image;
pub use store::{Config, Images};

#[cfg(test)]
mod testing;

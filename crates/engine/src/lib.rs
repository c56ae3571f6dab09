//! One node's local engine: images, and the containers that run from them.

pub mod db;
pub mod images;
pub mod registry;

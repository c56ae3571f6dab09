//! Requests of the control API, one file for each noun.

pub(crate) mod cluster;
pub mod lookup;
pub(crate) mod node;
pub(crate) mod service;
mod validate;

//! The end-to-end suite. One binary: what it costs to link is paid once.

mod engine;
mod flags;
mod outlive;
mod refusals;
mod service;
mod swarm;

//! Messages between nodes: mutually authenticated TLS 1.3, HTTP/2, MessagePack.
//!
//! ```text
//! Channel ── TLS 1.3, both certificates ──► Server ── access checked by role ──► the method's handler
//! ```
//! A method is a path. Its body is one value, or a stream of frames: four bytes of length, then the frame.
//! Managers agree by pipes, connections of frames alone.
//! Whoever has no certificate yet may call only what is open to [`Access::Anyone`].

mod client;
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
mod outside;
mod pipe;
mod server;

pub use client::{Channel, Client, FrameSender, Items};
pub use frames::{FRAME_BYTES_MAX, FrameError, Frames};
pub use identity::{Identity, Peer, SharedIdentity};
pub use outside::{post_json, reach};
pub use pipe::Pipe;
pub use server::{Access, Caller, Limits, Router, serve};

/// Why a call did not come to an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The words in front of which stands the address.
    #[error("could not reach {address}: {reason}")]
    Unreachable { address: String, reason: String },
    /// The connection broke after the request was sent: it may have been carried out.
    #[error("the connection to {address} broke: {reason}")]
    Lost { address: String, reason: String },
    #[error("{address} did not answer {method} within {seconds:.1} s")]
    Timeout { address: String, method: &'static str, seconds: f64 },
    #[error("{address} refuses {method}: {reason}")]
    Refused { address: String, method: &'static str, reason: String },
    #[error("the answer of {address} to {method} cannot be read: do both run the same version?")]
    Answer { address: String, method: &'static str },
    #[error("{url}: {reason}")]
    Outside { url: String, reason: String },
    #[error("this node's certificate cannot be used: {0}")]
    Identity(String),
}

impl Error {
    /// Whether nothing was asked of the other side yet.
    pub fn is_before_sending(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Identity(_))
    }
}

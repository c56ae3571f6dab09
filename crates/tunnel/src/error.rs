//! What can go wrong with a tunnel.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no directory of a tunnel is given")]
    NoDirectory,
    #[error("{what}")]
    Step {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The process ended before it was ready, and said why.
    #[error("start a tunnel: {said}")]
    NotStarted { said: String },
    /// The tunnel does not know the request, or cannot do it.
    #[error("tunnel refused: {said}")]
    Refused { said: String },
    /// More peers than [`crate::protocol::PEERS_MAX`].
    #[error("tunnel has no room for more than {max} peers")]
    TooManyPeers { max: usize },
    /// The filter of system calls cannot be made or loaded.
    #[error("confine the tunnel")]
    Confine(#[source] runtime::Error),
}

impl Error {
    pub(crate) fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Step { what, source }
    }

    pub(crate) fn file<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    /// The message with its causes.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

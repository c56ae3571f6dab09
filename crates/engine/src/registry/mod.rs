//! Client of image registries.

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("registry")]
    Registry,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> crate::images::ErrorKind {
        crate::images::ErrorKind::System
    }
}

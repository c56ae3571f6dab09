//! Client of image registries.

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("registry")]
    Registry,
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::Internal
    }
}

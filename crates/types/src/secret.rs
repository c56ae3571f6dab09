//! Secrets and configs: named bytes that tasks see as files.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Annotations, ConfigId, Meta, SecretId};

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub id: SecretId,
    #[serde(default)]
    pub meta: Meta,
    pub annotations: Annotations,
    pub data: Arc<[u8]>,
}

impl std::fmt::Debug for Secret {
    /// Leaves the data out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .field("name", &self.annotations.name)
            .finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub id: ConfigId,
    #[serde(default)]
    pub meta: Meta,
    pub annotations: Annotations,
    pub data: Arc<[u8]>,
}

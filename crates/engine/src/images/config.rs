//! The configuration document of an image: what it runs, and the layers it stands on.

use std::collections::BTreeMap;

use docker_types::Empty;
use docker_types::container::HealthConfig;
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// Largest configuration that is read, in bytes. Real ones have a few KiB.
pub const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most layers of an image; overlayfs and Docker's tools share this limit.
pub const LAYERS_MAX: usize = 127;

/// An image's configuration. The digest of its exact bytes is the image's id, so those bytes are
/// kept and this is only a reading of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// What containers of this image run.
    #[serde(deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// RFC 3339.
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub docker_version: String,
    #[serde(deserialize_with = "null_is_default")]
    pub history: Vec<History>,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    pub rootfs: RootFs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The layers of an image by the digests of their uncompressed archives, bottom first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// What containers of an image run unless told otherwise. Serialises with Docker's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp`, with empty values.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// Paths that get an anonymous volume.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

impl ImageConfig {
    /// The chain ids of the layers, bottom first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            chain.push(diff_id.chain(chain.last()));
        }
        chain
    }

    /// Seconds since 1970 at which the image was made; images without a readable time are as old
    /// as can be.
    pub fn created_unix(&self) -> i64 {
        let created = self.created.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        created.map_or(0, jiff::Timestamp::as_second)
    }
}

/// Go writes absent lists and maps as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_nulls_reads_like_one_without_those_fields() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05.5Z",
                "config":{"Env":null,"Cmd":["sh"],"Entrypoint":null,"Volumes":{"/data":{}},
                "ExposedPorts":{"80/tcp":{}},"Labels":null,"OnBuild":null,"WorkingDir":"",
                "Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":1000000000}},
                "rootfs":{"type":"layers","diff_ids":[]},"history":null,"unknown":1}"#,
        )
        .unwrap();
        assert_eq!(config.config.cmd.as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(config.config.entrypoint, None);
        assert!(config.config.env.is_empty() && config.history.is_empty());
        assert_eq!(config.config.volumes.keys().collect::<Vec<_>>(), ["/data"]);
        assert_eq!(config.created_unix(), 1_704_164_645);
        assert_eq!(config.config.healthcheck.unwrap().interval, 1_000_000_000);
    }
}

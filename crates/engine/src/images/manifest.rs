//! Manifests and indexes of the OCI image specification and of Docker's schema 2, which are one
//! form under two sets of media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// Largest manifest or index that is read, in bytes; registries refuse larger ones.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most manifests of one index; the largest official ones list a few dozen.
pub const INDEX_MANIFESTS_MAX: usize = 1024;

/// Media types of manifests, configurations and layers.
pub mod media_type {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
    pub const DOCKER_SCHEMA1_SIGNED: &str =
        "application/vnd.docker.distribution.manifest.v1+prettyjws";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// Names a blob by content, with its type and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Where a foreign layer may be had besides the registry; we never follow these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor with nothing but the three required properties.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Whether this is a layer that registries do not distribute (Windows base layers).
    pub fn is_foreign_layer(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains(".foreign.")
    }

    /// Whether this names an index rather than one image.
    pub fn is_index(&self) -> bool {
        is_index(&self.media_type)
    }
}

/// Whether `media_type` is that of an index or manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, media_type::OCI_INDEX | media_type::DOCKER_LIST)
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The same image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A document that a tag or digest may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
    /// Docker's first form, which names no configuration; we do not read it.
    Schema1,
}

/// The few fields that tell the forms apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document by its content. A declared media type that contradicts the content is an
    /// error, since a client that trusted the other of the two would run another image.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        use serde::de::Error;
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version == 1 {
            return Ok(Self::Schema1);
        }
        if probe.manifests.is_some() && probe.layers.is_some() {
            return Err(serde_json::Error::custom("both manifests and layers"));
        }
        if probe.manifests.is_some() {
            if !probe.media_type.is_empty() && !is_index(&probe.media_type) {
                return Err(serde_json::Error::custom("media type is not that of an index"));
            }
            let index: Index = serde_json::from_slice(bytes)?;
            if index.manifests.len() > INDEX_MANIFESTS_MAX {
                return Err(serde_json::Error::custom("too many manifests in one index"));
            }
            return Ok(Self::Index(index));
        }
        if is_index(&probe.media_type) {
            return Err(serde_json::Error::custom("media type is that of an index"));
        }
        Ok(Self::Manifest(Box::new(serde_json::from_slice(bytes)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_told_by_its_content_and_may_not_contradict_its_type() {
        let blob = format!(r#"{{"digest":"{}","size":1,"mediaType":"x"}}"#, Digest::of(b""));
        let parse = |text: &str| Document::parse(text.as_bytes());
        assert!(matches!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#), Ok(Document::Schema1)));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob}]}}"#);
        assert!(matches!(parse(&manifest), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{blob}]}}"#);
        assert!(matches!(parse(&index), Ok(Document::Index(_))));
        let confused = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{blob},"layers":[]}}"#,
            media_type::OCI_INDEX
        );
        assert!(parse(&confused).is_err());
        let both =
            format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[],"manifests":[{blob}]}}"#);
        assert!(parse(&both).is_err());
        assert!(parse("[]").is_err());
    }
}

//! Images: how a client sees them, and what it is told of their coming and going.

use std::collections::BTreeMap;

use crate::container::{ContainerConfig, GraphDriver};
use crate::object::is_zero;
use crate::time::Time;

object! {
    /// An image in `GET /images/json`.
    pub struct ImageSummary {
        /// Containers that use it; -1 when not counted.
        pub containers: i64,
        /// Seconds since 1970.
        pub created: i64,
        pub id: String,
        pub labels: Option<BTreeMap<String, String>>,
        pub parent_id: String,
        pub repo_digests: Vec<String>,
        pub repo_tags: Vec<String>,
        /// Bytes it has in common with other images; -1 when not computed.
        pub shared_size: i64,
        /// Bytes of all layers, unpacked.
        pub size: i64,
        /// The same; gone since 1.44.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub virtual_size: Option<i64>,
    }

    /// `docker image inspect`.
    pub struct ImageInspect {
        pub id: String,
        pub repo_tags: Vec<String>,
        pub repo_digests: Vec<String>,
        pub parent: String,
        pub comment: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub created: Option<String>,
        pub docker_version: String,
        pub author: String,
        pub config: ContainerConfig,
        pub architecture: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub variant: String,
        pub os: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub os_version: String,
        /// Bytes of all layers, unpacked.
        pub size: i64,
        /// The same; gone since 1.44.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub virtual_size: Option<i64>,
        pub graph_driver: GraphDriver,
        #[serde(rename = "RootFS")]
        pub root_fs: RootFs,
        pub metadata: ImageMetadata,
    }

    pub struct RootFs {
        #[serde(rename = "Type")]
        pub kind: String,
        /// Diff ids, bottom first.
        pub layers: Vec<String>,
    }

    pub struct ImageMetadata {
        /// When a name was last given to the image here.
        pub last_tag_time: Time,
    }

    /// A step of an image's making.
    pub struct HistoryItem {
        pub comment: String,
        /// Seconds since 1970.
        pub created: i64,
        pub created_by: String,
        /// The image that the step made, where it is known, else `<missing>`.
        pub id: String,
        /// Bytes of the layer that the step made.
        pub size: i64,
        pub tags: Option<Vec<String>>,
    }

    /// One thing that a removal did: exactly one field is set.
    pub struct DeleteItem {
        #[serde(skip_serializing_if = "is_zero")]
        pub untagged: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub deleted: String,
    }

    pub struct ImagesPruneResponse {
        pub images_deleted: Option<Vec<DeleteItem>>,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    /// `GET /distribution/{name}/json`: what a registry has under a name.
    pub struct DistributionInspect {
        pub descriptor: ImageDescriptor,
        pub platforms: Vec<ImagePlatform>,
    }
}

/// Names a blob by content, in OCI's spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageDescriptor {
    pub media_type: String,
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// A platform, in OCI's spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ImagePlatform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A line of a progress stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProgressLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_detail: Option<ProgressDetail>,
    /// The bar as text, for clients that draw none themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<PushResult>,
}

/// How far something has got, in bytes; empty when it has no measure.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ProgressDetail {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
}

object! {
    /// What a push made, for programs.
    #[derive(Eq)]
    pub struct PushResult {
        pub tag: String,
        pub digest: String,
        /// Of the manifest, in bytes.
        pub size: u64,
    }

    /// `POST /auth`.
    pub struct AuthResponse {
        pub status: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub identity_token: String,
    }
}

/// Credentials for a registry, as clients send them: the body of `/auth` and, in base64, the header
/// `X-Registry-Auth`. Its debug form shows no secret.
#[derive(Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub username: String,
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub password: String,
    /// `user:password` in base64, which old clients send instead.
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub auth: String,
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub serveraddress: String,
    /// A refresh token that stands for the user.
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub identitytoken: String,
    /// A token to send as it is.
    #[serde(deserialize_with = "crate::nullable", skip_serializing_if = "is_zero")]
    pub registrytoken: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_has_only_what_it_says() {
        let line = ProgressLine {
            status: Some("Downloading".to_owned()),
            id: Some("0123456789ab".to_owned()),
            progress_detail: Some(ProgressDetail { current: 1, total: 2 }),
            ..ProgressLine::default()
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"0123456789ab"}"#
        );
    }

    #[test]
    fn credentials_are_not_printed() {
        let auth: AuthConfig =
            serde_json::from_str(r#"{"username":"u","password":"secret","auth":null}"#).unwrap();
        assert!(!format!("{auth:?}").contains("secret"));
    }
}

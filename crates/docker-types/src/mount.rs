//! Mounts of containers and services.

use std::collections::BTreeMap;

use crate::object::is_zero;

object! {
    /// A mount as a client asks for it.
    pub struct Mount {
        /// `bind`, `volume`, `tmpfs`, `image`, `cluster` or `npipe`.
        #[serde(skip_serializing_if = "is_zero")]
        pub r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub source: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub target: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub consistency: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image_options: Option<ImageOptions>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tmpfs_options: Option<TmpfsOptions>,
    }

    pub struct BindOptions {
        #[serde(skip_serializing_if = "is_zero")]
        pub propagation: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub non_recursive: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub create_mountpoint: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only_non_recursive: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only_force_recursive: bool,
    }

    pub struct VolumeOptions {
        #[serde(skip_serializing_if = "is_zero")]
        pub no_copy: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub subpath: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub driver_config: Option<Driver>,
    }

    pub struct ImageOptions {
        #[serde(skip_serializing_if = "is_zero")]
        pub subpath: String,
    }

    pub struct TmpfsOptions {
        #[serde(skip_serializing_if = "is_zero")]
        pub size_bytes: i64,
        /// Permission bits.
        #[serde(skip_serializing_if = "is_zero")]
        pub mode: u32,
        /// Each entry is a flag, or a key and its value.
        #[serde(skip_serializing_if = "is_zero")]
        pub options: Vec<Vec<String>>,
    }

    /// A driver and its options.
    pub struct Driver {
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub options: BTreeMap<String, String>,
    }

    /// A mount as a container has it.
    pub struct MountPoint {
        #[serde(skip_serializing_if = "is_zero")]
        pub r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub name: String,
        pub source: String,
        pub destination: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub driver: String,
        /// The mode as `-v` gave it, such as `z` or `ro`.
        pub mode: String,
        #[serde(rename = "RW")]
        pub rw: bool,
        pub propagation: String,
    }
}

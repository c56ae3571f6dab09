//! Volumes.

use std::collections::BTreeMap;

use crate::object::is_zero;

object! {
    pub struct Volume {
        #[serde(skip_serializing_if = "is_zero")]
        pub created_at: String,
        pub driver: String,
        pub labels: Option<BTreeMap<String, String>>,
        pub mountpoint: String,
        pub name: String,
        pub options: Option<BTreeMap<String, String>>,
        pub scope: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub usage_data: Option<VolumeUsage>,
    }

    /// Bytes and users of a volume; -1 is "not counted".
    pub struct VolumeUsage {
        pub ref_count: i64,
        pub size: i64,
    }

    pub struct VolumeCreateRequest {
        pub name: String,
        pub driver: String,
        pub driver_opts: Option<BTreeMap<String, String>>,
        pub labels: Option<BTreeMap<String, String>>,
    }

    pub struct VolumeListResponse {
        pub volumes: Vec<Volume>,
        pub warnings: Option<Vec<String>>,
    }

    pub struct VolumesPruneResponse {
        pub volumes_deleted: Option<Vec<String>>,
        pub space_reclaimed: u64,
    }
}

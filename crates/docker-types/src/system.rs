//! The daemon about itself: `/version`, `/info`, `/system/df`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::container::ContainerSummary;
use crate::object::is_zero;
use crate::volume::Volume;

object! {
    pub struct Version {
        pub platform: Platform,
        pub components: Vec<Component>,
        pub version: String,
        pub api_version: String,
        #[serde(rename = "MinAPIVersion")]
        pub min_api_version: String,
        pub git_commit: String,
        pub go_version: String,
        pub os: String,
        pub arch: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub kernel_version: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub build_time: String,
    }

    pub struct Platform {
        pub name: String,
    }

    pub struct Component {
        pub name: String,
        pub version: String,
        pub details: BTreeMap<String, String>,
    }

    pub struct Info {
        #[serde(rename = "ID")]
        pub id: String,
        pub containers: usize,
        pub containers_running: usize,
        pub containers_paused: usize,
        pub containers_stopped: usize,
        pub images: usize,
        pub driver: String,
        pub driver_status: Vec<[String; 2]>,
        pub plugins: Plugins,
        pub memory_limit: bool,
        pub swap_limit: bool,
        pub cpu_cfs_period: bool,
        pub cpu_cfs_quota: bool,
        #[serde(rename = "CPUShares")]
        pub cpu_shares: bool,
        #[serde(rename = "CPUSet")]
        pub cpu_set: bool,
        pub pids_limit: bool,
        #[serde(rename = "IPv4Forwarding")]
        pub ipv4_forwarding: bool,
        pub debug: bool,
        #[serde(rename = "NFd")]
        pub n_fd: usize,
        pub oom_kill_disable: bool,
        pub n_goroutines: usize,
        pub system_time: String,
        pub logging_driver: String,
        pub cgroup_driver: String,
        pub cgroup_version: String,
        pub n_events_listener: usize,
        pub kernel_version: String,
        pub operating_system: String,
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        #[serde(rename = "OSType")]
        pub os_type: String,
        pub architecture: String,
        pub index_server_address: String,
        pub registry_config: RegistryConfig,
        #[serde(rename = "NCPU")]
        pub n_cpu: usize,
        /// Bytes.
        pub mem_total: u64,
        pub generic_resources: Option<Value>,
        pub docker_root_dir: String,
        pub http_proxy: String,
        pub https_proxy: String,
        pub no_proxy: String,
        pub name: String,
        pub labels: Vec<String>,
        pub experimental_build: bool,
        pub server_version: String,
        pub runtimes: BTreeMap<String, Runtime>,
        pub default_runtime: String,
        /// This node's place in its swarm; filled in by the cluster side.
        pub swarm: Value,
        pub live_restore_enabled: bool,
        pub isolation: String,
        pub init_binary: String,
        pub containerd_commit: Commit,
        pub runc_commit: Commit,
        pub init_commit: Commit,
        pub security_options: Vec<String>,
        #[serde(rename = "CDISpecDirs")]
        pub cdi_spec_dirs: Vec<String>,
        pub warnings: Option<Vec<String>>,
    }

    pub struct Plugins {
        pub volume: Vec<String>,
        pub network: Vec<String>,
        pub authorization: Option<Vec<String>>,
        pub log: Vec<String>,
    }

    pub struct RegistryConfig {
        #[serde(rename = "InsecureRegistryCIDRs")]
        pub insecure_registry_cidrs: Vec<String>,
        pub index_configs: BTreeMap<String, IndexConfig>,
        pub mirrors: Option<Vec<String>>,
    }

    pub struct IndexConfig {
        pub name: String,
        pub mirrors: Vec<String>,
        pub secure: bool,
        pub official: bool,
    }

    pub struct Runtime {
        #[serde(rename = "path")]
        pub path: String,
    }

    pub struct Commit {
        #[serde(rename = "ID")]
        pub id: String,
    }

    pub struct DiskUsage {
        /// Bytes.
        pub layers_size: i64,
        /// Image summaries, as `/images/json` gives them.
        pub images: Option<Vec<Value>>,
        pub containers: Option<Vec<ContainerSummary>>,
        pub volumes: Option<Vec<Volume>>,
        pub build_cache: Option<Vec<Value>>,
    }
}

//! Containers: what a client asks for, and what it is told.

use std::collections::BTreeMap;

use crate::mount::{Mount, MountPoint};
use crate::network::{EndpointSettings, NetworkingConfig};
use crate::object::{Empty, is_zero};
use crate::time::Time;
use crate::words::Words;

object! {
    /// What runs in a container: the portable half of its configuration.
    pub struct ContainerConfig {
        pub hostname: String,
        pub domainname: String,
        pub user: String,
        pub attach_stdin: bool,
        pub attach_stdout: bool,
        pub attach_stderr: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub exposed_ports: BTreeMap<String, Empty>,
        pub tty: bool,
        pub open_stdin: bool,
        pub stdin_once: bool,
        pub env: Option<Vec<String>>,
        pub cmd: Option<Words>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "is_zero")]
        pub args_escaped: bool,
        pub image: String,
        pub volumes: Option<BTreeMap<String, Empty>>,
        pub working_dir: String,
        pub entrypoint: Option<Words>,
        #[serde(skip_serializing_if = "is_zero")]
        pub network_disabled: bool,
        #[serde(skip_serializing_if = "is_zero")]
        pub mac_address: String,
        pub on_build: Option<Vec<String>>,
        pub labels: Option<BTreeMap<String, String>>,
        #[serde(skip_serializing_if = "is_zero")]
        pub stop_signal: String,
        /// Seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub stop_timeout: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub shell: Option<Words>,
    }

    /// How to tell whether a container is well. Durations are nanoseconds; zero means the default.
    pub struct HealthConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub test: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub interval: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub timeout: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub start_period: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub start_interval: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub retries: i64,
    }

    /// How a container is tied to its host. Also the body of `POST /containers/{id}/update`, which sends the
    /// resources and the restart policy only.
    pub struct HostConfig {
        pub binds: Option<Vec<String>>,
        #[serde(rename = "ContainerIDFile")]
        pub container_id_file: String,
        pub log_config: LogConfig,
        pub network_mode: String,
        pub port_bindings: Option<PortMap>,
        pub restart_policy: RestartPolicy,
        pub auto_remove: bool,
        pub volume_driver: String,
        pub volumes_from: Option<Vec<String>>,
        pub console_size: [u32; 2],
        #[serde(skip_serializing_if = "is_zero")]
        pub annotations: BTreeMap<String, String>,
        pub cap_add: Option<Words>,
        pub cap_drop: Option<Words>,
        pub cgroupns_mode: String,
        pub dns: Option<Vec<String>>,
        pub dns_options: Option<Vec<String>>,
        pub dns_search: Option<Vec<String>>,
        pub extra_hosts: Option<Vec<String>>,
        pub group_add: Option<Vec<String>>,
        pub ipc_mode: String,
        pub cgroup: String,
        pub links: Option<Vec<String>>,
        pub oom_score_adj: i64,
        pub pid_mode: String,
        pub privileged: bool,
        pub publish_all_ports: bool,
        pub readonly_rootfs: bool,
        pub security_opt: Option<Vec<String>>,
        #[serde(skip_serializing_if = "is_zero")]
        pub storage_opt: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub tmpfs: BTreeMap<String, String>,
        #[serde(rename = "UTSMode")]
        pub uts_mode: String,
        pub userns_mode: String,
        /// Bytes.
        pub shm_size: i64,
        #[serde(skip_serializing_if = "is_zero")]
        pub sysctls: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_zero")]
        pub runtime: String,
        pub isolation: String,
        pub cpu_shares: i64,
        /// Bytes; zero is unlimited.
        pub memory: i64,
        pub nano_cpus: i64,
        pub cgroup_parent: String,
        pub blkio_weight: u16,
        pub blkio_weight_device: Option<Vec<WeightDevice>>,
        pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
        pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceReadIOps")]
        pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceWriteIOps")]
        pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
        /// Microseconds.
        pub cpu_period: i64,
        /// Microseconds in each period.
        pub cpu_quota: i64,
        pub cpu_realtime_period: i64,
        pub cpu_realtime_runtime: i64,
        pub cpuset_cpus: String,
        pub cpuset_mems: String,
        pub devices: Option<Vec<DeviceMapping>>,
        pub device_cgroup_rules: Option<Vec<String>>,
        pub device_requests: Option<Vec<DeviceRequest>>,
        #[serde(skip_serializing_if = "is_zero")]
        pub kernel_memory: i64,
        #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "is_zero")]
        pub kernel_memory_tcp: i64,
        /// Bytes.
        pub memory_reservation: i64,
        /// Bytes of memory and swap together; -1 is unlimited swap.
        pub memory_swap: i64,
        pub memory_swappiness: Option<i64>,
        pub oom_kill_disable: Option<bool>,
        pub pids_limit: Option<i64>,
        pub ulimits: Option<Vec<Ulimit>>,
        pub cpu_count: i64,
        pub cpu_percent: i64,
        #[serde(rename = "IOMaximumIOps")]
        pub io_maximum_iops: u64,
        #[serde(rename = "IOMaximumBandwidth")]
        pub io_maximum_bandwidth: u64,
        #[serde(skip_serializing_if = "is_zero")]
        pub mounts: Vec<Mount>,
        pub masked_paths: Option<Vec<String>>,
        pub readonly_paths: Option<Vec<String>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub init: Option<bool>,
    }

    pub struct WeightDevice {
        pub path: String,
        pub weight: u16,
    }

    pub struct ThrottleDevice {
        pub path: String,
        pub rate: u64,
    }

    pub struct DeviceMapping {
        pub path_on_host: String,
        pub path_in_container: String,
        pub cgroup_permissions: String,
    }

    pub struct DeviceRequest {
        pub driver: String,
        pub count: i64,
        #[serde(rename = "DeviceIDs")]
        pub device_ids: Option<Vec<String>>,
        pub capabilities: Option<Vec<Vec<String>>>,
        pub options: Option<BTreeMap<String, String>>,
    }

    pub struct Ulimit {
        pub name: String,
        pub hard: i64,
        pub soft: i64,
    }

    pub struct LogConfig {
        pub r#type: String,
        pub config: Option<BTreeMap<String, String>>,
    }

    pub struct RestartPolicy {
        /// Empty, `no`, `always`, `unless-stopped` or `on-failure`.
        pub name: String,
        pub maximum_retry_count: i64,
    }

    pub struct PortBinding {
        #[serde(rename = "HostIp")]
        pub host_ip: String,
        pub host_port: String,
    }

    /// The rest of the body of `POST /containers/create`, whose other keys are a [`ContainerConfig`].
    pub struct ContainerCreateTail {
        pub host_config: Option<HostConfig>,
        pub networking_config: Option<NetworkingConfig>,
    }

    pub struct ContainerCreateResponse {
        pub id: String,
        pub warnings: Vec<String>,
    }

    pub struct ContainerUpdateResponse {
        pub warnings: Option<Vec<String>>,
    }

    /// `docker inspect`.
    pub struct ContainerInspect {
        pub id: String,
        pub created: Time,
        pub path: String,
        pub args: Vec<String>,
        pub state: ContainerState,
        pub image: String,
        pub resolv_conf_path: String,
        pub hostname_path: String,
        pub hosts_path: String,
        pub log_path: String,
        pub name: String,
        pub restart_count: u64,
        pub driver: String,
        pub platform: String,
        pub mount_label: String,
        pub process_label: String,
        pub app_armor_profile: String,
        #[serde(rename = "ExecIDs")]
        pub exec_ids: Option<Vec<String>>,
        pub host_config: HostConfig,
        pub graph_driver: GraphDriver,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_rw: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_root_fs: Option<i64>,
        pub mounts: Vec<MountPoint>,
        pub config: ContainerConfig,
        pub network_settings: NetworkSettings,
    }

    pub struct ContainerState {
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
        pub status: String,
        pub running: bool,
        pub paused: bool,
        pub restarting: bool,
        #[serde(rename = "OOMKilled")]
        pub oom_killed: bool,
        pub dead: bool,
        pub pid: u32,
        pub exit_code: i64,
        pub error: String,
        pub started_at: Time,
        pub finished_at: Time,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub health: Option<Health>,
    }

    pub struct Health {
        /// `starting`, `healthy` or `unhealthy`.
        pub status: String,
        pub failing_streak: u64,
        pub log: Vec<HealthcheckResult>,
    }

    pub struct HealthcheckResult {
        pub start: Time,
        pub end: Time,
        pub exit_code: i64,
        pub output: String,
    }

    pub struct GraphDriver {
        pub data: Option<BTreeMap<String, String>>,
        pub name: String,
    }

    pub struct NetworkSettings {
        pub bridge: String,
        #[serde(rename = "SandboxID")]
        pub sandbox_id: String,
        pub sandbox_key: String,
        pub ports: PortMap,
        pub hairpin_mode: bool,
        #[serde(rename = "LinkLocalIPv6Address")]
        pub link_local_ipv6_address: String,
        #[serde(rename = "LinkLocalIPv6PrefixLen")]
        pub link_local_ipv6_prefix_len: u8,
        #[serde(rename = "SecondaryIPAddresses")]
        pub secondary_ip_addresses: Option<Vec<String>>,
        #[serde(rename = "SecondaryIPv6Addresses")]
        pub secondary_ipv6_addresses: Option<Vec<String>>,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u8,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u8,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        pub mac_address: String,
        pub networks: BTreeMap<String, EndpointSettings>,
    }

    /// One line of `docker ps`.
    pub struct ContainerSummary {
        pub id: String,
        pub names: Vec<String>,
        pub image: String,
        #[serde(rename = "ImageID")]
        pub image_id: String,
        pub command: String,
        /// Unix seconds.
        pub created: i64,
        pub ports: Vec<Port>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_rw: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_root_fs: Option<i64>,
        pub labels: BTreeMap<String, String>,
        pub state: String,
        pub status: String,
        pub host_config: SummaryHostConfig,
        pub network_settings: SummaryNetworkSettings,
        pub mounts: Vec<MountPoint>,
    }

    pub struct SummaryHostConfig {
        #[serde(skip_serializing_if = "is_zero")]
        pub network_mode: String,
        #[serde(skip_serializing_if = "is_zero")]
        pub annotations: BTreeMap<String, String>,
    }

    pub struct SummaryNetworkSettings {
        pub networks: BTreeMap<String, EndpointSettings>,
    }

    pub struct Port {
        #[serde(rename = "IP", skip_serializing_if = "is_zero")]
        pub ip: String,
        pub private_port: u16,
        #[serde(skip_serializing_if = "is_zero")]
        pub public_port: u16,
        pub r#type: String,
    }

    /// `docker top`.
    pub struct ContainerTop {
        pub titles: Vec<String>,
        pub processes: Vec<Vec<String>>,
    }

    pub struct ContainerWaitResponse {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub error: Option<WaitError>,
        pub status_code: i64,
    }

    pub struct WaitError {
        pub message: String,
    }

    pub struct ContainersPruneResponse {
        pub containers_deleted: Option<Vec<String>>,
        pub space_reclaimed: u64,
    }

    /// One entry of `docker diff`: 0 changed, 1 added, 2 deleted.
    pub struct FilesystemChange {
        pub path: String,
        pub kind: u8,
    }
}

/// Ports of a container (`80/tcp`) and where the host offers them; `None` is exposed but not published.
pub type PortMap = BTreeMap<String, Option<Vec<PortBinding>>>;

#[cfg(test)]
mod tests {
    use super::{ContainerConfig, ContainerCreateTail, HostConfig};

    #[test]
    fn nulls_and_absent_fields_are_zero_values() {
        let body = r#"{"Image":"busybox","Env":null,"Cmd":"date","Entrypoint":["a","b"],
            "ExposedPorts":{"80/tcp":null},"Labels":null,"HostConfig":{"Binds":null,"Memory":5,
            "PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"81/tcp":null}},
            "NetworkingConfig":{"EndpointsConfig":{"web":null}}}"#;
        let config: ContainerConfig = serde_json::from_str(body).unwrap();
        assert_eq!(config.cmd.unwrap().0, ["date"]);
        assert_eq!(config.entrypoint.unwrap().0, ["a", "b"]);
        assert!(config.exposed_ports.contains_key("80/tcp"));
        let tail: ContainerCreateTail = serde_json::from_str(body).unwrap();
        let host = tail.host_config.unwrap();
        assert_eq!(host.memory, 5);
        assert_eq!(host.port_bindings.unwrap()["81/tcp"], None);
        assert_eq!(tail.networking_config.unwrap().endpoints_config["web"], None);
        assert!(serde_json::from_str::<HostConfig>(r#"{"Memory":"lots"}"#).is_err());
    }

    #[test]
    fn zero_values_are_written_as_docker_writes_them() {
        let config = serde_json::to_value(ContainerConfig::default()).unwrap();
        assert_eq!(config["Env"], serde_json::Value::Null);
        assert_eq!(config["Tty"], false);
        assert!(config.get("StopSignal").is_none());
        let host = serde_json::to_value(HostConfig::default()).unwrap();
        assert_eq!(host["NanoCpus"], 0);
        assert!(host.get("Mounts").is_none());
        assert_eq!(host["BlkioDeviceReadIOps"], serde_json::Value::Null);
    }
}

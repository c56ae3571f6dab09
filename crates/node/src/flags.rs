//! The daemon's command line: dockerd's flags of the same meaning.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};

/// Run this host's node.
#[derive(Clone, Debug, Parser)]
#[command(name = "daemon")]
pub(crate) struct Daemon {
    /// Where to serve the API: unix://PATH or tcp://ADDRESS:PORT; may be given several times
    #[arg(short = 'H', long = "host", value_name = "ADDRESS")]
    pub(crate) hosts: Vec<String>,
    /// What survives a reboot: images, containers, volumes, the swarm's state
    #[arg(long, short = 'g', visible_alias = "graph", default_value = "/var/lib/skep")]
    pub(crate) data_root: PathBuf,
    /// What does not survive a reboot: sockets, bundles, network namespaces
    #[arg(long, default_value = "/run/skep")]
    pub(crate) exec_root: PathBuf,
    /// File to write the daemon's process number to
    #[arg(short = 'p', long)]
    pub(crate) pidfile: Option<PathBuf>,
    /// JSON file with more of these settings, under their long names
    #[arg(long)]
    pub(crate) config_file: Option<PathBuf>,
    /// Control group beneath which containers get theirs
    #[arg(long, default_value = "/skep")]
    pub(crate) cgroup_parent: String,
    /// Log more
    #[arg(short = 'D', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub(crate) debug: bool,
    /// debug, info, warn, error or fatal
    #[arg(short = 'l', long, default_value = "info")]
    pub(crate) log_level: String,
    /// Key=value that describes this host; may be given several times
    #[arg(long = "label")]
    pub(crate) labels: Vec<String>,
    /// Registry that may speak plain HTTP; may be given several times
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub(crate) insecure_registries: Vec<String>,
    /// Mirror of Docker Hub to ask first; may be given several times
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub(crate) registry_mirrors: Vec<String>,
    /// Proxy between this node and registries that speak plain HTTP
    #[arg(long, value_name = "URL")]
    pub(crate) http_proxy: Option<String>,
    /// Proxy between this node and all other registries
    #[arg(long, value_name = "URL")]
    pub(crate) https_proxy: Option<String>,
    /// Hosts, addresses and networks that are reached without a proxy, between commas
    #[arg(long, value_name = "HOSTS")]
    pub(crate) no_proxy: Option<String>,
    /// Resource that tasks may reserve, as gpu=2 or gpu=UUID1; may be given several times
    #[arg(long = "node-generic-resource", value_name = "KIND=AMOUNT")]
    pub(crate) node_generic_resources: Vec<String>,
    /// Runtime of containers that name none: native, runc, crun or one added
    #[arg(long, default_value = "native")]
    pub(crate) default_runtime: String,
    /// Limit of a container that names none of its own, as nofile=1024:2048; may be given several times
    #[arg(long = "default-ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub(crate) default_ulimits: Vec<String>,
    /// Another OCI runtime, as name=/path; may be given several times
    #[arg(long = "add-runtime", value_name = "NAME=PATH")]
    pub(crate) add_runtimes: Vec<String>,
    /// Log driver of containers that name none: json-file, local or none
    #[arg(long, default_value = "json-file")]
    pub(crate) log_driver: String,
    /// Option of the log driver, as max-size=10m; may be given several times
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    pub(crate) log_opts: Vec<String>,
    /// Address and prefix length of the containers' bridge
    #[arg(long, value_name = "CIDR")]
    pub(crate) bip: Option<String>,
    /// Name of the containers' bridge; each daemon has its own
    #[arg(short = 'b', long)]
    pub(crate) bridge: Option<String>,
    /// Group that may use the unix socket
    #[arg(short = 'G', long, default_value = "docker")]
    pub(crate) group: String,
    /// Serve TCP over TLS
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub(crate) tls: bool,
    /// Serve TCP over TLS, to clients with a certificate only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub(crate) tlsverify: bool,
    /// Authority of clients' certificates
    #[arg(long, default_value = "/etc/skep/ca.pem")]
    pub(crate) tlscacert: PathBuf,
    /// The API's certificate
    #[arg(long, default_value = "/etc/skep/server-cert.pem")]
    pub(crate) tlscert: PathBuf,
    /// The API's private key
    #[arg(long, default_value = "/etc/skep/server-key.pem")]
    pub(crate) tlskey: PathBuf,
    /// Who seals what encrypted networks send: auto, kernel, process or off
    #[arg(long, hide = true, default_value = "auto")]
    pub(crate) tunnel: String,
    /// Seconds after which the key of encrypted networks is replaced
    #[arg(long, hide = true)]
    pub(crate) tunnel_key_lifetime: Option<u64>,
    #[command(flatten)]
    pub(crate) unused: Unused,
}

/// Flags of dockerd that mean nothing here. They are taken, so that its scripts work, and warned about.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Unused {
    #[arg(long, hide = true)]
    pub(crate) containerd: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) containerd_namespace: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) containerd_plugins_namespace: Option<String>,
    #[arg(short = 's', long, hide = true)]
    pub(crate) storage_driver: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) storage_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) exec_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) metrics_addr: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) userland_proxy_path: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) max_concurrent_downloads: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) max_concurrent_uploads: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) max_download_attempts: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) shutdown_timeout: Option<i64>,
    #[arg(long, hide = true)]
    pub(crate) default_address_pool: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) fixed_cidr: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) mtu: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) init_path: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) oom_score_adjust: Option<i32>,
    #[arg(long, hide = true)]
    pub(crate) seccomp_profile: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) userns_remap: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) default_shm_size: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) api_cors_header: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) authorization_plugin: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) swarm_default_advertise_addr: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) userland_proxy: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) iptables: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip6tables: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_forward: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_masq: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) icc: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) experimental: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) init: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) live_restore: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) no_new_privileges: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) raw_logs: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) selinux_enabled: Option<bool>,
}

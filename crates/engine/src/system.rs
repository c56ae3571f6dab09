//! The daemon and its host: what `docker info` and `docker network ls` show.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use docker_types::system::{IndexConfig, Info, Plugins, RegistryConfig, Runtime};
use jiff::Timestamp;
use serde_json::Value;

use crate::containers::{ListOptions, derived_id, host_facts};
use crate::engine::Engine;
use crate::error::Error;
use crate::images;
use crate::registry::config::Insecure;

/// The registry that names without a host mean.
const DEFAULT_INDEX: &str = "https://index.docker.io/v1/";

/// Facts of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    /// As `uname -m` has it.
    pub architecture: String,
    /// As Go has it: `amd64`, `arm64`.
    pub go_arch: String,
    /// The distribution, from `/etc/os-release`.
    pub operating_system: String,
    pub os_version: String,
}

impl Engine {
    /// The host this engine runs on.
    pub fn host(&self) -> Host {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let architecture = text(uname.machine());
        let go_arch = match architecture.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let release = ["/etc/os-release", "/usr/lib/os-release"];
        let release =
            release.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let field = |key: &str| {
            let value = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"').to_owned()
        };
        Host {
            name: text(uname.nodename()),
            kernel: text(uname.release()),
            go_arch: go_arch.to_owned(),
            architecture,
            operating_system: Some(field("PRETTY_NAME"))
                .filter(|name| !name.is_empty())
                .unwrap_or("Linux".into()),
            os_version: field("VERSION_ID"),
        }
    }

    /// What `docker info` shows, but for the swarm's part.
    ///
    /// # Errors
    /// None so far; a fact that cannot be read is left empty.
    pub async fn info(&self) -> Result<Info, Error> {
        let host = self.host();
        let (running, paused, stopped) = self.containers.counts();
        let facts = host_facts();
        let driver_status = [
            ("Backing Filesystem", file_system(&self.config.data_root)),
            ("Supports d_type", "true".to_owned()),
            ("Native Overlay Diff", "true".to_owned()),
            ("userxattr", "false".to_owned()),
        ];
        Ok(Info {
            id: self.id(),
            containers: running + paused + stopped,
            containers_running: running,
            containers_paused: paused,
            containers_stopped: stopped,
            images: self.images.count(),
            driver: "overlay2".to_owned(),
            driver_status: driver_status.map(|(key, value)| [key.to_owned(), value]).to_vec(),
            plugins: plugins(),
            memory_limit: true,
            swap_limit: facts.swap_limit,
            cpu_cfs_period: true,
            cpu_cfs_quota: true,
            cpu_shares: true,
            cpu_set: true,
            pids_limit: true,
            ipv4_forwarding: is_on("/proc/sys/net/ipv4/ip_forward"),
            debug: self.config.debug,
            n_fd: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            oom_kill_disable: !facts.is_unified,
            n_goroutines: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            system_time: docker_types::time::nanoseconds(Timestamp::now()),
            logging_driver: self.config.log.r#type.clone(),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_version: if facts.is_unified { "2" } else { "1" }.to_owned(),
            n_events_listener: self.events.followers(),
            kernel_version: host.kernel,
            operating_system: host.operating_system,
            os_version: host.os_version,
            os_type: "linux".to_owned(),
            architecture: host.architecture,
            index_server_address: DEFAULT_INDEX.to_owned(),
            registry_config: registry_config(&self.config.images),
            n_cpu: facts.cpus,
            mem_total: facts.memory_bytes,
            docker_root_dir: self.config.data_root.to_string_lossy().into_owned(),
            name: host.name,
            labels: self.config.labels.clone(),
            server_version: self.config.version.clone(),
            runtimes: runtimes(&self.config),
            default_runtime: self.config.default_runtime.clone(),
            swarm: Value::Null,
            live_restore_enabled: true,
            isolation: String::new(),
            init_binary: "docker-init".to_owned(),
            security_options: security_options(facts.is_unified),
            ..Info::default()
        })
    }

    /// Image summaries, and the bytes of all layers together.
    ///
    /// # Errors
    /// As listing images.
    pub async fn image_usage(&self) -> Result<(Vec<Value>, i64), Error> {
        let options = images::list::ListOptions { shared_size: true, ..Default::default() };
        let mut summaries = self.images.list(&options)?;
        let containers =
            self.containers.list(&ListOptions { all: true, ..Default::default() }).await?;
        for summary in &mut summaries {
            let users =
                containers.iter().filter(|container| container.image_id == summary.id).count();
            summary.containers = i64::try_from(users).unwrap_or(i64::MAX);
        }
        let values = summaries.iter().map(|summary| {
            serde_json::to_value(summary)
                .expect("summaries have text keys and no fallible encoders")
        });
        Ok((values.collect(), i64::try_from(self.images.layers_size()).unwrap_or(i64::MAX)))
    }

    /// The same each time for one data root.
    fn id(&self) -> String {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let root = self.config.data_root.to_string_lossy();
        let id = derived_id(&["engine", machine.trim(), &root]);
        // The form of a version 4 identifier, as Docker's daemons have since 23.0.
        format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..32])
    }
}

fn plugins() -> Plugins {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Plugins {
        volume: list(&["local"]),
        network: list(&["bridge", "host", "null", "overlay"]),
        authorization: None,
        log: list(&["json-file", "local"]),
    }
}

fn registry_config(config: &images::Config) -> RegistryConfig {
    let networks = config.registry.insecure.iter().filter_map(|insecure| match insecure {
        Insecure::Network(network) => Some(network.to_string()),
        Insecure::Host(_) => None,
    });
    let hosts = config.registry.insecure.iter().filter_map(|insecure| match insecure {
        Insecure::Host(host) => Some(host.clone()),
        Insecure::Network(_) => None,
    });
    // Docker shows them with the slash that their paths begin after.
    let mirrors = config.registry.mirrors.iter();
    let mirrors: Vec<_> =
        mirrors.map(|mirror| format!("{}/", mirror.trim_end_matches('/'))).collect();
    let hub = IndexConfig {
        name: "docker.io".to_owned(),
        mirrors: mirrors.clone(),
        secure: true,
        official: true,
    };
    let mut index_configs = BTreeMap::from([("docker.io".to_owned(), hub)]);
    for host in hosts {
        let index = IndexConfig { name: host.clone(), ..IndexConfig::default() };
        index_configs.insert(host, index);
    }
    let loopback = ["::1/128", "127.0.0.0/8"].map(str::to_owned);
    RegistryConfig {
        insecure_registry_cidrs: loopback.into_iter().chain(networks).collect(),
        index_configs,
        mirrors: Some(mirrors).filter(|mirrors| !mirrors.is_empty()),
    }
}

fn runtimes(config: &crate::Config) -> BTreeMap<String, Runtime> {
    let named = config
        .runtimes
        .iter()
        .map(|(name, path)| (name.clone(), Runtime { path: path.to_string_lossy().into_owned() }));
    named.chain([("native".to_owned(), Runtime { path: "builtin".to_owned() })]).collect()
}

/// The name of the file system beneath a path, as Docker has it.
fn file_system(path: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(path) else { return "<unknown>".to_owned() };
    // From linux/magic.h and the file systems' own headers.
    let name = match u32::try_from(stat.f_type).unwrap_or(0) {
        0xef53 => "extfs",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        _ => "<unknown>",
    };
    name.to_owned()
}

fn security_options(is_unified: bool) -> Vec<String> {
    let mut options = vec!["name=seccomp,profile=builtin".to_owned()];
    if is_unified {
        options.push("name=cgroupns".to_owned());
    }
    options
}

fn is_on(path: impl AsRef<Path>) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

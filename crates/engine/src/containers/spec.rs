//! Turns a container's record into the OCI specification its runtime works from.

mod devices;
mod mounts;
mod resources;

use std::path::{Path, PathBuf};

use docker_types::container::HostConfig;
use runtime::defaults;
use runtime::spec::{
    Capabilities, ConsoleSize, Linux, Namespace, NamespaceKind, Process, Rlimit, Root, Seccomp,
    Spec, User,
};

use super::invalid::Invalid;
use super::record::Record;
use super::users::Identity;
use super::validate::{self, SecurityOptions};
use crate::error::Error;

pub(crate) use resources::resources;

/// The terminal type of containers with a terminal, as in Docker.
const TERM: &str = "TERM=xterm";

/// All that a specification is made of beside the record.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) record: &'a Record,
    /// The mounted root file system.
    pub(crate) rootfs: &'a Path,
    pub(crate) identity: Identity,
    /// The files behind `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
    pub(crate) etc: &'a super::etc::EtcFiles,
    /// Sources of the record's mounts, in its order; empty for those without one.
    pub(crate) sources: &'a [PathBuf],
    /// Namespaces that are somebody else's.
    pub(crate) shared: &'a SharedNamespaces,
    pub(crate) cgroups_path: String,
}

/// Paths of namespaces to join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SharedNamespaces {
    /// `None` is the host's.
    pub(crate) network: Option<PathBuf>,
    /// First process of the container whose pid namespace this one joins.
    pub(crate) pid_of: Option<u32>,
    /// First process of the container whose IPC namespace and `/dev/shm` this one joins.
    pub(crate) ipc_of: Option<u32>,
}

/// Builds the specification.
///
/// # Errors
/// Options that were right when the container was made and are no more, such as a device that is gone.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec, Error> {
    let record = inputs.record;
    let host = &record.host;
    let security = validate::security_options(host)?;
    let capabilities = validate::capabilities(host)?;
    let hides = !host.privileged && !security.paths_unconfined;
    let paths = |own: &Option<Vec<String>>, default: &[&str]| match own {
        Some(paths) if hides => paths.clone(),
        None if hides => default.iter().map(|path| (*path).to_owned()).collect(),
        _ => Vec::new(),
    };
    let devices = devices::devices(host)?;
    let mut resources = resources(host);
    resources.devices = devices.rules;
    let linux = Linux {
        sysctl: sysctls(host),
        resources,
        cgroups_path: inputs.cgroups_path.clone(),
        namespaces: namespaces(host, inputs.shared),
        devices: devices.nodes,
        seccomp: seccomp(host, &security, &capabilities)?,
        rootfs_propagation: mounts::root_propagation(&record.mounts),
        masked_paths: paths(&host.masked_paths, &defaults::MASKED_PATHS),
        readonly_paths: paths(&host.readonly_paths, &defaults::READONLY_PATHS),
        ..Linux::default()
    };
    Ok(Spec {
        process: process(inputs, &security, capabilities),
        root: Root { path: inputs.rootfs.to_owned(), readonly: host.readonly_rootfs },
        hostname: if host.uts_mode == "host" {
            String::new()
        } else {
            record.config.hostname.clone()
        },
        domainname: record.config.domainname.clone(),
        mounts: mounts::mounts(inputs),
        annotations: host.annotations.clone(),
        linux,
        ..Spec::default()
    })
}

/// The environment of a container's processes: what every one has, overridden by what was asked for.
pub(crate) fn environment(record: &Record, tty: bool, additional: &[String]) -> Vec<String> {
    let mut env =
        vec![format!("PATH={}", defaults::PATH), format!("HOSTNAME={}", record.config.hostname)];
    if tty {
        env.push(TERM.to_owned());
    }
    for pair in record.config.env.iter().flatten().chain(additional) {
        let name = pair.split('=').next().unwrap_or_default();
        env.retain(|have| have.split('=').next() != Some(name));
        // A name alone takes the variable away.
        if pair.contains('=') {
            env.push(pair.clone());
        }
    }
    env
}

/// The same capabilities in the sets that Docker fills.
pub(crate) fn capability_sets(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

fn process(inputs: &Inputs<'_>, security: &SecurityOptions, capabilities: Vec<String>) -> Process {
    let (config, host) = (&inputs.record.config, &inputs.record.host);
    let [height, width] = host.console_size.map(|cells| u16::try_from(cells).unwrap_or(0));
    let has_size = config.tty && height > 0 && width > 0;
    let mut args = vec![inputs.record.path.clone()];
    args.extend(inputs.record.args.iter().cloned());
    Process {
        terminal: config.tty,
        console_size: has_size.then_some(ConsoleSize { height, width }),
        user: user(&inputs.identity),
        args,
        env: environment(inputs.record, config.tty, &[]),
        cwd: if config.working_dir.is_empty() {
            "/".to_owned()
        } else {
            config.working_dir.clone()
        },
        capabilities: Some(capability_sets(capabilities)),
        rlimits: rlimits(host),
        no_new_privileges: security.no_new_privileges,
        apparmor_profile: security
            .apparmor
            .clone()
            .filter(|profile| profile != "unconfined")
            .unwrap_or_default(),
        oom_score_adj: i32::try_from(host.oom_score_adj).ok(),
    }
}

/// Ids as the specification holds them.
pub(crate) fn user(identity: &Identity) -> User {
    User {
        uid: identity.uid,
        gid: identity.gid,
        additional_gids: identity.groups.clone(),
        ..User::default()
    }
}

fn rlimits(host: &HostConfig) -> Vec<Rlimit> {
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    let rlimit = |ulimit: &docker_types::container::Ulimit| Rlimit {
        kind: format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase()),
        hard: value(ulimit.hard),
        soft: value(ulimit.soft),
    };
    host.ulimits.iter().flatten().map(rlimit).collect()
}

fn namespaces(host: &HostConfig, shared: &SharedNamespaces) -> Vec<Namespace> {
    let own = |kind| Namespace { kind, path: None };
    let of = |kind, pid: u32, name: &str| Namespace {
        kind,
        path: Some(PathBuf::from(format!("/proc/{pid}/ns/{name}"))),
    };
    let mut namespaces = vec![own(NamespaceKind::Mount)];
    if let Some(path) = &shared.network {
        namespaces.push(Namespace { kind: NamespaceKind::Network, path: Some(path.clone()) });
    }
    if host.uts_mode != "host" {
        namespaces.push(own(NamespaceKind::Uts));
    }
    match shared.pid_of {
        Some(pid) => namespaces.push(of(NamespaceKind::Pid, pid, "pid")),
        None if host.pid_mode == "host" => {}
        None => namespaces.push(own(NamespaceKind::Pid)),
    }
    match shared.ipc_of {
        Some(pid) => namespaces.push(of(NamespaceKind::Ipc, pid, "ipc")),
        None if host.ipc_mode == "host" => {}
        None => namespaces.push(own(NamespaceKind::Ipc)),
    }
    if host.cgroupns_mode == "private" {
        namespaces.push(own(NamespaceKind::Cgroup));
    }
    namespaces
}

/// Kernel settings: what was asked for, over what makes an own network as usable as Docker's.
fn sysctls(host: &HostConfig) -> std::collections::BTreeMap<String, String> {
    let mut sysctls = std::collections::BTreeMap::new();
    let has_own_network =
        host.network_mode != "host" && !host.network_mode.starts_with("container:");
    if has_own_network {
        // Low ports and ping need no privilege: nobody else lives in this namespace.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    sysctls.extend(host.sysctls.clone());
    sysctls
}

fn seccomp(
    host: &HostConfig,
    security: &SecurityOptions,
    capabilities: &[String],
) -> Result<Option<Seccomp>, Invalid> {
    match security.seccomp.as_deref() {
        _ if host.privileged => Ok(None),
        None => Ok(Some(defaults::seccomp(capabilities))),
        Some("unconfined") => Ok(None),
        Some(profile) => serde_json::from_str(profile)
            .map(Some)
            .map_err(|error| Invalid::Seccomp { reason: error.to_string() }),
    }
}

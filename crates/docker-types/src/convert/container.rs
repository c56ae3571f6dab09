//! Container specs of services.

use types::container::{
    self, BindOptions, ConfigReference, DnsConfig, Driver, FileTarget, Healthcheck, MountKind,
    Privileges, SecretReference, TmpfsOptions, VolumeOptions,
};

use super::{Error, duration, nanos, word, word_for};
use crate::container::{HealthConfig, Ulimit};
use crate::object::Empty;
use crate::service as api;
use crate::{container as engine_api, mount as mount_api};

const MOUNT_KINDS: &[(&str, MountKind)] = &[
    ("volume", MountKind::Volume),
    ("bind", MountKind::Bind),
    ("tmpfs", MountKind::Tmpfs),
    ("npipe", MountKind::NamedPipe),
    ("cluster", MountKind::Cluster),
];

pub(super) fn from_api(spec: api::ContainerSpec) -> Result<container::ContainerSpec, Error> {
    let grace = spec.stop_grace_period;
    Ok(container::ContainerSpec {
        image: spec.image,
        labels: spec.labels,
        command: spec.command,
        args: spec.args,
        hostname: spec.hostname,
        env: spec.env,
        dir: spec.dir,
        user: spec.user,
        groups: spec.groups,
        privileges: spec.privileges.map(|value| Privileges {
            no_new_privileges: value["NoNewPrivileges"].as_bool().unwrap_or(false),
            raw: value.to_string(),
        }),
        init: spec.init,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.into_iter().map(mount_from_api).collect::<Result<_, _>>()?,
        stop_signal: spec.stop_signal,
        stop_grace_period: grace
            .map(|nanos| duration(nanos, "ContainerSpec: stop-grace-period"))
            .transpose()?,
        healthcheck: spec.healthcheck.map(|check| health_from_api(&check)).transpose()?,
        hosts: spec.hosts,
        dns: spec.dns_config.map(|dns| DnsConfig {
            nameservers: dns.nameservers,
            search: dns.search,
            options: dns.options,
        }),
        secrets: spec.secrets.into_iter().map(secret_from_api).collect::<Result<_, _>>()?,
        configs: spec.configs.into_iter().map(config_from_api).collect::<Result<_, _>>()?,
        isolation: if spec.isolation == "default" { String::new() } else { spec.isolation },
        sysctls: spec.sysctls,
        cap_add: spec.capability_add,
        cap_drop: spec.capability_drop,
        ulimits: spec
            .ulimits
            .into_iter()
            .map(|limit| container::Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: spec.oom_score_adj,
        registry_auth: String::new(),
    })
}

pub(super) fn to_api(spec: &container::ContainerSpec) -> api::ContainerSpec {
    api::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        privileges: spec
            .privileges
            .as_ref()
            .and_then(|privileges| serde_json::from_str(&privileges.raw).ok()),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mount_to_api).collect(),
        stop_grace_period: spec.stop_grace_period.map(nanos),
        healthcheck: spec.healthcheck.as_ref().map(health_to_api),
        hosts: spec.hosts.clone(),
        dns_config: spec.dns.as_ref().map(|dns| api::DnsConfig {
            nameservers: dns.nameservers.clone(),
            search: dns.search.clone(),
            options: dns.options.clone(),
        }),
        secrets: spec.secrets.iter().map(secret_to_api).collect(),
        configs: spec.configs.iter().map(config_to_api).collect(),
        isolation: if spec.isolation.is_empty() {
            "default".into()
        } else {
            spec.isolation.clone()
        },
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: spec
            .ulimits
            .iter()
            .map(|limit| Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: spec.oom_score_adj,
    }
}

pub(super) fn driver_from_api(driver: mount_api::Driver) -> Driver {
    Driver { name: driver.name, options: driver.options }
}

pub(super) fn driver_to_api(driver: &Driver) -> mount_api::Driver {
    mount_api::Driver { name: driver.name.clone(), options: driver.options.clone() }
}

/// A mount as the cluster stores it.
fn mount_from_api(mount: mount_api::Mount) -> Result<container::Mount, Error> {
    Ok(container::Mount {
        kind: word("mount type", &mount.r#type, MOUNT_KINDS)?,
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        consistency: mount.consistency,
        bind: mount.bind_options.map(|options| BindOptions {
            propagation: options.propagation,
            non_recursive: options.non_recursive,
            create_mountpoint: options.create_mountpoint,
            read_only_non_recursive: options.read_only_non_recursive,
            read_only_force_recursive: options.read_only_force_recursive,
        }),
        volume: mount.volume_options.map(|options| VolumeOptions {
            no_copy: options.no_copy,
            labels: options.labels,
            subpath: options.subpath,
            driver: options.driver_config.map(driver_from_api),
        }),
        tmpfs: mount.tmpfs_options.map(|options| TmpfsOptions {
            size_bytes: options.size_bytes,
            mode: options.mode,
            options: options.options,
        }),
    })
}

/// A mount as the API shows it, and as the engine takes it.
pub(super) fn mount_to_api(mount: &container::Mount) -> mount_api::Mount {
    mount_api::Mount {
        r#type: word_for(&mount.kind, MOUNT_KINDS),
        source: mount.source.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        consistency: mount.consistency.clone(),
        bind_options: mount.bind.as_ref().map(|options| mount_api::BindOptions {
            propagation: options.propagation.clone(),
            non_recursive: options.non_recursive,
            create_mountpoint: options.create_mountpoint,
            read_only_non_recursive: options.read_only_non_recursive,
            read_only_force_recursive: options.read_only_force_recursive,
        }),
        volume_options: mount.volume.as_ref().map(|options| mount_api::VolumeOptions {
            no_copy: options.no_copy,
            labels: options.labels.clone(),
            subpath: options.subpath.clone(),
            driver_config: options.driver.as_ref().map(driver_to_api),
        }),
        image_options: None,
        tmpfs_options: mount.tmpfs.as_ref().map(|options| mount_api::TmpfsOptions {
            size_bytes: options.size_bytes,
            mode: options.mode,
            options: options.options.clone(),
        }),
    }
}

fn health_from_api(check: &HealthConfig) -> Result<Healthcheck, Error> {
    Ok(Healthcheck {
        test: check.test.clone(),
        interval: duration(check.interval, "health-interval")?,
        timeout: duration(check.timeout, "health-timeout")?,
        start_period: duration(check.start_period, "health-start-period")?,
        start_interval: duration(check.start_interval, "health-start-interval")?,
        retries: check.retries,
    })
}

/// A health check as the API shows it, and as the engine takes it.
pub(super) fn health_to_api(check: &Healthcheck) -> engine_api::HealthConfig {
    HealthConfig {
        test: check.test.clone(),
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        start_interval: nanos(check.start_interval),
        retries: check.retries,
    }
}

fn secret_from_api(reference: api::SecretReference) -> Result<SecretReference, Error> {
    let unknown =
        |_| Error::Unknown { what: "secret reference", value: reference.secret_id.clone() };
    Ok(SecretReference {
        id: reference.secret_id.parse().map_err(unknown)?,
        name: reference.secret_name,
        file: reference.file.map(file_from_api),
    })
}

fn config_from_api(reference: api::ConfigReference) -> Result<ConfigReference, Error> {
    let unknown =
        |_| Error::Unknown { what: "config reference", value: reference.config_id.clone() };
    Ok(ConfigReference {
        id: reference.config_id.parse().map_err(unknown)?,
        name: reference.config_name,
        file: reference.file.map(file_from_api),
        runtime: reference.runtime.is_some(),
    })
}

fn file_from_api(file: api::FileTarget) -> FileTarget {
    FileTarget { name: file.name, uid: file.uid, gid: file.gid, mode: file.mode }
}

fn file_to_api(file: &FileTarget) -> api::FileTarget {
    api::FileTarget {
        name: file.name.clone(),
        uid: file.uid.clone(),
        gid: file.gid.clone(),
        mode: file.mode,
    }
}

fn secret_to_api(reference: &SecretReference) -> api::SecretReference {
    api::SecretReference {
        file: reference.file.as_ref().map(file_to_api),
        secret_id: reference.id.to_string(),
        secret_name: reference.name.clone(),
    }
}

fn config_to_api(reference: &ConfigReference) -> api::ConfigReference {
    api::ConfigReference {
        file: reference.file.as_ref().map(file_to_api),
        runtime: reference.runtime.then_some(Empty {}),
        config_id: reference.id.to_string(),
        config_name: reference.name.clone(),
    }
}

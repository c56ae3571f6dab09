//! What the API says of one container.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use docker_types::container::{
    ContainerInspect, ContainerState, GraphDriver, Health, NetworkSettings,
};
use docker_types::mount::MountPoint;
use docker_types::network::EndpointSettings;
use docker_types::time::Time;

use super::container::Container;
use super::etc::EtcFiles;
use super::mounts::Kind;
use super::ports::port_map;
use super::record::Record;
use super::status::{HealthState, Phase, Status};
use super::validate::LogDriver;
use super::{Containers, Shared, blocking, health, validate};
use crate::error::Error;
use crate::logs;
use crate::names;

impl Containers {
    /// Everything known of a container. With `size`, its file system is measured, which takes time.
    ///
    /// # Errors
    /// No such container.
    pub async fn inspect(&self, name: &str, size: bool) -> Result<ContainerInspect, Error> {
        let container = self.shared.registry.find(name)?;
        let mut inspect = self.shared.inspect(&container);
        if size {
            let (images, id) = (self.shared.images.clone(), container.id.clone());
            let sizes = blocking(move || Ok(images.rootfs_size(&id)?)).await?;
            inspect.size_rw = i64::try_from(sizes.writable).ok();
            inspect.size_root_fs = i64::try_from(sizes.total).ok();
        }
        Ok(inspect)
    }

    /// A container's log.
    ///
    /// # Errors
    /// [`Error::LogsUnreadable`] for one whose output goes nowhere.
    pub fn logs(&self, name: &str, options: logs::LogOptions) -> Result<logs::LogStream, Error> {
        let container = self.shared.registry.find(name)?;
        if validate::log_driver(&container.record().host.log_config)? == LogDriver::None {
            return Err(Error::LogsUnreadable);
        }
        let is_live = container.phase().is_up() || container.phase() == Phase::Restarting;
        let follow =
            (options.follow && is_live).then(|| (self.shared.watcher.clone(), container.watch()));
        Ok(logs::read(container.log_path(), options, follow))
    }
}

impl Shared {
    fn inspect(&self, container: &Arc<Container>) -> ContainerInspect {
        let record = container.record();
        let status = container.status();
        let etc = EtcFiles::within(&container.directory);
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let has_log = validate::log_driver(&record.host.log_config) != Ok(LogDriver::None);
        let execs = self.execs.running(&container.id);
        ContainerInspect {
            id: container.id.clone(),
            created: record.created.into(),
            path: record.path.clone(),
            args: record.args.clone(),
            state: state(container, &record, &status),
            image: record.image_id.clone(),
            resolv_conf_path: path(&etc.resolv_conf),
            hostname_path: path(&etc.hostname),
            hosts_path: path(&etc.hosts),
            log_path: if has_log { path(&container.log_path()) } else { String::new() },
            name: format!("/{}", record.name),
            restart_count: status.restart_count,
            driver: "overlay2".to_owned(),
            platform: "linux".to_owned(),
            exec_ids: Some(execs).filter(|execs| !execs.is_empty()),
            host_config: record.host.clone(),
            graph_driver: self.graph_driver(container),
            mounts: self.mount_points(&record),
            config: record.config.clone(),
            network_settings: self.network_settings(container, &record),
            ..ContainerInspect::default()
        }
    }

    /// The container's mounts, with where they lie on the host.
    pub(super) fn mount_points(&self, record: &Record) -> Vec<MountPoint> {
        let describe = |plan: &super::mounts::MountPlan| match plan.kind {
            Kind::Bind => plan.describe(&plan.source),
            Kind::Tmpfs => plan.describe(""),
            Kind::Volume => plan.describe(&self.volumes.data_dir(&plan.volume).to_string_lossy()),
        };
        record.mounts.iter().map(describe).collect()
    }

    /// The container's places in networks.
    pub(super) fn endpoints(
        &self,
        container: &Container,
        record: &Record,
    ) -> BTreeMap<String, EndpointSettings> {
        let mode = record.host.network_mode.as_str();
        if mode.starts_with("container:") {
            return BTreeMap::new();
        }
        // Docker shows a task's networks of the swarm, and not the way out that it has beside them.
        let joined: BTreeMap<_, _> = record
            .networks
            .iter()
            .filter(|(_, settings)| !settings.ip_address.is_empty())
            .map(|(name, settings)| (name.clone(), settings.clone()))
            .collect();
        if !joined.is_empty() {
            return joined;
        }
        let mut settings = record.networks.get(mode).cloned().unwrap_or_default();
        settings.network_id = built_in_network_id(mode);
        if let Some(endpoint) = self.network.endpoint(&container.id) {
            settings.endpoint_id = derived_id(&["endpoint", &container.id]);
            settings.gateway = endpoint.gateway.to_string();
            settings.ip_address = endpoint.address.to_string();
            settings.ip_prefix_len = endpoint.prefix_len;
            settings.mac_address = endpoint.mac;
        }
        BTreeMap::from([(mode.to_owned(), settings)])
    }

    fn network_settings(&self, container: &Container, record: &Record) -> NetworkSettings {
        let networks = self.endpoints(container, record);
        let is_up = container.phase().is_up();
        let mut settings = NetworkSettings { networks, ..NetworkSettings::default() };
        if is_up {
            settings.ports = port_map(record, &container.ports());
            settings.sandbox_id = derived_id(&["sandbox", &container.id]);
        }
        if let Some(endpoint) = self.network.endpoint(&container.id) {
            settings.sandbox_key = endpoint.netns.to_string_lossy().into_owned();
        }
        // The same numbers once more, where clients looked for them before there were networks.
        if let Some(bridge) = settings.networks.get("bridge").cloned() {
            settings.endpoint_id = bridge.endpoint_id;
            settings.gateway = bridge.gateway;
            settings.ip_address = bridge.ip_address;
            settings.ip_prefix_len = bridge.ip_prefix_len;
            settings.mac_address = bridge.mac_address;
        }
        settings
    }

    fn graph_driver(&self, container: &Container) -> GraphDriver {
        let upper = self.images.upper_dir(&container.id);
        let beside = |name: &str| upper.with_file_name(name).to_string_lossy().into_owned();
        let data = [
            ("UpperDir", beside("upper")),
            ("WorkDir", beside("work")),
            ("MergedDir", beside("merged")),
        ];
        let data = data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        GraphDriver { data: Some(data), name: "overlay2".to_owned() }
    }
}

/// An id that is the same each time: the text spread over the form of an id.
pub(crate) fn derived_id(parts: &[&str]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parts.join("\0").as_bytes());
    let mut id = const_hex::encode(digest);
    id.truncate(names::ID_LENGTH);
    id
}

/// The id of `bridge`, `host` or `none`.
pub(crate) fn built_in_network_id(name: &str) -> String {
    derived_id(&["network", name])
}

fn state(container: &Container, record: &Record, status: &Status) -> ContainerState {
    ContainerState {
        status: status.phase.name().to_owned(),
        // Docker counts a paused and a restarting container as running.
        running: status.phase.is_up() || status.phase == Phase::Restarting,
        paused: status.phase == Phase::Paused,
        restarting: status.phase == Phase::Restarting,
        oom_killed: status.oom_killed,
        dead: status.phase == Phase::Dead,
        pid: status.pid,
        exit_code: status.exit_code,
        error: status.error.clone(),
        started_at: Time::from(status.started_at),
        finished_at: Time::from(status.finished_at),
        health: health::is_checked(&record.config).then(|| health_of(container, status)),
    }
}

fn health_of(container: &Container, status: &Status) -> Health {
    let log = container.health.lock().unwrap_or_else(PoisonError::into_inner);
    Health {
        status: status.health.map_or("unhealthy", HealthState::name).to_owned(),
        failing_streak: log.failing_streak,
        log: log.results.clone(),
    }
}

//! What the API says of one container.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use docker_types::container::{
    ContainerInspect, ContainerState, GraphDriver, Health, NetworkSettings,
};
use docker_types::mount::MountPoint;
use docker_types::network::EndpointSettings;
use docker_types::time::Time;
use network::DEFAULT_NETWORK;

use super::container::Container;
use super::etc::EtcFiles;
use super::mounts::Kind;
use super::networks::{has_own_namespace, names_of};
use super::ports::port_map;
use super::record::Record;
use super::status::{HealthState, Phase, Status};
use super::validate::LogDriver;
use super::{Containers, Shared, blocking, health, validate};
use crate::error::Error;
use crate::logs;
use crate::names;
use crate::networks::{self, PREDEFINED};

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

    /// The container's places in networks. A task's way to the world beside networks of the swarm is not among them, as in
    /// Docker.
    pub(super) fn endpoints(
        &self,
        container: &Container,
        record: &Record,
    ) -> BTreeMap<String, EndpointSettings> {
        let networks = record.networks.iter();
        networks
            .map(|(name, settings)| {
                (name.clone(), self.endpoint(container, record, name, settings))
            })
            .collect()
    }

    fn endpoint(
        &self,
        container: &Container,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> EndpointSettings {
        let id = &container.id;
        let mut shown = settings.clone();
        if PREDEFINED.contains(&name) {
            shown.network_id = networks::predefined_id(name);
            if let Some(endpoint) = self.network.endpoint(id).filter(|_| name == DEFAULT_NETWORK) {
                shown.endpoint_id = networks::endpoint_id(id, DEFAULT_NETWORK);
                shown.gateway = endpoint.gateway.to_string();
                shown.ip_address = endpoint.address.to_string();
                shown.ip_prefix_len = endpoint.prefix_len;
                shown.mac_address = endpoint.mac;
            }
            return shown;
        }
        shown.dns_names = Some(names_of(record, settings));
        let plugs = self.network.plugs(id);
        if let Some(plug) = plugs.into_iter().find(|plug| plug.network == settings.network_id) {
            shown.endpoint_id = networks::endpoint_id(id, &plug.network);
            shown.gateway = plug.gateway.to_string();
            shown.ip_address = plug.address.to_string();
            shown.ip_prefix_len = plug.prefix_len;
            if let Some(ipv6) = plug.ipv6 {
                shown.global_ipv6_address = ipv6.address.to_string();
                shown.global_ipv6_prefix_len = ipv6.prefix_len;
                shown.ipv6_gateway = ipv6.gateway.map(|it| it.to_string()).unwrap_or_default();
            }
            shown.mac_address = plug.mac;
            return shown;
        }
        let overlay = self.overlay_of(id, name, settings);
        let joined = self.network.joined_of(id);
        if let Some(join) = joined.into_iter().find(|join| join.overlay == overlay) {
            shown.endpoint_id = networks::endpoint_id(id, &overlay);
            shown.network_id = overlay;
            shown.mac_address = join.hardware_address().unwrap_or_default();
            let mut asked = shown.ipam_config.take().unwrap_or_default();
            for address in join.addresses {
                let (text, length) = (address.addr().to_string(), address.prefix_len());
                match address.addr().is_ipv4() {
                    true => {
                        asked.ipv4_address.clone_from(&text);
                        (shown.ip_address, shown.ip_prefix_len) = (text, length);
                    }
                    false => {
                        asked.ipv6_address.clone_from(&text);
                        (shown.global_ipv6_address, shown.global_ipv6_prefix_len) = (text, length);
                    }
                }
            }
            shown.ipam_config = Some(asked);
        }
        shown
    }

    fn network_settings(&self, container: &Container, record: &Record) -> NetworkSettings {
        let networks = self.endpoints(container, record);
        let is_up = container.phase().is_up();
        let mut settings = NetworkSettings { networks, ..NetworkSettings::default() };
        if is_up {
            settings.ports = port_map(record, &container.ports());
            settings.sandbox_id = derived_id(&["sandbox", &container.id]);
        }
        if is_up && has_own_namespace(record) {
            settings.sandbox_key = self.network.netns(&container.id).to_string_lossy().into_owned();
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

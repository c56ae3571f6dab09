//! What can be said of a service spec without looking at anything else. The texts are Docker's.

use std::collections::BTreeSet;

use planner::constraint;
use types::container::{ContainerSpec, MountKind};
use types::endpoint::{EndpointSpec, PublishMode, ResolutionMode};
use types::limits::{MEMORY_LIMIT_BYTES_MIN, NAME_BYTES_MAX, NANO_CPUS_MIN, REPLICAS_MAX};
use types::network::Balancing;
use types::resources::Requirements;
use types::service::{Mode, UpdateConfig};
use types::{Annotations, ServiceSpec, TaskSpec};

use crate::error::{Code, Error};

/// # Errors
/// The first thing that is wrong.
pub(super) fn service_spec(spec: &ServiceSpec) -> Result<(), Error> {
    annotations(&spec.annotations)?;
    Balancing::of(&spec.annotations.labels).map_err(Error::invalid)?;
    task(&spec.task)?;
    mode(spec.mode)?;
    for (config, name) in [(&spec.update, "update"), (&spec.rollback, "rollback")] {
        if let Some(config) = config {
            if spec.mode.is_job() {
                return Err(Error::invalid("Jobs may not have an update config"));
            }
            update_config(config, name)?;
        }
    }
    if let Some(endpoint) = &spec.endpoint {
        self::endpoint(endpoint)?;
    }
    Ok(())
}

/// A name that DNS can carry: letters, digits, dashes and underscores between, dots only as separators.
pub(super) fn annotations(annotations: &Annotations) -> Result<(), Error> {
    let name = &annotations.name;
    if name.is_empty() {
        return Err(Error::invalid("meta: name must be provided"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid("name must be 63 characters or fewer"));
    }
    let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_part = |part: &str| {
        is_edge(part.bytes().next()) && is_edge(part.bytes().next_back()) && part.bytes().all(inner)
    };
    if name.split('.').all(is_part) {
        Ok(())
    } else {
        Err(Error::invalid("name must be valid as a DNS name component"))
    }
}

fn mode(mode: Mode) -> Result<(), Error> {
    match mode {
        Mode::Replicated { replicas } if replicas > REPLICAS_MAX => Err(Error::invalid(format!(
            "Number of replicas must be at most {REPLICAS_MAX}, {replicas} was asked for"
        ))),
        Mode::Replicated { .. } | Mode::Global => Ok(()),
        Mode::ReplicatedJob { .. } | Mode::GlobalJob => Err(Error::new(
            Code::Unimplemented,
            "jobs are not supported yet: use mode replicated or global",
        )),
    }
}

fn task(task: &TaskSpec) -> Result<(), Error> {
    if !matches!(task.runtime.as_str(), "" | "container") {
        return Err(Error::new(Code::Unimplemented, "RuntimeUnsupported"));
    }
    if let Some(resources) = &task.resources {
        self::resources(resources)?;
    }
    if let Some(placement) = &task.placement {
        constraint::parse_all(&placement.constraints)
            .map_err(|error| Error::invalid(error.to_string()))?;
    }
    container(&task.container)
}

fn resources(resources: &Requirements) -> Result<(), Error> {
    let limits = resources.limits.map(|limits| (limits.nano_cpus, limits.memory_bytes));
    let reserved = resources.reservations.as_ref();
    let reserved = reserved.map(|reserved| (reserved.nano_cpus, reserved.memory_bytes));
    for (nano_cpus, memory) in limits.into_iter().chain(reserved) {
        if nano_cpus != 0 && nano_cpus < NANO_CPUS_MIN {
            #[expect(clippy::cast_precision_loss, reason = "shown to the user in cores")]
            let (cores, least) = (nano_cpus as f64 / 1e9, NANO_CPUS_MIN as f64 / 1e9);
            return Err(Error::invalid(format!(
                "invalid cpu value {cores}: Must be at least {least}"
            )));
        }
        if memory != 0 && memory < MEMORY_LIMIT_BYTES_MIN {
            return Err(Error::invalid(format!(
                "invalid memory value {memory}: Must be at least 4MiB"
            )));
        }
    }
    if resources.limits.is_some_and(|limits| limits.pids < 0) {
        return Err(Error::invalid("invalid pids limit: it must not be negative"));
    }
    Ok(())
}

fn container(container: &ContainerSpec) -> Result<(), Error> {
    if container.image.is_empty() {
        return Err(Error::invalid("ContainerSpec: image reference must be provided"));
    }
    let mut targets = BTreeSet::new();
    for mount in &container.mounts {
        if !mount.target.starts_with('/') {
            let target = &mount.target;
            return Err(Error::invalid(format!(
                "invalid mount target, must be an absolute path: {target}"
            )));
        }
        if !targets.insert(&mount.target) {
            return Err(Error::invalid(format!(
                "ContainerSpec: duplicate mount point: {}",
                mount.target
            )));
        }
        if mount.kind == MountKind::Bind && !mount.source.starts_with('/') {
            let source = &mount.source;
            return Err(Error::invalid(format!(
                "invalid bind mount source, must be an absolute path: {source}"
            )));
        }
    }
    if !container.secrets.is_empty() || !container.configs.is_empty() {
        return Err(Error::new(Code::Unimplemented, "secrets and configs are not supported yet"));
    }
    Ok(())
}

fn update_config(config: &UpdateConfig, name: &str) -> Result<(), Error> {
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(Error::invalid(format!(
            "TaskSpec: {name}-maxfailureratio cannot be less than 0 or bigger than 1"
        )));
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), Error> {
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if port.target == 0 {
            return Err(Error::invalid(
                "EndpointSpec: a published port needs a target port from 1 to 65535",
            ));
        }
        let is_ingress = port.mode == PublishMode::Ingress;
        if is_ingress && endpoint.mode == ResolutionMode::Dnsrr {
            return Err(Error::invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        if port.published != 0 && !published.insert((port.protocol, port.published)) {
            return Err(Error::invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

//! Service specs and services.

use std::sync::Arc;

use store::Snapshot;
use types::endpoint::{self, Protocol, PublishMode, ResolutionMode};
use types::resources::{self, Generic};
use types::service::{
    self, FailureAction, Mode, Preference, RestartCondition, UpdateOrder, UpdateState,
};
use types::{Annotations, TaskState};

use super::{Error, container, duration, nanos, time, version, word, word_for};
use crate::object::Empty;
use crate::service as api;

const CONDITIONS: &[(&str, RestartCondition)] = &[
    ("any", RestartCondition::Any),
    ("on-failure", RestartCondition::OnFailure),
    ("none", RestartCondition::None),
];
const FAILURE_ACTIONS: &[(&str, FailureAction)] = &[
    ("pause", FailureAction::Pause),
    ("continue", FailureAction::Continue),
    ("rollback", FailureAction::Rollback),
];
const ORDERS: &[(&str, UpdateOrder)] =
    &[("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)];
const RESOLUTION_MODES: &[(&str, ResolutionMode)] =
    &[("vip", ResolutionMode::Vip), ("dnsrr", ResolutionMode::Dnsrr)];
const PROTOCOLS: &[(&str, Protocol)] =
    &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
const PUBLISH_MODES: &[(&str, PublishMode)] =
    &[("ingress", PublishMode::Ingress), ("host", PublishMode::Host)];
const UPDATE_STATES: &[(&str, UpdateState)] = &[
    ("updating", UpdateState::Updating),
    ("paused", UpdateState::Paused),
    ("completed", UpdateState::Completed),
    ("rollback_started", UpdateState::RollbackStarted),
    ("rollback_paused", UpdateState::RollbackPaused),
    ("rollback_completed", UpdateState::RollbackCompleted),
];

/// What a client asks for, as the cluster understands it. `registry_auth` is the header's content.
///
/// # Errors
/// The first value that means nothing.
pub fn spec_from_api(
    spec: api::ServiceSpec,
    registry_auth: &str,
) -> Result<types::ServiceSpec, Error> {
    let mut task = task_from_api(spec.task_template)?;
    task.container.registry_auth = registry_auth.to_owned();
    Ok(types::ServiceSpec {
        annotations: Annotations { name: spec.name, labels: spec.labels.unwrap_or_default() },
        task,
        mode: mode_from_api(&spec.mode)?,
        update: spec.update_config.map(|config| update_from_api(&config)).transpose()?,
        rollback: spec.rollback_config.map(|config| update_from_api(&config)).transpose()?,
        endpoint: spec.endpoint_spec.map(endpoint_from_api).transpose()?,
        networks: spec.networks.into_iter().map(attachment_from_api).collect(),
    })
}

/// A spec as the API shows it. Credentials stay inside.
pub fn spec_to_api(spec: &types::ServiceSpec) -> api::ServiceSpec {
    api::ServiceSpec {
        name: spec.annotations.name.clone(),
        labels: Some(spec.annotations.labels.clone()),
        task_template: task_template_to_api(&spec.task),
        mode: mode_to_api(spec.mode),
        update_config: spec.update.as_ref().map(update_to_api),
        rollback_config: spec.rollback.as_ref().map(update_to_api),
        networks: spec.networks.iter().map(attachment_to_api).collect(),
        endpoint_spec: spec.endpoint.as_ref().map(endpoint_to_api),
    }
}

/// A service as the API shows it.
pub fn service_to_api(service: &types::Service) -> api::Service {
    let previous = service.previous.as_ref();
    api::Service {
        id: service.id.to_string(),
        version: version(&service.meta),
        created_at: time(service.meta.created_at),
        updated_at: time(service.meta.updated_at),
        spec: spec_to_api(&service.spec),
        previous_spec: previous.map(|previous| spec_to_api(&previous.spec)),
        endpoint: api::Endpoint {
            spec: endpoint_to_api(&service.endpoint.spec),
            ports: service.endpoint.ports.iter().map(port_to_api).collect(),
            virtual_ips: service
                .endpoint
                .virtual_ips
                .iter()
                .map(super::network::virtual_ip_to_api)
                .collect(),
        },
        update_status: service.update_status.as_ref().map(|status| api::UpdateStatus {
            state: word_for(&status.state, UPDATE_STATES),
            started_at: Some(time(status.started_at)),
            completed_at: status.completed_at.map(time),
            message: status.message.clone(),
        }),
        service_status: None,
    }
}

/// The word for the state of a service's update.
pub fn update_state(state: UpdateState) -> String {
    word_for(&state, UPDATE_STATES)
}

/// How many tasks of a service run, and how many shall.
pub fn status(snapshot: &Snapshot, service: &Arc<types::Service>) -> api::ServiceStatus {
    let tasks: Vec<_> = snapshot.tasks_of(service.id).collect();
    let count = |keep: &dyn Fn(&types::Task) -> bool| {
        u64::try_from(tasks.iter().filter(|task| keep(task)).count()).unwrap_or(u64::MAX)
    };
    let running = |task: &types::Task| {
        let node = task.node.and_then(|node| snapshot.node(node));
        let node_is_up = node.is_some_and(|node| node.status.state != types::node::NodeState::Down);
        task.is_wanted() && task.status.state == TaskState::Running && node_is_up
    };
    let desired = match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        _ => count(&|task| task.is_wanted()),
    };
    api::ServiceStatus {
        running_tasks: count(&running),
        desired_tasks: desired,
        completed_tasks: count(&|task| task.status.state == TaskState::Complete),
    }
}

fn task_from_api(task: api::TaskSpec) -> Result<types::TaskSpec, Error> {
    let container =
        task.container_spec.ok_or(Error::Missing("TaskSpec: missing runtime (ContainerSpec)"))?;
    Ok(types::TaskSpec {
        container: container::from_api(container)?,
        resources: task.resources.map(resources_from_api).transpose()?,
        restart: task.restart_policy.map(|policy| restart_from_api(&policy)).transpose()?,
        placement: task.placement.map(placement_from_api),
        networks: task.networks.into_iter().map(attachment_from_api).collect(),
        log_driver: task.log_driver.map(container::driver_from_api),
        force_update: task.force_update,
        // The one runtime there is goes by two names; one is kept, so that what is shown can be sent back unchanged.
        runtime: if task.runtime == "container" { String::new() } else { task.runtime },
    })
}

/// A task's template as the API shows it.
/// Services name the runtime that tasks leave out, as in Docker.
fn task_template_to_api(task: &types::TaskSpec) -> api::TaskSpec {
    let mut template = task_to_api(task);
    if template.runtime.is_empty() {
        "container".clone_into(&mut template.runtime);
    }
    template
}

pub fn task_to_api(task: &types::TaskSpec) -> api::TaskSpec {
    api::TaskSpec {
        container_spec: Some(container::to_api(&task.container)),
        resources: task.resources.as_ref().map(resources_to_api),
        restart_policy: task.restart.as_ref().map(|policy| api::RestartPolicy {
            condition: word_for(&policy.condition, CONDITIONS),
            delay: policy.delay.map(nanos),
            max_attempts: Some(policy.max_attempts),
            window: policy.window.map(nanos),
        }),
        placement: task.placement.as_ref().map(placement_to_api),
        networks: task.networks.iter().map(attachment_to_api).collect(),
        log_driver: task.log_driver.as_ref().map(container::driver_to_api),
        force_update: task.force_update,
        runtime: task.runtime.clone(),
    }
}

fn mode_from_api(mode: &api::ServiceMode) -> Result<Mode, Error> {
    let modes = [
        mode.replicated
            .as_ref()
            .map(|mode| Mode::Replicated { replicas: mode.replicas.unwrap_or(1) }),
        mode.global.map(|_| Mode::Global),
        mode.replicated_job.as_ref().map(|job| {
            let max_concurrent = job.max_concurrent.unwrap_or(1);
            let total_completions = job.total_completions.unwrap_or(max_concurrent);
            Mode::ReplicatedJob { max_concurrent, total_completions }
        }),
        mode.global_job.map(|_| Mode::GlobalJob),
    ];
    let mut given = modes.into_iter().flatten();
    match (given.next(), given.next()) {
        (None, _) => Ok(Mode::Replicated { replicas: 1 }),
        (Some(mode), None) => Ok(mode),
        (Some(_), Some(_)) => Err(Error::TwoModes),
    }
}

fn mode_to_api(mode: Mode) -> api::ServiceMode {
    let mut api = api::ServiceMode::default();
    match mode {
        Mode::Replicated { replicas } => {
            api.replicated = Some(api::Replicated { replicas: Some(replicas) });
        }
        Mode::Global => api.global = Some(Empty {}),
        Mode::ReplicatedJob { max_concurrent, total_completions } => {
            api.replicated_job = Some(api::ReplicatedJob {
                max_concurrent: Some(max_concurrent),
                total_completions: Some(total_completions),
            });
        }
        Mode::GlobalJob => api.global_job = Some(Empty {}),
    }
    api
}

fn restart_from_api(policy: &api::RestartPolicy) -> Result<service::RestartPolicy, Error> {
    let optional = |nanos: Option<i64>, what| nanos.map(|nanos| duration(nanos, what)).transpose();
    Ok(service::RestartPolicy {
        condition: word("RestartCondition", &policy.condition, CONDITIONS)?,
        delay: optional(policy.delay, "TaskSpec: restart-delay")?,
        max_attempts: policy.max_attempts.unwrap_or(0),
        window: optional(policy.window, "TaskSpec: restart-window")?,
    })
}

fn update_from_api(config: &api::UpdateConfig) -> Result<service::UpdateConfig, Error> {
    let monitor = duration(config.monitor, "TaskSpec: update-monitor")?;
    Ok(service::UpdateConfig {
        parallelism: config.parallelism,
        delay: duration(config.delay, "TaskSpec: update-delay")?,
        failure_action: word("update failure action", &config.failure_action, FAILURE_ACTIONS)?,
        monitor: Some(monitor).filter(|monitor| !monitor.is_zero()),
        max_failure_ratio: config.max_failure_ratio,
        order: word("update order", &config.order, ORDERS)?,
    })
}

fn update_to_api(config: &service::UpdateConfig) -> api::UpdateConfig {
    api::UpdateConfig {
        parallelism: config.parallelism,
        delay: nanos(config.delay),
        failure_action: word_for(&config.failure_action, FAILURE_ACTIONS),
        monitor: config.monitor.map_or(0, nanos),
        max_failure_ratio: config.max_failure_ratio,
        order: word_for(&config.order, ORDERS),
    }
}

fn placement_from_api(placement: api::Placement) -> service::Placement {
    let spreads = placement.preferences.into_iter().filter_map(|preference| preference.spread);
    service::Placement {
        constraints: placement.constraints,
        preferences: spreads
            .map(|spread| Preference::Spread { descriptor: spread.spread_descriptor })
            .collect(),
        platforms: placement
            .platforms
            .into_iter()
            .map(|platform| types::node::Platform {
                architecture: platform.architecture,
                os: platform.os,
            })
            .collect(),
        max_replicas: placement.max_replicas,
    }
}

fn placement_to_api(placement: &service::Placement) -> api::Placement {
    let spreads = placement.preferences.iter().map(|Preference::Spread { descriptor }| {
        let spread = api::SpreadOver { spread_descriptor: descriptor.clone() };
        api::PlacementPreference { spread: Some(spread) }
    });
    api::Placement {
        constraints: placement.constraints.clone(),
        preferences: spreads.collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .iter()
            .map(|platform| api::Platform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
            })
            .collect(),
    }
}

fn resources_from_api(api: api::ResourceRequirements) -> Result<resources::Requirements, Error> {
    let reservations = api.reservations.map(|reservations| {
        Ok(resources::Resources {
            nano_cpus: reservations.nano_cpus,
            memory_bytes: reservations.memory_bytes,
            generic: generic_from_api(reservations.generic_resources)?,
        })
    });
    Ok(resources::Requirements {
        limits: api.limits.map(|limits| resources::Limits {
            nano_cpus: limits.nano_cpus,
            memory_bytes: limits.memory_bytes,
            pids: limits.pids,
        }),
        reservations: reservations.transpose()?,
        swap_bytes: api.swap_bytes,
        memory_swappiness: api.memory_swappiness,
    })
}

fn generic_from_api(
    list: Vec<api::GenericResource>,
) -> Result<std::collections::BTreeMap<String, Generic>, Error> {
    let mut all = std::collections::BTreeMap::new();
    for resource in list {
        if let Some(discrete) = resource.discrete_resource_spec {
            if discrete.value < 0 {
                return Err(Error::Negative { what: "generic resource" });
            }
            all.insert(discrete.kind, Generic::Discrete(discrete.value));
        } else if let Some(named) = resource.named_resource_spec {
            let entry = all.entry(named.kind).or_insert_with(|| Generic::Named(Default::default()));
            if let Generic::Named(names) = entry {
                names.insert(named.value);
            }
        }
    }
    Ok(all)
}

/// Generic resources as the API lists them: one entry for each named unit.
pub(crate) fn generic_to_api(resources: &resources::Resources) -> Vec<api::GenericResource> {
    let mut list = Vec::new();
    for (kind, amount) in &resources.generic {
        match amount {
            Generic::Discrete(value) => list.push(api::GenericResource {
                discrete_resource_spec: Some(api::DiscreteGenericResource {
                    kind: kind.clone(),
                    value: *value,
                }),
                named_resource_spec: None,
            }),
            Generic::Named(names) => list.extend(names.iter().map(|name| api::GenericResource {
                named_resource_spec: Some(api::NamedGenericResource {
                    kind: kind.clone(),
                    value: name.clone(),
                }),
                discrete_resource_spec: None,
            })),
        }
    }
    list
}

/// Amounts as the API shows them.
pub(crate) fn amounts_to_api(resources: &resources::Resources) -> api::Resources {
    api::Resources {
        nano_cpus: resources.nano_cpus,
        memory_bytes: resources.memory_bytes,
        generic_resources: generic_to_api(resources),
    }
}

fn resources_to_api(requirements: &resources::Requirements) -> api::ResourceRequirements {
    api::ResourceRequirements {
        limits: requirements.limits.map(|limits| api::Limit {
            nano_cpus: limits.nano_cpus,
            memory_bytes: limits.memory_bytes,
            pids: limits.pids,
        }),
        reservations: requirements.reservations.as_ref().map(amounts_to_api),
        swap_bytes: requirements.swap_bytes,
        memory_swappiness: requirements.memory_swappiness,
    }
}

fn attachment_from_api(attachment: api::NetworkAttachmentConfig) -> types::network::Attachment {
    types::network::Attachment {
        target: attachment.target,
        aliases: attachment.aliases,
        driver_options: attachment.driver_opts,
    }
}

fn attachment_to_api(attachment: &types::network::Attachment) -> api::NetworkAttachmentConfig {
    api::NetworkAttachmentConfig {
        target: attachment.target.clone(),
        aliases: attachment.aliases.clone(),
        driver_opts: attachment.driver_options.clone(),
    }
}

fn endpoint_from_api(spec: api::EndpointSpec) -> Result<endpoint::EndpointSpec, Error> {
    let ports = spec.ports.into_iter().map(|port| {
        Ok(endpoint::PortConfig {
            name: port.name,
            protocol: word("port protocol", &port.protocol, PROTOCOLS)?,
            target: port.target_port,
            published: port.published_port,
            mode: word("publish mode", &port.publish_mode, PUBLISH_MODES)?,
        })
    });
    Ok(endpoint::EndpointSpec {
        mode: word("endpoint mode", &spec.mode, RESOLUTION_MODES)?,
        ports: ports.collect::<Result<_, Error>>()?,
    })
}

fn endpoint_to_api(spec: &endpoint::EndpointSpec) -> api::EndpointSpec {
    api::EndpointSpec {
        mode: word_for(&spec.mode, RESOLUTION_MODES),
        ports: spec.ports.iter().map(port_to_api).collect(),
    }
}

/// A port as the API shows it.
pub fn port_to_api(port: &endpoint::PortConfig) -> api::PortConfig {
    api::PortConfig {
        name: port.name.clone(),
        protocol: word_for(&port.protocol, PROTOCOLS),
        target_port: port.target,
        published_port: port.published,
        publish_mode: word_for(&port.mode, PUBLISH_MODES),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `docker service scale` sends back what it read: nothing but the replicas may differ then.
    #[test]
    fn what_is_shown_can_be_sent_back_and_changes_nothing() {
        for body in [
            json!({"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}),
            json!({
                "Name": "b", "Labels": {"k": "v"},
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Image": "x:y@sha256:00", "Args": ["a"], "Init": false, "DNSConfig": {}, "Isolation": "default",
                        "StopGracePeriod": 10_000_000_000_i64, "Privileges": {"NoNewPrivileges": true, "SELinuxContext": null},
                        "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {}}],
                        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5}, "Ulimits": [{"Name": "nofile", "Hard": 2, "Soft": 1}],
                    },
                    "Resources": {"Limits": {"NanoCPUs": 5_000_000}, "Reservations": {"GenericResources": [
                        {"NamedResourceSpec": {"Kind": "gpu", "Value": "one"}}, {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}}]}},
                    "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0},
                    "Placement": {"Constraints": ["node.role==manager"], "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}],
                        "Platforms": [{"Architecture": "amd64", "OS": "linux"}]},
                    "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
                    "ForceUpdate": 3, "Runtime": "container",
                },
                "Mode": {"Replicated": {"Replicas": 2}},
                "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_i64, "Order": "stop-first"},
                "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]},
            }),
            json!({"Name": "c", "TaskTemplate": {"ContainerSpec": {"Image": "i"}}, "Mode": {"Global": {}}}),
        ] {
            let spec = spec_from_api(serde_json::from_value(body).unwrap(), "").unwrap();
            let shown = serde_json::to_string(&spec_to_api(&spec)).unwrap();
            let sent_back = spec_from_api(serde_json::from_str(&shown).unwrap(), "").unwrap();
            assert_eq!(sent_back, spec, "{shown}");
        }
    }
}

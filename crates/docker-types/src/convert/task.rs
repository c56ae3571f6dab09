//! Tasks as the API shows them, and as the engine runs them.

use store::Snapshot;
use types::{NodeId, Task, TaskTemplate};

use super::service::{port_to_api, task_to_api};
use super::{container, time, version};
use crate::container::{ContainerConfig, HostConfig, LogConfig, PortBinding, PortMap, Ulimit};
use crate::task as api;

/// A task with the template it names filled in.
pub fn task_to_api_with(snapshot: &Snapshot, task: &Task) -> api::Task {
    let template = snapshot.template_of(task);
    api::Task {
        id: task.id.to_string(),
        version: version(&task.meta),
        created_at: time(task.meta.created_at),
        updated_at: time(task.meta.updated_at),
        name: String::new(),
        labels: Default::default(),
        spec: template.map(|template| task_to_api(&template.task)).unwrap_or_default(),
        service_id: task.service.to_string(),
        slot: task.slot.number(),
        node_id: task.node.map(|node| node.to_string()).unwrap_or_default(),
        status: api::TaskStatus {
            timestamp: time(task.status.at),
            state: task.status.state.as_str().to_owned(),
            message: task.status.message.clone(),
            err: task.status.err.clone(),
            container_status: task.status.container.as_ref().map(|container| {
                api::ContainerStatus {
                    container_id: container.id.clone(),
                    pid: container.pid,
                    exit_code: container.exit_code,
                }
            }),
            port_status: api::PortStatus {
                ports: task.status.ports.iter().map(port_to_api).collect(),
            },
        },
        desired_state: task.desired_state.as_str().to_owned(),
        generic_resources: Vec::new(),
    }
}

/// The container that a task asks for: the engine takes it as it takes any client's.
pub fn container_config(
    task: &Task,
    template: &TaskTemplate,
    node: NodeId,
) -> (ContainerConfig, HostConfig) {
    let spec = &template.task.container;
    let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec().into());
    let config = ContainerConfig {
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        env: Some(spec.env.clone()),
        cmd: words(&spec.args),
        entrypoint: words(&spec.command),
        healthcheck: spec.healthcheck.as_ref().map(container::health_to_api),
        image: spec.image.clone(),
        working_dir: spec.dir.clone(),
        labels: Some(labels(task, template, node)),
        stop_signal: spec.stop_signal.clone(),
        ..ContainerConfig::default()
    };
    (config, host_config(template))
}

fn labels(
    task: &Task,
    template: &TaskTemplate,
    node: NodeId,
) -> std::collections::BTreeMap<String, String> {
    let mut labels = template.task.container.labels.clone();
    let own = [
        ("com.docker.swarm.node.id", node.to_string()),
        ("com.docker.swarm.service.id", task.service.to_string()),
        ("com.docker.swarm.service.name", template.service_name.clone()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.id.to_string()),
        ("com.docker.swarm.task.name", task.container_name(&template.service_name)),
    ];
    labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
    labels
}

fn host_config(template: &TaskTemplate) -> HostConfig {
    let spec = &template.task.container;
    let resources = template.task.resources.clone().unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let reserved = resources.reservations.unwrap_or_default();
    let memory_swap = resources.swap_bytes.map(|swap| match swap {
        ..0 => -1,
        swap => limits.memory_bytes.saturating_add(swap),
    });
    let log = template.task.log_driver.as_ref().map(|driver| LogConfig {
        r#type: driver.name.clone(),
        config: Some(driver.options.clone()),
    });
    let mut networks = template.task.networks.iter().map(|network| network.target.as_str());
    let network_mode = networks.find(|name| matches!(*name, "host" | "none"));
    let dns = spec.dns.clone().unwrap_or_default();
    let no_new_privileges = spec.privileges.as_ref().is_some_and(|p| p.no_new_privileges);
    HostConfig {
        network_mode: network_mode.unwrap_or("default").to_owned(),
        port_bindings: Some(port_bindings(template)),
        mounts: spec.mounts.iter().map(container::mount_to_api).collect(),
        readonly_rootfs: spec.read_only,
        init: spec.init,
        cap_add: Some(spec.cap_add.clone().into()),
        cap_drop: Some(spec.cap_drop.clone().into()),
        group_add: Some(spec.groups.clone()),
        sysctls: spec.sysctls.clone(),
        extra_hosts: Some(spec.hosts.iter().filter_map(|host| extra_host(host)).collect()),
        dns: Some(dns.nameservers),
        dns_search: Some(dns.search),
        dns_options: Some(dns.options),
        security_opt: Some(
            no_new_privileges.then(|| "no-new-privileges".to_owned()).into_iter().collect(),
        ),
        ulimits: Some(
            spec.ulimits
                .iter()
                .map(|limit| Ulimit {
                    name: limit.name.clone(),
                    soft: limit.soft,
                    hard: limit.hard,
                })
                .collect(),
        ),
        oom_score_adj: spec.oom_score_adj,
        log_config: log.unwrap_or_default(),
        nano_cpus: limits.nano_cpus,
        memory: limits.memory_bytes,
        memory_reservation: reserved.memory_bytes,
        memory_swap: memory_swap.unwrap_or(0),
        memory_swappiness: resources.memory_swappiness,
        pids_limit: Some(limits.pids).filter(|limit| *limit > 0),
        ..HostConfig::default()
    }
}

/// Ports in host mode, as `docker run -p` asks for them.
fn port_bindings(template: &TaskTemplate) -> PortMap {
    let mut bindings = PortMap::new();
    for port in &template.host_ports {
        let key = format!("{}/{}", port.target, port.protocol.as_str());
        let host_port =
            if port.published == 0 { String::new() } else { port.published.to_string() };
        let binding = PortBinding { host_ip: String::new(), host_port };
        bindings.entry(key).or_default().get_or_insert_default().push(binding);
    }
    bindings
}

/// Services name hosts as `/etc/hosts` does, `address name [name…]`; containers as `name:address`.
fn extra_host(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let address = words.next()?;
    let name = words.next()?;
    Some(format!("{name}:{address}"))
}

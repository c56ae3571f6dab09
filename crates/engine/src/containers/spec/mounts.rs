//! The mounts of a specification: what every container has, then what was asked for, parents before children.

use runtime::defaults;
use runtime::spec::Mount;

use super::Inputs;
use crate::containers::mounts::{Kind, MountPlan};

/// All mounts, in the order they are made.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let record = inputs.record;
    let mut wanted: Vec<Mount> = Vec::new();
    let etc = [
        ("/etc/resolv.conf", &inputs.etc.resolv_conf),
        ("/etc/hostname", &inputs.etc.hostname),
        ("/etc/hosts", &inputs.etc.hosts),
    ];
    let access = if record.host.readonly_rootfs { "ro" } else { "rw" };
    for (destination, source) in etc {
        wanted.push(bind(destination, &source.to_string_lossy(), &["rbind", "rprivate", access]));
    }
    for (plan, source) in record.mounts.iter().zip(inputs.sources) {
        let mount = match plan.kind {
            Kind::Tmpfs => tmpfs(plan),
            Kind::Bind | Kind::Volume => planned_bind(plan, &source.to_string_lossy()),
        };
        wanted.retain(|have| have.destination != mount.destination);
        wanted.push(mount);
    }
    let mut mounts = standard(inputs);
    mounts.retain(|standard| !wanted.iter().any(|mount| mount.destination == standard.destination));
    wanted.sort_by_key(|mount| mount.destination.split('/').count());
    mounts.extend(wanted);
    mounts
}

/// How the root must be tied to the host's mounts for a bind mount's propagation to work.
pub(super) fn root_propagation(mounts: &[MountPlan]) -> String {
    let has =
        |words: [&str; 2]| mounts.iter().any(|mount| words.contains(&mount.propagation.as_str()));
    if has(["shared", "rshared"]) {
        "shared".to_owned()
    } else if has(["slave", "rslave"]) {
        "rslave".to_owned()
    } else {
        String::new()
    }
}

/// `/proc`, `/dev`, `/sys` and their like.
fn standard(inputs: &Inputs<'_>) -> Vec<Mount> {
    let host = &inputs.record.host;
    let shm_bytes = u64::try_from(host.shm_size).unwrap_or(defaults::SHM_BYTES);
    let mut mounts = defaults::mounts(shm_bytes);
    for mount in &mut mounts {
        let is_kernel_view = mount.destination == "/sys" || mount.destination == "/sys/fs/cgroup";
        if host.privileged && is_kernel_view {
            mount.options.retain(|option| option != "ro");
        }
    }
    let replace = |mounts: &mut Vec<Mount>, mount: Mount| {
        mounts.retain(|have| have.destination != mount.destination);
        mounts.push(mount);
    };
    match (host.ipc_mode.as_str(), inputs.shared.ipc_of) {
        ("none", _) => mounts.retain(|mount| mount.destination != "/dev/shm"),
        ("host", _) => {
            for place in ["/dev/shm", "/dev/mqueue"] {
                if std::path::Path::new(place).exists() {
                    replace(&mut mounts, bind(place, place, &["rbind", "rprivate"]));
                }
            }
        }
        (_, Some(pid)) => {
            let source = format!("/proc/{pid}/root/dev/shm");
            replace(&mut mounts, bind("/dev/shm", &source, &["rbind", "rprivate"]));
        }
        _ => {}
    }
    mounts
}

fn planned_bind(plan: &MountPlan, source: &str) -> Mount {
    let recursion = if plan.non_recursive { "bind" } else { "rbind" };
    let propagation = if plan.propagation.is_empty() { "rprivate" } else { &plan.propagation };
    let access = if plan.read_only { "ro" } else { "rw" };
    bind(&plan.destination, source, &[recursion, propagation, access])
}

fn tmpfs(plan: &MountPlan) -> Mount {
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
    for option in &plan.tmpfs_options {
        // `exec` undoes `noexec`, and so on.
        options.retain(|have| have.strip_prefix("no") != Some(option));
        if option != "defaults" {
            options.push(option.clone());
        }
    }
    Mount {
        destination: plan.destination.clone(),
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options,
    }
}

fn bind(destination: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

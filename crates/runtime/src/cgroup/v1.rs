//! Version 1: a tree per controller, limits in files of many names.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::yield_now;

use super::files;
use crate::Error;
use crate::spec::{BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice};

/// Controllers a container gets a group of, where the host has them.
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "systemd",
];

/// Looks at the freezer's state before it counts as stuck.
const FREEZE_LOOKS_MAX: u32 = 1_000_000;

/// One mounted hierarchy, with all controllers mounted there together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers.
    pub controllers: Vec<&'static str>,
}

/// The hierarchies below `root`. Controllers mounted together show as links to one directory.
pub(super) fn hierarchies(root: &str) -> Vec<Hierarchy> {
    let mut found: Vec<((u64, u64), Hierarchy)> = Vec::new();
    let root_device = fs::metadata(root).map_or(0, |it| it.st_dev());
    for controller in CONTROLLERS {
        let mount = Path::new(root).join(controller);
        let Ok(metadata) = fs::metadata(&mount) else { continue };
        // A plain directory of the tmpfs is a mount point with nothing mounted.
        if metadata.st_dev() == root_device {
            continue;
        }
        let identity = (metadata.st_dev(), metadata.st_ino());
        match found.iter_mut().find(|(known, _)| *known == identity) {
            Some((_, hierarchy)) => hierarchy.controllers.push(controller),
            None => found.push((identity, Hierarchy { mount, controllers: vec![controller] })),
        }
    }
    found.into_iter().map(|(_, hierarchy)| hierarchy).collect()
}

/// The directory of `path` for one controller.
pub(super) fn directory_of(
    hierarchies: &[Hierarchy],
    path: &Path,
    controller: &str,
) -> Option<PathBuf> {
    hierarchies
        .iter()
        .find(|hierarchy| hierarchy.controllers.contains(&controller))
        .map(|hierarchy| hierarchy.mount.join(path))
}

/// Makes the directories. A cpuset must have processors and memory nodes before anyone enters.
pub(super) fn create(hierarchies: &[Hierarchy], path: &Path) -> Result<(), Error> {
    for hierarchy in hierarchies {
        files::make(&hierarchy.mount.join(path))?;
        if hierarchy.controllers.contains(&"cpuset") {
            inherit_cpuset(&hierarchy.mount, path)?;
        }
    }
    Ok(())
}

/// Copies processors and memory nodes down each level that has none.
fn inherit_cpuset(mount: &Path, path: &Path) -> Result<(), Error> {
    let mut level = mount.to_owned();
    for part in path.components() {
        let parent = level.clone();
        level.push(part);
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if files::read(&level.join(name))?.is_empty() {
                files::write(&level.join(name), &files::read(&parent.join(name))?)?;
            }
        }
    }
    Ok(())
}

/// Replaces the device rules; the nodes every container has stay allowed, as under other runtimes.
pub(super) fn devices(
    hierarchies: &[Hierarchy],
    path: &Path,
    resources: &Resources,
) -> Result<(), Error> {
    let Some(directory) = directory_of(hierarchies, path, "devices") else { return Ok(()) };
    if resources.devices.is_empty() {
        return Ok(());
    }
    for rule in super::device_filter::with_always_allowed(&resources.devices) {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        files::write(&directory.join(file), &rule_text(rule))?;
    }
    Ok(())
}

fn rule_text(rule: &DeviceRule) -> String {
    if rule.kind.is_empty() || rule.kind == "a" {
        return "a".to_owned();
    }
    let number =
        |it: Option<i64>| it.filter(|it| *it >= 0).map_or("*".to_owned(), |it| it.to_string());
    let access = if rule.access.is_empty() { "rwm" } else { &rule.access };
    format!("{} {}:{} {access}", rule.kind, number(rule.major), number(rule.minor))
}

/// Writes the limits that are set.
pub(super) fn limits(
    hierarchies: &[Hierarchy],
    path: &Path,
    resources: &Resources,
) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let directory = |controller| directory_of(hierarchies, path, controller);
    let missing = |limit| Error::NoController { limit, path: path.to_owned() };
    match directory("memory") {
        Some(it) => memory(&it, &resources.memory, &mut notes)?,
        None if resources.memory.limit.is_some_and(|limit| limit > 0) => {
            return Err(missing("memory"));
        }
        None => {}
    }
    match directory("cpu") {
        Some(it) => cpu(&it, &resources.cpu, &mut notes)?,
        None if resources.cpu.quota.is_some_and(|quota| quota > 0) => {
            return Err(missing("processor time"));
        }
        None => {}
    }
    match directory("cpuset") {
        Some(it) => cpuset(&it, &resources.cpu)?,
        None if !resources.cpu.cpus.is_empty() || !resources.cpu.mems.is_empty() => {
            return Err(missing("the set of processors"));
        }
        None => {}
    }
    match (directory("pids"), resources.pids.limit) {
        (Some(it), Some(limit)) => {
            let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
            files::write(&it.join("pids.max"), &value)?;
        }
        (None, Some(limit)) if limit > 0 => return Err(missing("the number of processes")),
        _ => {}
    }
    if let Some(it) = directory("blkio") {
        block_io(&it, &resources.block_io, &mut notes)?;
    }
    if let Some(it) = directory("hugetlb") {
        for limit in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size);
            files::write(&it.join(file), &limit.limit.to_string())?;
        }
    }
    Ok(notes)
}

/// Memory with swap may never be below memory alone, so the order depends on the direction.
fn memory(directory: &Path, memory: &Memory, notes: &mut Vec<String>) -> Result<(), Error> {
    let limit_file = directory.join("memory.limit_in_bytes");
    let swap_file = directory.join("memory.memsw.limit_in_bytes");
    let write = |file: &Path, value: Option<i64>, notes: &mut Vec<String>| match value {
        Some(value) if value != 0 => files::write_optional(file, &value.to_string(), notes),
        _ => Ok(()),
    };
    let swap = match (memory.limit, memory.swap) {
        (Some(-1), None) => Some(-1),
        (_, swap) => swap,
    };
    let limit_now = files::number(&limit_file);
    let raises = swap.is_some_and(|it| it == -1 || it.cast_unsigned() > limit_now);
    if raises && files::number(&swap_file) != 0 && limit_now < u64::MAX / 4 {
        write(&swap_file, swap, notes)?;
        write(&limit_file, memory.limit, notes)?;
    } else {
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            files::write_limit(&limit_file, &limit.to_string(), "memory")?;
        }
        write(&swap_file, swap, notes)?;
    }
    write(&directory.join("memory.soft_limit_in_bytes"), memory.reservation, notes)?;
    write(&directory.join("memory.kmem.tcp.limit_in_bytes"), memory.kernel_tcp, notes)?;
    if let Some(swappiness) = memory.swappiness {
        files::write(&directory.join("memory.swappiness"), &swappiness.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        files::write(&directory.join("memory.oom_control"), "1")?;
    }
    Ok(())
}

fn cpu(directory: &Path, cpu: &Cpu, notes: &mut Vec<String>) -> Result<(), Error> {
    let write = |file: &str, value: Option<String>, notes: &mut Vec<String>| match value {
        Some(value) if value != "0" => files::write_optional(&directory.join(file), &value, notes),
        _ => Ok(()),
    };
    write("cpu.shares", cpu.shares.map(|it| it.to_string()), notes)?;
    write("cpu.cfs_period_us", cpu.period.map(|it| it.to_string()), notes)?;
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        let file = directory.join("cpu.cfs_quota_us");
        files::write_limit(&file, &quota.to_string(), "processor time")?;
    }
    write("cpu.rt_period_us", cpu.realtime_period.map(|it| it.to_string()), notes)?;
    write("cpu.rt_runtime_us", cpu.realtime_runtime.map(|it| it.to_string()), notes)
}

fn cpuset(directory: &Path, cpu: &Cpu) -> Result<(), Error> {
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            files::write(&directory.join(name), value)?;
        }
    }
    Ok(())
}

fn block_io(directory: &Path, block_io: &BlockIo, notes: &mut Vec<String>) -> Result<(), Error> {
    if let Some(weight) = block_io.weight.filter(|weight| *weight > 0) {
        let bfq = directory.join("blkio.bfq.weight");
        let file = if bfq.exists() { bfq } else { directory.join("blkio.weight") };
        files::write_optional(&file, &weight.to_string(), notes)?;
    }
    for device in &block_io.weight_device {
        let text = format!("{}:{} {}", device.major, device.minor, device.weight);
        files::write_optional(&directory.join("blkio.weight_device"), &text, notes)?;
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("blkio.throttle.read_bps_device", &block_io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block_io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block_io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block_io.throttle_write_iops_device),
    ];
    for (file, devices) in throttles {
        for device in devices {
            let text = format!("{}:{} {}", device.major, device.minor, device.rate);
            files::write_optional(&directory.join(file), &text, notes)?;
        }
    }
    Ok(())
}

/// Asks for a state until the kernel reports it: tasks may be forking meanwhile.
pub(super) fn freeze(hierarchies: &[Hierarchy], path: &Path, frozen: bool) -> Result<(), Error> {
    let Some(directory) = directory_of(hierarchies, path, "freezer") else {
        return Err(Error::InvalidSpec { reason: "host has no freezer controller".to_owned() });
    };
    let file = directory.join("freezer.state");
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    for _ in 0..FREEZE_LOOKS_MAX {
        files::write(&file, wanted)?;
        if files::read(&file)? == wanted {
            return Ok(());
        }
        yield_now();
    }
    // Half frozen is worse than running.
    files::write(&file, "THAWED")?;
    Err(Error::Cgroup { action: "freeze", path: directory, errno: rustix::io::Errno::BUSY })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_controller_no_container_runs_without_its_limit() {
        let mut cases = vec![Resources::default(); 4];
        cases[0].memory.limit = Some(64 << 20);
        cases[1].cpu.quota = Some(50_000);
        cases[2].pids.limit = Some(20);
        cases[3].cpu.cpus = "0".to_owned();
        for resources in cases {
            let error = limits(&[], Path::new("docker/abc"), &resources).unwrap_err();
            assert!(matches!(error, Error::NoController { .. }), "{error}");
        }
        let unlimited = limits(&[], Path::new("docker/abc"), &Resources::default());
        assert_eq!(unlimited.unwrap(), Vec::<String>::new());
    }

    #[test]
    fn limits_are_written_to_the_files_of_their_hierarchies() {
        let tree = tempfile::tempdir().unwrap();
        let hierarchy = |controllers: &[&'static str]| Hierarchy {
            mount: tree.path().join(controllers.join(",")),
            controllers: controllers.to_vec(),
        };
        let hierarchies =
            [hierarchy(&["cpu", "cpuacct"]), hierarchy(&["memory"]), hierarchy(&["pids"])];
        let path = Path::new("docker/abc");
        let file = |controller, name: &str| {
            directory_of(&hierarchies, path, controller).unwrap().join(name)
        };
        let expected = [
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.shares", "512"),
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.memsw.limit_in_bytes", "134217728"),
            ("pids", "pids.max", "20"),
        ];
        for (controller, name, _) in expected {
            fs::create_dir_all(file(controller, "")).unwrap();
            fs::write(file(controller, name), "").unwrap();
        }
        let mut resources = Resources::default();
        resources.memory.limit = Some(64 << 20);
        resources.memory.swap = Some(128 << 20);
        resources.cpu.quota = Some(50_000);
        resources.cpu.shares = Some(512);
        resources.pids.limit = Some(20);
        assert_eq!(limits(&hierarchies, path, &resources).unwrap(), Vec::<String>::new());
        for (controller, name, text) in expected {
            assert_eq!(fs::read_to_string(file(controller, name)).unwrap(), text, "{name}");
        }
    }

    #[test]
    fn device_rules_are_written_as_the_kernel_reads_them() {
        let rule = |kind: &str, major, minor, access: &str| DeviceRule {
            allow: true,
            kind: kind.to_owned(),
            major,
            minor,
            access: access.to_owned(),
        };
        let cases = [
            (rule("a", None, None, "rwm"), "a"),
            (rule("", None, None, ""), "a"),
            (rule("c", None, None, "m"), "c *:* m"),
            (rule("c", Some(136), None, "rwm"), "c 136:* rwm"),
            (rule("b", Some(8), Some(-1), ""), "b 8:* rwm"),
            (rule("c", Some(1), Some(3), "rw"), "c 1:3 rw"),
        ];
        for (rule, text) in cases {
            assert_eq!(rule_text(&rule), text);
        }
    }
}

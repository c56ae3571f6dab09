//! Version 2: one tree, controllers switched on from the top down.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::files;
use crate::Error;
use crate::spec::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// How long the kernel may take to stop all processes.
const FREEZE_SECONDS_MAX: i64 = 10;

/// Makes the directory and switches every controller on above it.
pub(super) fn create(root: &Path, path: &Path) -> Result<(), Error> {
    let available = files::read(&root.join("cgroup.controllers"))?;
    let mut level = root.to_owned();
    for part in path.components() {
        switch_on(&level, &available);
        level.push(part);
        files::make(&level)?;
    }
    Ok(())
}

/// All at once, which the kernel does or does not as a whole; else one by one. A controller that cannot be
/// switched on shows when its limit is written.
fn switch_on(level: &Path, available: &str) {
    let file = level.join("cgroup.subtree_control");
    let enabled = files::read(&file).unwrap_or_default();
    let missing: Vec<_> = available
        .split_whitespace()
        .filter(|it| !enabled.split_whitespace().any(|on| on == *it))
        .map(|it| format!("+{it}"))
        .collect();
    if missing.is_empty() || files::write(&file, &missing.join(" ")).is_ok() {
        return;
    }
    for controller in missing {
        let _ = files::write(&file, &controller);
    }
}

/// Writes the limits that are set.
pub(super) fn limits(directory: &Path, resources: &Resources) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    memory(directory, &resources.memory, &mut notes)?;
    cpu(directory, &resources.cpu, &mut notes)?;
    if let Some(limit) = resources.pids.limit {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        if limit > 0 {
            files::write_limit(&directory.join("pids.max"), &value, "the number of processes")?;
        } else {
            files::write_optional(&directory.join("pids.max"), &value, &mut notes)?;
        }
    }
    block_io(directory, &resources.block_io, &mut notes)?;
    for limit in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.max", limit.page_size);
        files::write(&directory.join(file), &limit.limit.to_string())?;
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || file.contains("..") {
            return Err(Error::InvalidSpec { reason: format!("unified resource {file:?}") });
        }
        files::write(&directory.join(file), value)?;
    }
    Ok(notes)
}

fn bytes(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn memory(directory: &Path, memory: &Memory, notes: &mut Vec<String>) -> Result<(), Error> {
    let swap = swap_only(memory)?;
    match memory.limit {
        Some(limit) if limit > 0 => {
            files::write_limit(&directory.join("memory.max"), &bytes(limit), "memory")?;
        }
        Some(limit) if limit < 0 => {
            files::write_optional(&directory.join("memory.max"), &bytes(limit), notes)?;
        }
        _ => {}
    }
    if let Some(swap) = swap {
        files::write_optional(&directory.join("memory.swap.max"), &bytes(swap), notes)?;
    }
    if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
        files::write_optional(&directory.join("memory.low"), &bytes(reservation), notes)?;
    }
    Ok(())
}

/// The specification counts memory and swap together, version 2 apart.
fn swap_only(memory: &Memory) -> Result<Option<i64>, Error> {
    match (memory.limit, memory.swap) {
        (_, None | Some(0)) => Ok(None),
        (_, Some(swap)) if swap < 0 => Ok(Some(-1)),
        (Some(limit), Some(swap)) if limit > 0 && swap >= limit => Ok(Some(swap - limit)),
        (limit, swap) => {
            let reason = format!("memory and swap {swap:?} below memory {limit:?}");
            Err(Error::InvalidSpec { reason })
        }
    }
}

fn cpu(directory: &Path, cpu: &Cpu, notes: &mut Vec<String>) -> Result<(), Error> {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        let weight = weight_of_shares(shares).to_string();
        files::write_optional(&directory.join("cpu.weight"), &weight, notes)?;
    }
    if cpu.quota.is_some_and(|it| it != 0) || cpu.period.is_some_and(|it| it != 0) {
        let quota = cpu.quota.filter(|quota| *quota > 0).map_or("max".into(), |it| it.to_string());
        let period = cpu.period.filter(|period| *period > 0).unwrap_or(100_000);
        files::write_limit(
            &directory.join("cpu.max"),
            &format!("{quota} {period}"),
            "processor time",
        )?;
    }
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            files::write_limit(&directory.join(name), value, "the set of processors")?;
        }
    }
    Ok(())
}

/// Maps 2..=262144 linearly to 1..=10000, as runc does.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn block_io(directory: &Path, block_io: &BlockIo, notes: &mut Vec<String>) -> Result<(), Error> {
    if let Some(weight) = block_io.weight.filter(|weight| *weight > 0) {
        let bfq = directory.join("io.bfq.weight");
        if bfq.exists() {
            files::write_optional(&bfq, &weight.to_string(), notes)?;
        } else {
            // 10..=1000 of version 1 become 1..=10000.
            let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
            files::write_optional(&directory.join("io.weight"), &weight.to_string(), notes)?;
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            let text = format!("{}:{} {key}={}", device.major, device.minor, device.rate);
            files::write_optional(&directory.join("io.max"), &text, notes)?;
        }
    }
    Ok(())
}

/// Sets the state and waits for the kernel's notice that it is reached.
pub(super) fn freeze(directory: &Path, frozen: bool) -> Result<(), Error> {
    let events = directory.join("cgroup.events");
    let file = fs::File::open(&events).map_err(|error| files::fault("open", &events, &error))?;
    files::write(&directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let timeout = Timespec { tv_sec: FREEZE_SECONDS_MAX, tv_nsec: 0 };
    while (files::keyed(&events, "frozen") == 1) != frozen {
        let mut waited = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
        match poll(&mut waited, Some(&timeout)) {
            Ok(0) => {
                files::write(&directory.join("cgroup.freeze"), "0")?;
                let path = directory.to_owned();
                let errno = rustix::io::Errno::BUSY;
                return Err(Error::Cgroup { action: "freeze", path, errno });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::Cgroup { action: "watch", path: events, errno }),
        }
        // A notice is pending until the file is read from its start.
        let _ = rustix::io::pread(&file, &mut [0; 256], 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with files of a group, each empty.
    fn group(directory: &Path, names: &[&str]) {
        fs::create_dir_all(directory).unwrap();
        for name in names {
            fs::write(directory.join(name), "").unwrap();
        }
    }

    #[test]
    fn controllers_are_switched_on_above_a_group_and_not_in_it() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        group(root, &["cgroup.subtree_control"]);
        fs::write(root.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        group(&root.join("docker"), &["cgroup.subtree_control"]);
        group(&root.join("docker/abc"), &["cgroup.subtree_control"]);
        create(root, Path::new("docker/abc")).unwrap();
        let switched = |group: &str| {
            fs::read_to_string(root.join(group).join("cgroup.subtree_control")).unwrap()
        };
        assert_eq!(switched(""), "+cpu +memory +pids");
        assert_eq!(switched("docker"), "+cpu +memory +pids");
        // A group with processes may have none switched on for groups beneath it.
        assert_eq!(switched("docker/abc"), "");
        fs::write(root.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        create(root, Path::new("docker/abc")).unwrap();
        assert_eq!(switched(""), "cpu memory pids\n", "nothing is written twice");
    }

    #[test]
    fn limits_are_written_in_the_kernels_words() {
        let tree = tempfile::tempdir().unwrap();
        let directory = tree.path();
        let names = [
            "memory.max",
            "memory.low",
            "memory.swap.max",
            "cpu.max",
            "cpu.weight",
            "cpuset.cpus",
            "pids.max",
            "io.max",
        ];
        group(directory, &names);
        let mut resources = Resources::default();
        resources.memory.limit = Some(64 << 20);
        resources.memory.swap = Some(128 << 20);
        resources.memory.reservation = Some(32 << 20);
        resources.cpu.quota = Some(50_000);
        resources.cpu.shares = Some(1024);
        resources.cpu.cpus = "0-1".to_owned();
        resources.pids.limit = Some(20);
        resources.block_io.throttle_read_bps_device =
            vec![ThrottleDevice { major: 8, minor: 0, rate: 1000 }];
        assert_eq!(limits(directory, &resources).unwrap(), Vec::<String>::new());
        for (name, text) in [
            ("memory.max", "67108864"),
            ("memory.low", "33554432"),
            ("memory.swap.max", "67108864"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "39"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "20"),
            ("io.max", "8:0 rbps=1000"),
        ] {
            assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), text, "{name}");
        }
    }

    #[test]
    fn without_a_controller_no_container_runs_without_its_limit() {
        let tree = tempfile::tempdir().unwrap();
        let mut cases = vec![Resources::default(); 4];
        cases[0].memory.limit = Some(64 << 20);
        cases[1].cpu.quota = Some(50_000);
        cases[2].pids.limit = Some(20);
        cases[3].cpu.cpus = "0".to_owned();
        for resources in cases {
            let error = limits(tree.path(), &resources).unwrap_err();
            assert!(matches!(error, Error::NoController { .. }), "{error}");
        }
        let mut resources = Resources::default();
        resources.cpu.shares = Some(1024);
        resources.memory.swap = Some(-1);
        resources.pids.limit = Some(-1);
        assert_eq!(limits(tree.path(), &resources).unwrap().len(), 3, "wishes are noted");
    }

    #[test]
    fn shares_become_weights_as_runc_has_them() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (512, 20)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn swap_is_counted_without_memory() {
        let memory = |limit, swap| Memory { limit, swap, ..Memory::default() };
        assert_eq!(swap_only(&memory(Some(64), Some(128))).unwrap(), Some(64));
        assert_eq!(swap_only(&memory(Some(64), Some(-1))).unwrap(), Some(-1));
        assert_eq!(swap_only(&memory(Some(64), None)).unwrap(), None);
        assert!(swap_only(&memory(Some(64), Some(32))).is_err());
        assert!(swap_only(&memory(None, Some(32))).is_err());
    }
}

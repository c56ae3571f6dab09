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

/// A controller that cannot be switched on shows when its limit is written.
fn switch_on(level: &Path, available: &str) {
    let file = level.join("cgroup.subtree_control");
    let enabled = files::read(&file).unwrap_or_default();
    let missing = |it: &&str| !enabled.split_whitespace().any(|on| on == *it);
    for controller in available.split_whitespace().filter(missing) {
        let _ = files::write(&file, &format!("+{controller}"));
    }
}

/// Writes the limits that are set.
pub(super) fn limits(directory: &Path, resources: &Resources) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    memory(directory, &resources.memory, &mut notes)?;
    cpu(directory, &resources.cpu, &mut notes)?;
    if let Some(limit) = resources.pids.limit {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        files::write_optional(&directory.join("pids.max"), &value, &mut notes)?;
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
    if let Some(swap) = swap_only(memory)? {
        files::write_optional(&directory.join("memory.swap.max"), &bytes(swap), notes)?;
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        files::write_optional(&directory.join("memory.max"), &bytes(limit), notes)?;
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
        files::write_optional(&directory.join("cpu.max"), &format!("{quota} {period}"), notes)?;
    }
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            files::write(&directory.join(name), value)?;
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

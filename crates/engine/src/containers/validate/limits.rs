//! Resource limits: what may be asked for, and what goes together.

use docker_types::container::HostConfig;

use crate::containers::cgroup;
use crate::containers::invalid::Invalid;

/// Docker's floor in bytes: less does not even hold the process that sets the container up.
const MEMORY_BYTES_MIN: i64 = 6 * 1024 * 1024;
const NANO: i64 = 1_000_000_000;
/// Bounds of `cpu.shares` in the kernel.
const CPU_SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;

/// Checks limits and fills in those that follow from others. Returns warnings for the client.
pub(crate) fn check_resources(host: &mut HostConfig) -> Result<Vec<String>, Invalid> {
    let mut warnings = Vec::new();
    check_memory(host, &mut warnings)?;
    check_cpu(host)?;
    check_cpuset(host)?;
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return Err(Invalid::BlkioWeight);
    }
    Ok(warnings)
}

/// Lays an update's limits over the ones a container has; zero keeps what is there.
///
/// # Errors
/// As for a new container, and when memory would exceed the swap limit already set.
pub(crate) fn merge_update(
    current: &HostConfig,
    update: &HostConfig,
) -> Result<HostConfig, Invalid> {
    let mut merged = current.clone();
    if update.memory > 0
        && update.memory_swap == 0
        && current.memory_swap > 0
        && update.memory > current.memory_swap
    {
        return Err(Invalid::MemoryAboveSwap);
    }
    if update.nano_cpus > 0 && (current.cpu_quota > 0 || current.cpu_period > 0) {
        return Err(Invalid::NanoCpusQuota);
    }
    for (have, wanted) in [
        (&mut merged.cpu_shares, update.cpu_shares),
        (&mut merged.cpu_period, update.cpu_period),
        (&mut merged.cpu_quota, update.cpu_quota),
        (&mut merged.nano_cpus, update.nano_cpus),
        (&mut merged.memory, update.memory),
        (&mut merged.memory_swap, update.memory_swap),
        (&mut merged.memory_reservation, update.memory_reservation),
    ] {
        if wanted != 0 {
            *have = wanted;
        }
    }
    if update.blkio_weight != 0 {
        merged.blkio_weight = update.blkio_weight;
    }
    for (have, wanted) in [
        (&mut merged.cpuset_cpus, &update.cpuset_cpus),
        (&mut merged.cpuset_mems, &update.cpuset_mems),
    ] {
        if !wanted.is_empty() {
            have.clone_from(wanted);
        }
    }
    merged.pids_limit = update.pids_limit.or(merged.pids_limit);
    check_resources(&mut merged)?;
    Ok(merged)
}

fn check_memory(host: &mut HostConfig, warnings: &mut Vec<String>) -> Result<(), Invalid> {
    if host.memory != 0 && host.memory < MEMORY_BYTES_MIN {
        return Err(Invalid::MemoryMin);
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(Invalid::MemorySwapMin);
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return Err(Invalid::MemorySwapAlone);
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    match host.memory_swappiness {
        // The command line sends -1 for "not given".
        Some(-1) => host.memory_swappiness = None,
        Some(value) if !(0..=100).contains(&value) => return Err(Invalid::Swappiness { value }),
        _ => {}
    }
    if host.memory_reservation > 0 && host.memory_reservation < MEMORY_BYTES_MIN {
        return Err(Invalid::ReservationMin);
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return Err(Invalid::ReservationAboveLimit);
    }
    if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .to_owned(),
        );
    }
    Ok(())
}

fn check_cpu(host: &mut HostConfig) -> Result<(), Invalid> {
    if host.nano_cpus > 0 && host.cpu_period > 0 {
        return Err(Invalid::NanoCpusPeriod);
    }
    if host.nano_cpus > 0 && host.cpu_quota > 0 {
        return Err(Invalid::NanoCpusQuota);
    }
    let cpus = cgroup::online_cpus();
    let nano_max = i64::try_from(cpus).unwrap_or(i64::MAX / NANO).saturating_mul(NANO);
    // A hundredth of a CPU is the least the kernel's quota expresses.
    if host.nano_cpus < 0
        || (host.nano_cpus > 0 && host.nano_cpus < NANO / 100)
        || host.nano_cpus > nano_max
    {
        return Err(Invalid::NanoCpus { cpus });
    }
    if host.cpu_shares < 0 {
        return Err(Invalid::CpuShares);
    }
    if host.cpu_shares > 0 {
        host.cpu_shares = host.cpu_shares.clamp(*CPU_SHARES.start(), *CPU_SHARES.end());
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return Err(Invalid::CpuPeriod);
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return Err(Invalid::CpuQuota);
    }
    Ok(())
}

fn check_cpuset(host: &HostConfig) -> Result<(), Invalid> {
    let invalid = |kind, value: &str| Invalid::Cpuset { kind, value: value.to_owned() };
    let cpus = parse_set(&host.cpuset_cpus).ok_or_else(|| invalid("cpus", &host.cpuset_cpus))?;
    parse_set(&host.cpuset_mems).ok_or_else(|| invalid("mems", &host.cpuset_mems))?;
    let available = cgroup::online_cpus();
    if cpus.is_some_and(|last| last >= available) {
        return Err(Invalid::CpusetAbsent {
            requested: host.cpuset_cpus.clone(),
            available: format!("0-{}", available - 1),
        });
    }
    Ok(())
}

/// The largest member of a set such as `0-3,7`; `Some(None)` for the empty text, `None` for a wrong one.
fn parse_set(text: &str) -> Option<Option<usize>> {
    if text.is_empty() {
        return Some(None);
    }
    let mut largest = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first {
            return None;
        }
        largest = largest.max(last);
    }
    Some(Some(largest))
}

#[cfg(test)]
mod tests {
    use docker_types::container::HostConfig;

    use super::{merge_update, parse_set};

    #[test]
    fn cpu_sets_are_read() {
        assert_eq!(parse_set(""), Some(None));
        assert_eq!(parse_set("0-3,7"), Some(Some(7)));
        for wrong in ["x", "3-1", "0,,1", "-"] {
            assert_eq!(parse_set(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let current = HostConfig {
            memory: 20_000_000,
            memory_swap: 40_000_000,
            cpu_shares: 512,
            ..Default::default()
        };
        let update = HostConfig { memory: 30_000_000, ..Default::default() };
        let merged = merge_update(&current, &update).unwrap();
        assert_eq!(
            (merged.memory, merged.memory_swap, merged.cpu_shares),
            (30_000_000, 40_000_000, 512)
        );
        let update = HostConfig { memory: 50_000_000, ..Default::default() };
        assert!(merge_update(&current, &update).is_err());
    }
}

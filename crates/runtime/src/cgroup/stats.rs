//! Reads a group's counters into one shape for both versions.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files;
use super::v1::{Hierarchy, directory_of};

/// Nanoseconds in a clock tick of `cpuacct.stat`: USER_HZ is 100 on every Linux.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// All counters of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Whether the keys of [`MemoryUse::stat`] are those of version 2.
    pub v2: bool,
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: MemoryUse,
    /// Tasks now.
    pub pids_current: u64,
    /// Most tasks; zero is unlimited.
    pub pids_limit: u64,
    /// Block devices.
    pub block_io: BlockIo,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// All time used.
    pub total_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub kernel_ns: u64,
    /// By processor; empty on version 2.
    pub per_cpu_ns: Vec<u64>,
    /// Periods with a limit in force.
    pub periods: u64,
    /// Periods in which the limit was reached.
    pub throttled_periods: u64,
    /// Time the group was held back.
    pub throttled_ns: u64,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// In use, page cache included.
    pub usage: u64,
    /// Most ever in use; zero where the kernel does not count it.
    pub max_usage: u64,
    /// Limit; `u64::MAX` is none.
    pub limit: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
    /// The kernel's `memory.stat`.
    pub stat: BTreeMap<String, u64>,
}

/// Block device counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Bytes.
    pub service_bytes: Vec<BlockIoEntry>,
    /// Operations.
    pub serviced: Vec<BlockIoEntry>,
}

/// One counter of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIoEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`.
    pub op: String,
    /// Count.
    pub value: u64,
}

pub(super) fn v1(hierarchies: &[Hierarchy], path: &Path) -> Stats {
    let directory = |controller| directory_of(hierarchies, path, controller);
    let mut stats = Stats::default();
    if let Some(it) = directory("cpuacct") {
        stats.cpu.total_ns = files::number(&it.join("cpuacct.usage"));
        stats.cpu.user_ns = files::keyed(&it.join("cpuacct.stat"), "user") * NANOSECONDS_PER_TICK;
        stats.cpu.kernel_ns =
            files::keyed(&it.join("cpuacct.stat"), "system") * NANOSECONDS_PER_TICK;
        stats.cpu.per_cpu_ns = numbers(&it.join("cpuacct.usage_percpu"));
    }
    if let Some(it) = directory("cpu") {
        throttling(&mut stats.cpu, &pairs(&it.join("cpu.stat")), "throttled_time", 1);
    }
    if let Some(it) = directory("memory") {
        stats.memory = MemoryUse {
            usage: files::number(&it.join("memory.usage_in_bytes")),
            max_usage: files::number(&it.join("memory.max_usage_in_bytes")),
            limit: files::number(&it.join("memory.limit_in_bytes")),
            failcnt: files::number(&it.join("memory.failcnt")),
            stat: pairs(&it.join("memory.stat")),
        };
        stats.oom_kills = files::keyed(&it.join("memory.oom_control"), "oom_kill");
    }
    if let Some(it) = directory("pids") {
        stats.pids_current = files::number(&it.join("pids.current"));
        stats.pids_limit = limit(&it.join("pids.max"));
    }
    if let Some(it) = directory("blkio") {
        stats.block_io.service_bytes = blkio(&it.join("blkio.throttle.io_service_bytes_recursive"));
        stats.block_io.serviced = blkio(&it.join("blkio.throttle.io_serviced_recursive"));
    }
    stats
}

pub(super) fn v2(directory: &Path) -> Stats {
    let cpu = pairs(&directory.join("cpu.stat"));
    let microseconds = |key: &str| cpu.get(key).copied().unwrap_or(0).saturating_mul(1000);
    let mut stats = Stats { v2: true, ..Stats::default() };
    stats.cpu.total_ns = microseconds("usage_usec");
    stats.cpu.user_ns = microseconds("user_usec");
    stats.cpu.kernel_ns = microseconds("system_usec");
    throttling(&mut stats.cpu, &cpu, "throttled_usec", 1000);
    let events = directory.join("memory.events");
    stats.memory = MemoryUse {
        usage: files::number(&directory.join("memory.current")),
        max_usage: files::number(&directory.join("memory.peak")),
        limit: files::number(&directory.join("memory.max")),
        failcnt: files::keyed(&events, "max"),
        stat: pairs(&directory.join("memory.stat")),
    };
    stats.oom_kills = files::keyed(&events, "oom_kill");
    stats.pids_current = files::number(&directory.join("pids.current"));
    stats.pids_limit = limit(&directory.join("pids.max"));
    stats.block_io = io_stat(&fs::read_to_string(directory.join("io.stat")).unwrap_or_default());
    stats
}

fn throttling(cpu: &mut Cpu, stat: &BTreeMap<String, u64>, time: &str, nanoseconds: u64) {
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    cpu.periods = value("nr_periods");
    cpu.throttled_periods = value("nr_throttled");
    cpu.throttled_ns = value(time).saturating_mul(nanoseconds);
}

fn limit(path: &Path) -> u64 {
    match files::number(path) {
        u64::MAX => 0,
        limit => limit,
    }
}

fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn pairs(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// Lines of `major:minor Operation count`; the grand total has no device.
fn blkio(path: &Path) -> Vec<BlockIoEntry> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(blkio_line).collect()
}

fn blkio_line(line: &str) -> Option<BlockIoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let op = words.next()?.to_owned();
    let value = words.next()?.parse().ok()?;
    Some(BlockIoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value })
}

/// Lines of `major:minor key=value ...`, turned to the operations version 1 has.
fn io_stat(text: &str) -> BlockIo {
    let mut io = BlockIo::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let entry = |op: &str| BlockIoEntry { major, minor, op: op.to_owned(), value };
            match key {
                "rbytes" => io.service_bytes.push(entry("read")),
                "wbytes" => io.service_bytes.push(entry("write")),
                "rios" => io.serviced.push(entry("read")),
                "wios" => io.serviced.push(entry("write")),
                _ => {}
            }
        }
    }
    io
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_block_devices_are_read_from_both_versions() {
        let line = blkio_line("254:0 Read 4096").unwrap();
        assert_eq!((line.major, line.minor, line.op.as_str(), line.value), (254, 0, "Read", 4096));
        assert_eq!(blkio_line("Total 4096"), None);
        let io = io_stat("8:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0\n");
        assert_eq!(io.service_bytes.len(), 2);
        assert_eq!(io.serviced[1].value, 2);
    }
}

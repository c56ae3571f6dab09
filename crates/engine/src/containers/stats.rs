//! What a container uses: samples of its cgroup and its network, one a second for those who look.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use docker_types::stats::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats,
    StatsResponse, ThrottlingData,
};
use docker_types::time::Time;
use futures::Stream;
use jiff::Timestamp;
use runtime::cgroup::{self, Cgroup};
use tokio::time::MissedTickBehavior;

use super::container::Container;
use super::{Containers, Shared, blocking, online_cpus};
use crate::error::Error;

/// Time between two samples: what Docker's clients expect.
const PERIOD: Duration = Duration::from_secs(1);
/// Nanoseconds in a tick of `/proc/stat`: USER_HZ is 100 on every Linux.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Which samples are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsMode {
    /// One now, without one to compare with.
    OneShot,
    /// One, compared with another a second before.
    Single,
    /// One a second for as long as the container is there.
    Stream,
}

impl Containers {
    /// Samples of what a container uses. One that does not run gives empty samples, as in Docker.
    ///
    /// # Errors
    /// No such container.
    pub fn stats(
        &self,
        name: &str,
        mode: StatsMode,
    ) -> Result<impl Stream<Item = StatsResponse> + Send + use<>, Error> {
        let container = self.shared.registry.find(name)?;
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sampler = Sampler {
            shared: Arc::clone(&self.shared),
            container,
            ticks,
            last: None,
            is_done: false,
        };
        Ok(futures::stream::unfold(sampler, move |mut sampler| async move {
            let sample = sampler.next(mode).await?;
            Some((sample, sampler))
        }))
    }
}

struct Sampler {
    shared: Arc<Shared>,
    container: Arc<Container>,
    ticks: tokio::time::Interval,
    last: Option<StatsResponse>,
    is_done: bool,
}

impl Sampler {
    async fn next(&mut self, mode: StatsMode) -> Option<StatsResponse> {
        if self.is_done || self.container.status().removed {
            return None;
        }
        self.ticks.tick().await;
        if mode == StatsMode::Single && self.last.is_none() {
            self.last = Some(self.sample().await);
            self.ticks.tick().await;
        }
        self.is_done = mode != StatsMode::Stream;
        let mut sample = self.sample().await;
        if let Some(last) = &self.last {
            sample.preread = last.read;
            sample.precpu_stats = last.cpu_stats.clone();
        }
        self.last = Some(sample.clone());
        Some(sample)
    }

    async fn sample(&self) -> StatsResponse {
        let record = self.container.record();
        let status = self.container.status();
        let mut response = StatsResponse {
            name: format!("/{}", record.name),
            id: self.container.id.clone(),
            ..StatsResponse::default()
        };
        if !status.phase.is_up() {
            return response;
        }
        let path = self.shared.cgroups_path(&record);
        let sampled = blocking(move || Ok(read(&path, status.pid))).await;
        if let Ok(Some((stats, networks))) = sampled {
            response.read = Time::from(Timestamp::now());
            fill(&mut response, &stats);
            response.networks = networks;
        }
        response
    }
}

/// The counters of a cgroup, and of the network its first process has. Blocking.
fn read(path: &str, pid: u32) -> Option<(cgroup::Stats, BTreeMap<String, NetworkStats>)> {
    let stats = Cgroup::new(path).ok()?.stats();
    let networks = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    Some((stats, parse_networks(&networks)))
}

fn fill(response: &mut StatsResponse, stats: &cgroup::Stats) {
    response.pids_stats = PidsStats {
        current: Some(stats.pids_current),
        // Docker writes the largest number for "unlimited".
        limit: Some(if stats.pids_limit == 0 { u64::MAX } else { stats.pids_limit }),
    };
    response.cpu_stats = CpuStats {
        cpu_usage: CpuUsage {
            total_usage: stats.cpu.total_ns,
            percpu_usage: Some(stats.cpu.per_cpu_ns.clone()).filter(|cpus| !cpus.is_empty()),
            usage_in_kernelmode: stats.cpu.kernel_ns,
            usage_in_usermode: stats.cpu.user_ns,
        },
        system_cpu_usage: system_cpu(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        online_cpus: u32::try_from(online_cpus()).ok(),
        throttling_data: ThrottlingData {
            periods: stats.cpu.periods,
            throttled_periods: stats.cpu.throttled_periods,
            throttled_time: stats.cpu.throttled_ns,
        },
    };
    let memory = &stats.memory;
    let limit = memory.limit.min(memory_total());
    response.memory_stats = MemoryStats {
        usage: Some(memory.usage),
        max_usage: Some(memory.max_usage).filter(|_| !stats.v2),
        stats: memory.stat.clone(),
        failcnt: Some(memory.failcnt).filter(|count| *count > 0),
        limit: Some(limit),
    };
    let mut blkio = [Vec::new(), Vec::new()];
    for (list, entries) in
        blkio.iter_mut().zip([&stats.block_io.service_bytes, &stats.block_io.serviced])
    {
        list.extend(entries.iter().map(|entry| BlkioEntry {
            major: entry.major,
            minor: entry.minor,
            op: entry.op.clone(),
            value: entry.value,
        }));
    }
    let [service_bytes, serviced] = blkio;
    response.blkio_stats = BlkioStats {
        io_service_bytes_recursive: Some(service_bytes),
        io_serviced_recursive: Some(serviced),
        ..BlkioStats::default()
    };
}

/// Bytes of memory the host has.
pub(crate) fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::unnecessary_cast, reason = "the kernel's word is narrower on 32-bit machines")]
    let (total, unit) = (info.totalram as u64, u64::from(info.mem_unit));
    total.saturating_mul(unit)
}

/// Nanoseconds all processors have spent, idle time included: user to softirq, as Docker adds them up.
fn system_cpu(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: u64 =
        line.split_whitespace().skip(1).take(7).filter_map(|n| n.parse::<u64>().ok()).sum();
    Some(ticks * NANOSECONDS_PER_TICK)
}

/// Reads `/proc/<pid>/net/dev`, without the loopback.
fn parse_networks(text: &str) -> BTreeMap<String, NetworkStats> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let &[
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers.as_slice()
        else {
            return None;
        };
        let stats = NetworkStats {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        (name != "lo").then(|| (name.to_owned(), stats))
    };
    text.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::{parse_networks, system_cpu};

    #[test]
    fn the_kernels_tables_are_read() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let networks = parse_networks(text);
        assert_eq!(networks.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!((networks["eth0"].rx_bytes, networks["eth0"].tx_dropped), (1, 12));
        assert_eq!(system_cpu("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), Some(28 * 10_000_000));
    }
}

//! Limits, from Docker's units to the specification's.

use std::os::unix::fs::MetadataExt;

use docker_types::container::{HostConfig, ThrottleDevice as Throttle, WeightDevice as Weight};
use runtime::spec::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

/// Length of a period in microseconds that a number of CPUs is turned into.
const CPU_PERIOD: u64 = 100_000;

/// The limits of a container or an update; zero asks for nothing.
pub(crate) fn resources(host: &HostConfig) -> Resources {
    let positive = |value: i64| Some(value).filter(|value| *value > 0);
    Resources {
        memory: Memory {
            limit: positive(host.memory),
            reservation: positive(host.memory_reservation),
            swap: Some(host.memory_swap).filter(|swap| *swap != 0),
            swappiness: host.memory_swappiness.and_then(|value| u64::try_from(value).ok()),
            disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
            ..Memory::default()
        },
        cpu: cpu(host),
        pids: Pids { limit: host.pids_limit.map(|limit| if limit <= 0 { -1 } else { limit }) },
        block_io: block_io(host),
        ..Resources::default()
    }
}

fn cpu(host: &HostConfig) -> Cpu {
    let mut cpu = Cpu {
        shares: u64::try_from(host.cpu_shares).ok().filter(|shares| *shares > 0),
        quota: Some(host.cpu_quota).filter(|quota| *quota != 0),
        period: u64::try_from(host.cpu_period).ok().filter(|period| *period > 0),
        realtime_runtime: Some(host.cpu_realtime_runtime).filter(|runtime| *runtime != 0),
        realtime_period: u64::try_from(host.cpu_realtime_period).ok().filter(|period| *period > 0),
        cpus: host.cpuset_cpus.clone(),
        mems: host.cpuset_mems.clone(),
    };
    if host.nano_cpus > 0 {
        cpu.period = Some(CPU_PERIOD);
        cpu.quota = Some(host.nano_cpus / (1_000_000_000 / CPU_PERIOD.cast_signed()));
    }
    cpu
}

fn block_io(host: &HostConfig) -> BlockIo {
    let throttles = |list: &Option<Vec<Throttle>>| -> Vec<ThrottleDevice> {
        let device = |throttle: &Throttle| {
            let (major, minor) = numbers(&throttle.path)?;
            Some(ThrottleDevice { major, minor, rate: throttle.rate })
        };
        list.iter().flatten().filter_map(device).collect()
    };
    let weight = |weight: &Weight| {
        let (major, minor) = numbers(&weight.path)?;
        Some(WeightDevice { major, minor, weight: weight.weight })
    };
    BlockIo {
        weight: Some(host.blkio_weight).filter(|weight| *weight > 0),
        weight_device: host.blkio_weight_device.iter().flatten().filter_map(weight).collect(),
        throttle_read_bps_device: throttles(&host.blkio_device_read_bps),
        throttle_write_bps_device: throttles(&host.blkio_device_write_bps),
        throttle_read_iops_device: throttles(&host.blkio_device_read_iops),
        throttle_write_iops_device: throttles(&host.blkio_device_write_iops),
    }
}

/// The numbers of the device a path names.
fn numbers(path: &str) -> Option<(i64, i64)> {
    let device = std::fs::metadata(path).ok()?.rdev();
    Some((i64::from(rustix::fs::major(device)), i64::from(rustix::fs::minor(device))))
}

#[cfg(test)]
mod tests {
    use docker_types::container::HostConfig;

    use super::resources;

    #[test]
    fn limits_are_turned_into_the_kernels_units() {
        let host = HostConfig {
            memory: 64 << 20,
            memory_swap: -1,
            nano_cpus: 1_500_000_000,
            pids_limit: Some(-5),
            ..HostConfig::default()
        };
        let limits = resources(&host);
        assert_eq!((limits.memory.limit, limits.memory.swap), (Some(64 << 20), Some(-1)));
        assert_eq!((limits.cpu.quota, limits.cpu.period), (Some(150_000), Some(100_000)));
        assert_eq!(limits.pids.limit, Some(-1));
        let none = resources(&HostConfig::default());
        assert_eq!(none, runtime::spec::Resources::default());
    }
}

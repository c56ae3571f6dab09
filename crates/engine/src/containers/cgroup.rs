//! What the host's cgroups can do.

use std::num::NonZero;
use std::path::Path;
use std::sync::OnceLock;

/// Whether the host has the unified hierarchy (cgroup v2) alone.
pub(crate) fn is_unified() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    *UNIFIED.get_or_init(|| Path::new("/sys/fs/cgroup/cgroup.controllers").exists())
}

/// CPUs this process may run on.
pub(crate) fn online_cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// What the host offers to containers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFacts {
    pub(crate) is_unified: bool,
    pub(crate) swap_limit: bool,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
}

/// Looks at the host.
pub(crate) fn host_facts() -> HostFacts {
    let is_unified = is_unified();
    let swap_file = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes";
    HostFacts {
        is_unified,
        swap_limit: is_unified || Path::new(swap_file).exists(),
        cpus: online_cpus(),
        memory_bytes: super::stats::memory_total(),
    }
}

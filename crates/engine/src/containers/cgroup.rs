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

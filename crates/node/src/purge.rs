//! Takes a node down for good: what its daemon made in the kernel and on the disk is removed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Parser};
use engine::Engine;
use engine::containers::{ListOptions, RemoveOptions};

use crate::config::Config;
use crate::{daemon, flags};

/// Where the node's daemon kept its things.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    #[arg(long, default_value = "/var/lib/skep")]
    data_root: PathBuf,
    #[arg(long, default_value = "/run/skep")]
    exec_root: PathBuf,
    #[arg(long, default_value = "/skep")]
    cgroup_parent: String,
}

pub(crate) fn run(purge: Flags) -> anyhow::Result<()> {
    if !purge.data_root.exists() && !purge.exec_root.exists() {
        return Ok(());
    }
    let mut arguments: Vec<OsString> = vec!["daemon".into()];
    arguments.extend(["--data-root".into(), purge.data_root.clone().into()]);
    arguments.extend(["--exec-root".into(), purge.exec_root.clone().into()]);
    arguments.extend(["--cgroup-parent".into(), purge.cgroup_parent.clone().into()]);
    let flags = flags::Daemon::try_parse_from(&arguments)?;
    let config = Config::resolve_again(flags, &arguments[1..])?;
    std::fs::create_dir_all(&purge.data_root).context("reach the data root")?;
    let lock = daemon::lock(&purge.data_root)?;
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(empty(config))?;
    drop(lock);
    remove_cgroups(&purge.cgroup_parent);
    for directory in [&purge.exec_root, &purge.data_root] {
        unmount_beneath(directory)?;
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn empty(config: Config) -> anyhow::Result<()> {
    let engine = Engine::open(config.engine).await.context("open the engine")?;
    let all = ListOptions { all: true, ..ListOptions::default() };
    for container in engine.containers.list(&all).await? {
        let force = RemoveOptions { force: true, volumes: true };
        engine.containers.remove(&container.id, force).await?;
    }
    engine.network.close().await?;
    engine.close().await;
    Ok(())
}

/// Empty groups go; one that still holds a process stays, and with it whatever runs there.
fn remove_cgroups(parent: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let parent = parent.trim_matches('/');
    let mut hierarchies = vec![root.to_owned()];
    hierarchies
        .extend(std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()));
    for group in hierarchies.iter().map(|hierarchy| hierarchy.join(parent)) {
        remove_group(&group);
    }
}

fn remove_group(group: &Path) {
    let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        remove_group(&entry.path());
    }
    let _ = std::fs::remove_dir(group);
}

fn unmount_beneath(directory: &Path) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut targets: Vec<_> = targets.filter(|target| target.starts_with(directory)).collect();
    // The newest first: they stand on the older ones.
    targets.reverse();
    for target in targets {
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", target.display()))?;
    }
    Ok(())
}

//! Makes a container: checks the request, takes a name, lays out the root file system, the volumes and the
//! record. Nothing is left behind when a step fails.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use docker_types::container::{ContainerConfig, HealthConfig, HostConfig};
use docker_types::network::NetworkingConfig;
use docker_types::volume::VolumeCreateRequest;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::container::Container;
use super::invalid::Invalid;
use super::mounts::{self, Kind, MountPlan};
use super::record::{Record, RunState};
use super::{Containers, Shared, blocking, copy, merge, validate};
use crate::beneath::Root;
use crate::error::{Attempt, Error};
use crate::images::Image;
use crate::images::config::RunConfig;
use crate::images::rootfs::RootfsOptions;
use crate::names;

/// How long a written change may stay in the kernel's cache before it is on disk.
const SYNC_DELAY: Duration = Duration::from_secs(1);

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct NewContainer {
    /// Without one, a name is invented.
    pub name: Option<String>,
    pub config: ContainerConfig,
    pub host: HostConfig,
    pub networking: NetworkingConfig,
    /// `os/architecture[/variant]` the image must have.
    pub platform: Option<String>,
}

/// A container that has been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

impl Containers {
    /// Makes a container from an image that is here.
    ///
    /// # Errors
    /// What is wrong with the request, a name that is taken, an image that is not here.
    pub async fn create(&self, new: NewContainer) -> Result<Created, Error> {
        self.detached(|shared| shared.create(new)).await
    }
}

impl Shared {
    async fn create(self: Arc<Self>, new: NewContainer) -> Result<Created, Error> {
        if new.config.image.is_empty() {
            return Err(Invalid::NoConfig.into());
        }
        let id = names::new_id();
        let reservation = self.registry.reserve(new.name.as_deref(), &id)?;
        let image = self.images.find(&new.config.image)?;
        check_platform(&image, new.platform.as_deref(), &new.config.image)?;
        let (record, warnings) = self.draft(new, &image, &id, &reservation.name)?;
        let shared = Arc::clone(&self);
        let record = blocking(move || shared.make(record, &image)).await?;
        let container = Container::new(
            record,
            RunState::default(),
            self.containers_dir().join(&id),
            self.bundle_of(&id),
        );
        let container = Arc::new(container);
        self.registry.insert(Arc::clone(&container));
        reservation.keep();
        self.sync.request();
        self.set_status(&container, |_| {});
        self.event(&container, "create", &[]);
        Ok(Created { id, warnings })
    }

    /// The record of a container, with all of the request checked and completed.
    fn draft(
        &self,
        new: NewContainer,
        image: &Image,
        id: &str,
        name: &str,
    ) -> Result<(Record, Vec<String>), Error> {
        let NewContainer { mut config, mut host, networking, .. } = new;
        validate::check_config(&config)?;
        let warnings = validate::check_host(&config, &mut host)?;
        self.complete_host(&mut host)?;
        let networks = self.plan_networks(networking, &mut host, &config)?;
        merge::complete(&mut config, image_config(&image.config.config));
        validate::check_config(&config)?;
        let (path, args) = merge::command_line(&config)?;
        let mounts = self.plan_mounts(&config, &host)?;
        if config.hostname.is_empty() {
            config.hostname = match host.network_mode.as_str() {
                "host" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
                _ => names::short(id).to_owned(),
            };
        }
        let record = Record {
            id: id.to_owned(),
            name: name.to_owned(),
            created: Timestamp::now(),
            image_id: image.id.to_string(),
            path,
            args,
            config,
            host,
            networks,
            mounts,
        };
        self.check_links(&record)?;
        Ok((record, warnings))
    }

    /// Fills in what depends on this daemon: logging, runtime, ids in place of names.
    fn complete_host(&self, host: &mut HostConfig) -> Result<(), Error> {
        if host.log_config.r#type.is_empty() {
            let own = host.log_config.config.take().filter(|options| !options.is_empty());
            host.log_config = self.config.log.clone();
            host.log_config.config = own.or_else(|| host.log_config.config.clone());
        }
        host.log_config.config.get_or_insert_default();
        validate::log_driver(&host.log_config)?;
        let named = host.ulimits.get_or_insert_default();
        for limit in &self.config.default_ulimits {
            if !named.iter().any(|own| own.name == limit.name) {
                named.push(limit.clone());
            }
        }
        if host.runtime.is_empty() {
            host.runtime.clone_from(&self.config.default_runtime);
        }
        if host.runtime != "native" && !self.config.runtimes.contains_key(&host.runtime) {
            return Err(Invalid::Runtime { name: host.runtime.clone() }.into());
        }
        for mode in [&mut host.network_mode, &mut host.pid_mode, &mut host.ipc_mode] {
            if let Some(other) = mode.strip_prefix("container:") {
                *mode = format!("container:{}", self.registry.find(other)?.id);
            }
        }
        Ok(())
    }

    /// All mounts of a container, each place once: from other containers, `-v`, `--mount`, `--tmpfs`, and
    /// last the volumes that nothing else covers.
    fn plan_mounts(
        &self,
        config: &ContainerConfig,
        host: &HostConfig,
    ) -> Result<Vec<MountPlan>, Error> {
        let mut plans: BTreeMap<String, MountPlan> = BTreeMap::new();
        for text in host.volumes_from.iter().flatten() {
            let (name, read_only) = mounts::parse_volumes_from(text)?;
            let source = self.registry.find(name)?.record();
            for plan in source.mounts.iter().filter(|plan| plan.kind != Kind::Tmpfs) {
                let mut plan = plan.clone();
                plan.read_only = read_only.unwrap_or(plan.read_only);
                plans.insert(plan.destination.clone(), plan);
            }
        }
        let mut own = Vec::new();
        for text in host.binds.iter().flatten() {
            own.push(mounts::parse_bind(text)?);
        }
        for mount in &host.mounts {
            own.push(mounts::parse_mount(mount)?);
        }
        for (destination, options) in &host.tmpfs {
            own.push(mounts::parse_tmpfs(destination, options)?);
        }
        let mut taken = std::collections::BTreeSet::new();
        for plan in own {
            if !taken.insert(plan.destination.clone()) {
                return Err(Invalid::DuplicateMount { destination: plan.destination }.into());
            }
            plans.insert(plan.destination.clone(), plan);
        }
        for destination in config.volumes.iter().flatten().map(|(destination, _)| destination) {
            let plan = mounts::anonymous(destination)?;
            plans.entry(plan.destination.clone()).or_insert(plan);
        }
        for plan in plans.values_mut().filter(|plan| plan.kind == Kind::Volume) {
            if plan.driver.is_empty() && plan.is_anonymous {
                plan.driver.clone_from(&host.volume_driver);
            }
        }
        Ok(plans.into_values().collect())
    }

    /// Lays a container out on disk. Blocking.
    fn make(&self, mut record: Record, image: &Image) -> Result<Record, Error> {
        let directory = self.containers_dir().join(&record.id);
        let made = self.lay_out(&mut record, image, &directory);
        if made.is_err() {
            self.undo(&record, &directory);
        }
        made.map(|()| record)
    }

    fn lay_out(&self, record: &mut Record, image: &Image, directory: &Path) -> Result<(), Error> {
        fs::DirBuilder::new()
            .mode(0o710)
            .create(directory)
            .attempt(|| format!("create directory {}", directory.display()))?;
        // A task's container is replaced after a crash of the machine and never started again.
        let options = RootfsOptions { is_volatile: super::list::is_task(record) };
        let rootfs = self.images.prepare_rootfs_with(&record.id, image, options)?;
        self.make_volumes(record, &rootfs)?;
        make_working_dir(record, &rootfs)?;
        record.save(directory)
    }

    /// Makes the volumes that are not there yet; new ones begin with what the image has in their place.
    fn make_volumes(&self, record: &mut Record, rootfs: &Path) -> Result<(), Error> {
        for plan in record.mounts.iter_mut().filter(|plan| plan.kind == Kind::Volume) {
            let request = VolumeCreateRequest {
                name: plan.volume.clone(),
                driver: plan.driver_name().to_owned(),
                driver_opts: Some(plan.driver_options.clone()),
                labels: Some(plan.labels.clone()),
            };
            let volume = self.volumes.create(&request)?;
            plan.volume.clone_from(&volume.name);
            self.volumes.hold(&volume.name, &record.id);
            if plan.copy && volume.options.is_empty() {
                let target = self.volumes.data_dir(&volume.name);
                copy::fill_volume(rootfs, Path::new(&plan.destination), &target)?;
            }
        }
        Ok(())
    }

    /// Takes back what [`Shared::lay_out`] made. Blocking.
    fn undo(&self, record: &Record, directory: &Path) {
        self.volumes.release(&record.id);
        for plan in record.mounts.iter().filter(|plan| plan.is_anonymous && !plan.volume.is_empty())
        {
            let _ = self.volumes.remove(&plan.volume, true);
        }
        if let Err(error) = self.images.remove_rootfs(&record.id) {
            tracing::warn!(container.id = record.id, %error, "root file system of a failed creation stays");
        }
        let _ = fs::remove_dir_all(directory);
    }
}

/// Brings changes to disk a moment after they were written, many at once.
#[derive(Debug)]
pub(crate) struct DelayedSync {
    wanted: Arc<Notify>,
    directory: Arc<OwnedFd>,
}

impl DelayedSync {
    pub(super) fn new(
        data_root: &Path,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Result<Self, Error> {
        let open = || -> io::Result<OwnedFd> {
            Ok(rustix::fs::open(
                data_root,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        };
        let directory = Arc::new(open().attempt(|| format!("open {}", data_root.display()))?);
        let sync = Self { wanted: Arc::new(Notify::new()), directory };
        let (wanted, directory) = (Arc::clone(&sync.wanted), Arc::clone(&sync.directory));
        tasks.spawn(closing.clone().run_until_cancelled_owned(async move {
            loop {
                wanted.notified().await;
                tokio::time::sleep(SYNC_DELAY).await;
                sync_now(Arc::clone(&directory)).await;
            }
        }));
        Ok(sync)
    }

    /// Asks for a sync soon.
    pub(super) fn request(&self) {
        self.wanted.notify_one();
    }

    /// Syncs at once.
    pub(super) async fn flush(&self) {
        sync_now(Arc::clone(&self.directory)).await;
    }
}

async fn sync_now(directory: Arc<OwnedFd>) {
    let synced = blocking(move || {
        rustix::fs::syncfs(&*directory).attempt(|| "sync the data root".to_owned())
    });
    if let Err(error) = synced.await {
        tracing::warn!(%error, "container states may be lost with a power failure");
    }
}

/// The image's own settings as a container's.
fn image_config(image: &RunConfig) -> ContainerConfig {
    let empty = |keys: std::collections::btree_map::Keys<'_, String, _>| {
        keys.map(|key| (key.clone(), docker_types::Empty {})).collect::<BTreeMap<_, _>>()
    };
    ContainerConfig {
        user: image.user.clone(),
        exposed_ports: empty(image.exposed_ports.keys()),
        env: Some(image.env.clone()),
        entrypoint: image.entrypoint.clone().map(Into::into),
        cmd: image.cmd.clone().map(Into::into),
        volumes: Some(empty(image.volumes.keys())),
        working_dir: image.working_dir.clone(),
        labels: Some(image.labels.clone()),
        stop_signal: image.stop_signal.clone().unwrap_or_default(),
        stop_timeout: image.stop_timeout,
        healthcheck: image.healthcheck.as_ref().map(|health| HealthConfig {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        }),
        ..ContainerConfig::default()
    }
}

fn check_platform(image: &Image, wanted: Option<&str>, reference: &str) -> Result<(), Error> {
    use crate::images::platform::Platform;
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return Ok(()) };
    let platform: Platform = wanted.parse().map_err(crate::images::Error::from)?;
    let own = Platform {
        architecture: image.config.architecture.clone(),
        os: image.config.os.clone(),
        os_version: None,
        variant: image.config.variant.clone(),
    };
    if platform.accepts(&own) {
        return Ok(());
    }
    let (reference, platform) = (reference.to_owned(), wanted.to_owned());
    Err(crate::images::Error::OtherPlatform { reference, platform }.into())
}

/// Makes the working directory where the image has none.
fn make_working_dir(record: &Record, rootfs: &Path) -> Result<(), Error> {
    let directory = PathBuf::from(&record.config.working_dir);
    if directory.as_os_str().is_empty() {
        return Ok(());
    }
    let make = || Root::open(rootfs)?.make_directories(&directory, Mode::from(0o755)).map(drop);
    match make() {
        // A file in its place is reported when the process is started there.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        made => made.attempt(|| format!("create working directory {}", directory.display())),
    }
}

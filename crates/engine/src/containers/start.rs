//! Starts a container: network, root file system, specification, shim, process. What a failed start has made
//! is taken back, and the container keeps the reason.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use runtime::spec::Spec;
use shim::client::Client;
use shim::config as bundle;

use super::container::Container;
use super::etc::{EtcFiles, Place};
use super::mounts::Kind;
use super::record::Record;
use super::spec::{self, SharedNamespaces};
use super::status::{HealthState, Phase};
use super::users::{Accounts, Identity};
use super::validate::{self, LogDriver};
use super::{Containers, Shared, blocking, health, mounts};
use crate::beneath::Root;
use crate::error::{Attempt, Error};

/// Where a container's own init reads its path from; also the name Docker shows.
const CGROUP_DEFAULT_PARENT: &str = "/skep";

/// Who asked for a start, which decides what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Starter {
    User,
    RestartPolicy,
}

/// A started process.
struct Running {
    shim: Client,
    pid: u32,
    started_at: Timestamp,
}

impl Containers {
    /// Starts a container.
    ///
    /// # Errors
    /// [`Error::AlreadyStarted`], or why its process could not be started.
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        let container = self.shared.registry.find(name)?;
        self.detached(|shared| async move { shared.start(&container, Starter::User).await }).await
    }
}

impl Shared {
    pub(super) async fn start(
        self: &Arc<Self>,
        container: &Arc<Container>,
        starter: Starter,
    ) -> Result<(), Error> {
        let operation = container.operation.lock().await;
        match (container.phase(), starter) {
            (Phase::Created | Phase::Exited, Starter::User)
            | (Phase::Restarting, Starter::RestartPolicy) => {}
            (Phase::Running | Phase::Restarting, _) => return Err(Error::AlreadyStarted),
            (Phase::Paused, _) => return Err(Error::StartPaused),
            (Phase::Removing | Phase::Dead, _) => return Err(Error::StartRemoving),
            (Phase::Created | Phase::Exited, Starter::RestartPolicy) => return Ok(()),
        }
        match self.run(container).await {
            Ok(running) => {
                self.started(container, running, starter).await;
                Ok(())
            }
            Err(error) => {
                self.release_run(container).await;
                self.start_failed(container, &error).await;
                drop(operation);
                if container.record().host.auto_remove {
                    self.auto_remove(container).await;
                }
                Err(error)
            }
        }
    }

    /// All steps to a running process.
    async fn run(self: &Arc<Self>, container: &Arc<Container>) -> Result<Running, Error> {
        let record = container.record();
        let (place, shared_namespaces) = self.set_up_network(container, &record).await?;
        let (own, target) = (Arc::clone(self), Arc::clone(container));
        blocking(move || own.prepare(&target, &record, place, &shared_namespaces)).await?;
        let shim = self
            .launcher
            .launch(&container.bundle)
            .await
            .map_err(|error| Error::Start { reason: chain(&error) })?;
        for attachment in container.take_waiting() {
            // A client that has gone meanwhile does not keep the container from starting.
            let _ = shim.attach(attachment).await;
        }
        let started = shim.start().await.map_err(|error| Error::Start { reason: chain(&error) })?;
        for note in &started.notes {
            tracing::warn!(container.id = container.id, note, "the host did not grant all");
        }
        Ok(Running {
            shim,
            pid: u32::try_from(started.pid).unwrap_or(0),
            started_at: from_nanoseconds(started.started_at_ns).unwrap_or_else(Timestamp::now),
        })
    }

    async fn started(
        self: &Arc<Self>,
        container: &Arc<Container>,
        running: Running,
        starter: Starter,
    ) {
        let Running { shim, pid, started_at } = running;
        container.set_shim(Some(shim.clone()));
        let has_health = health::is_checked(&container.record().config);
        self.set_status(container, |status| {
            status.phase = Phase::Running;
            status.pid = pid;
            status.started_at = Some(started_at);
            status.finished_at = None;
            status.exit_code = 0;
            status.error.clear();
            status.oom_killed = false;
            status.health = has_health.then_some(HealthState::Starting);
            match starter {
                Starter::User => {
                    status.stopped_by_user = false;
                    status.restart_count = 0;
                }
                Starter::RestartPolicy => status.restart_count += 1,
            }
        });
        self.save_state(container).await;
        self.event(container, "start", &[]);
        self.supervise(container, shim);
        if has_health {
            health::watch_over(self, container);
        }
    }

    async fn start_failed(&self, container: &Arc<Container>, error: &Error) {
        let now = Timestamp::now();
        let exit_code = error.start_exit_code();
        self.set_status(container, |status| {
            // A container that never ran stays created, as in Docker.
            if status.phase != Phase::Created {
                status.phase = Phase::Exited;
            }
            status.pid = 0;
            status.exit_code = exit_code;
            status.error = chain(error);
            status.finished_at = status.started_at.and(Some(now));
            status.health = None;
            status.exits += 1;
        });
        self.save_state(container).await;
    }

    /// Writes the state where it may block, and has it synced later.
    pub(super) async fn save_state(&self, container: &Arc<Container>) {
        let container = Arc::clone(container);
        let saved = blocking(move || {
            container.save_state();
            Ok(())
        });
        let _ = saved.await;
        self.sync.request();
    }

    /// The first process of the container that a `container:<id>` mode names.
    pub(super) fn process_of(
        &self,
        mode: &str,
        namespace: &'static str,
    ) -> Result<Option<u32>, Error> {
        let Some(other) = mode.strip_prefix("container:") else { return Ok(None) };
        let other = self.registry.find(other)?;
        let status = other.status();
        if status.phase.is_up() {
            return Ok(Some(status.pid));
        }
        Err(Error::JoinNamespace { namespace, id: other.id.clone() })
    }

    /// Mounts the root and the volumes, and writes the bundle. Blocking.
    fn prepare(
        &self,
        container: &Container,
        record: &Record,
        place: Place,
        shared: &SharedNamespaces,
    ) -> Result<(), Error> {
        let rootfs = self.images.mount_rootfs(&container.id)?;
        let etc = self.etc_files(container, record, &place)?;
        let sources = self.mount_sources(container, record)?;
        let root = Root::open(&rootfs).attempt(|| format!("open {}", rootfs.display()))?;
        let identity = resolve_user(&root, &record.config.user, record)?;
        let spec = spec::build(&spec::Inputs {
            record,
            rootfs: &rootfs,
            identity,
            etc: &etc,
            sources: &sources,
            shared,
            cgroups_path: self.cgroups_path(record),
        })?;
        self.write_bundle(container, record, &spec)
    }

    pub(super) fn etc_files(
        &self,
        container: &Container,
        record: &Record,
        place: &Place,
    ) -> Result<EtcFiles, Error> {
        // Who shares another's network shares the files that describe it.
        if let Some(other) = record.host.network_mode.strip_prefix("container:") {
            return Ok(EtcFiles::within(&self.registry.find(other)?.directory));
        }
        let etc = EtcFiles::within(&container.directory);
        etc.write(record, place)
            .attempt(|| format!("write files in {}", container.directory.display()))?;
        Ok(etc)
    }

    /// Where each of the record's mounts comes from, with volumes mounted and missing directories made.
    fn mount_sources(&self, container: &Container, record: &Record) -> Result<Vec<PathBuf>, Error> {
        let mut sources = Vec::with_capacity(record.mounts.len());
        for plan in &record.mounts {
            sources.push(match plan.kind {
                Kind::Tmpfs => PathBuf::new(),
                Kind::Bind => bind_source(plan)?,
                Kind::Volume => {
                    let volume = self.volumes.mount(&plan.volume, &container.id)?;
                    let attributes = [
                        ("container", container.id.clone()),
                        ("destination", plan.destination.clone()),
                        ("propagation", plan.propagation.clone()),
                        ("read/write", (!plan.read_only).to_string()),
                    ];
                    let attributes = attributes.map(|(key, value)| (key.to_owned(), value));
                    self.volumes.event("mount", &plan.volume, attributes.into());
                    volume_source(volume, &plan.subpath)?
                }
            });
        }
        Ok(sources)
    }

    /// The cgroup of a container, beneath every hierarchy.
    pub(super) fn cgroups_path(&self, record: &Record) -> String {
        let parent = match (record.host.cgroup_parent.as_str(), self.config.cgroup_parent.as_str())
        {
            ("", "") => CGROUP_DEFAULT_PARENT,
            ("", parent) | (parent, _) => parent,
        };
        mounts::clean(&format!("/{parent}/{}", record.id))
    }

    fn write_bundle(
        &self,
        container: &Container,
        record: &Record,
        spec: &Spec,
    ) -> Result<(), Error> {
        let config = bundle::Config {
            id: container.id.clone(),
            runtime: self.runtime_choice(record),
            log: log_config(container, record)?,
            open_stdin: record.config.open_stdin,
            stdin_once: record.config.stdin_once,
            init: (record.host.init == Some(true)).then(|| self.config.program.clone()),
            shim_cgroup: None,
            oom_score_adj: None,
        };
        let directory = &container.bundle;
        let write = || -> io::Result<()> {
            fs::create_dir_all(directory)?;
            for stale in [bundle::STATE_FILE, bundle::EXIT_FILE] {
                match fs::remove_file(directory.join(stale)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            bundle::write_json(&directory.join(bundle::SPEC_FILE), spec)?;
            bundle::write_json(&directory.join(bundle::CONFIG_FILE), &config)
        };
        write().attempt(|| format!("write bundle {}", directory.display()))
    }

    fn runtime_choice(&self, record: &Record) -> bundle::RuntimeChoice {
        match self.config.runtimes.get(&record.host.runtime) {
            Some(program) => bundle::RuntimeChoice::External {
                program: program.clone(),
                root: self.config.exec_root.join("runtimes").join(&record.host.runtime),
            },
            None => bundle::RuntimeChoice::Native,
        }
    }
}

/// The error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A moment as the shim counts it; zero is none.
pub(super) fn from_nanoseconds(nanoseconds: u64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok())?
}

/// The ids that a user's name means inside a container.
pub(super) fn resolve_user(root: &Root, user: &str, record: &Record) -> Result<Identity, Error> {
    let accounts = Accounts::read(root).attempt(|| "read the users of the container".to_owned())?;
    Ok(accounts.resolve(user, record.host.group_add.as_deref().unwrap_or_default())?)
}

fn bind_source(plan: &mounts::MountPlan) -> Result<PathBuf, Error> {
    let source = PathBuf::from(&plan.source);
    if plan.create_source && !source.exists() {
        fs::create_dir_all(&source)
            .attempt(|| format!("error while creating mount source path '{}'", plan.source))?;
    }
    if !source.exists() {
        let reason = super::MountFault::NoSource { path: plan.source.clone() };
        return Err(super::Invalid::Mount { kind: "bind".to_owned(), reason }.into());
    }
    Ok(source)
}

/// A directory within a volume, reached without leaving it.
fn volume_source(volume: PathBuf, subpath: &str) -> Result<PathBuf, Error> {
    if subpath.is_empty() {
        return Ok(volume);
    }
    let reach = || -> io::Result<PathBuf> {
        let fd = Root::open(&volume)?
            .open_at(std::path::Path::new(subpath), rustix::fs::OFlags::PATH)?;
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))
    };
    reach().attempt(|| format!("open {subpath} in volume {}", volume.display()))
}

fn log_config(container: &Container, record: &Record) -> Result<bundle::LogConfig, Error> {
    let file = match validate::log_driver(&record.host.log_config)? {
        LogDriver::None => return Ok(bundle::LogConfig::default()),
        LogDriver::JsonFile(file) => file,
    };
    let labels = record.labels();
    let mut attributes = std::collections::BTreeMap::new();
    for key in &file.labels {
        if let Some(value) = labels.get(key) {
            attributes.insert(key.clone(), value.clone());
        }
    }
    for pair in record.config.env.iter().flatten() {
        if let Some((name, value)) = pair.split_once('=')
            && file.env.iter().any(|wanted| wanted == name)
        {
            attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(bundle::LogConfig {
        driver: bundle::LogDriver::JsonFile,
        path: container.log_path(),
        max_size: Some(file.file_bytes_max).filter(|bytes| *bytes < u64::MAX),
        max_file: file.files_max,
        attrs: attributes,
    })
}

//! One container in memory: its record, its state, and the line to its shim.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shim::client::{Attachment, Client};
use tokio::sync::{Notify, watch};

use super::health::HealthLog;
use super::record::{Record, RunState};
use super::status::{Phase, Status};
use crate::error::Error;

/// A container. Shared by everyone who works on it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// `containers/<id>` under the data root: record, state, log.
    pub(crate) directory: PathBuf,
    /// `containers/<id>` under the exec root: what the shim works from.
    pub(crate) bundle: PathBuf,
    /// Replaced as a whole by rename and update.
    record: Mutex<Arc<Record>>,
    status: watch::Sender<Status>,
    run: Mutex<Run>,
    /// Held by whoever starts, cleans up, removes or changes the container, one at a time. Never held while
    /// waiting for the container's end.
    pub(crate) operation: Arc<tokio::sync::Mutex<()>>,
    /// Ends the wait for the next start by the restart policy.
    pub(crate) restart_cancelled: Notify,
    pub(crate) health: Mutex<HealthLog>,
    /// How many operations will themselves see to what follows an end.
    held_back: AtomicUsize,
    /// Whether somebody is removing it.
    pub(crate) removing: AtomicBool,
}

/// While it lives, the container's end leads neither to a restart nor to its removal.
#[derive(Debug)]
pub(crate) struct HeldBack(Arc<Container>);

impl Drop for HeldBack {
    fn drop(&mut self) {
        self.0.held_back.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What belongs to the present run.
#[derive(Debug, Default)]
struct Run {
    shim: Option<Client>,
    ports: Vec<network::PublishedPort>,
    quick_ends: u32,
    /// Clients that attached before the start.
    waiting: Vec<Attachment>,
}

impl Container {
    pub(crate) fn new(
        record: Record,
        state: RunState,
        directory: PathBuf,
        bundle: PathBuf,
    ) -> Self {
        let run = Run { ports: state.ports, quick_ends: state.quick_ends, ..Run::default() };
        Self {
            id: record.id.clone(),
            directory,
            bundle,
            record: Mutex::new(Arc::new(record)),
            status: watch::Sender::new(state.status),
            run: Mutex::new(run),
            operation: Arc::default(),
            restart_cancelled: Notify::new(),
            health: Mutex::default(),
            held_back: AtomicUsize::new(0),
            removing: AtomicBool::new(false),
        }
    }

    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the record, in memory and on disk. Blocking.
    pub(crate) fn replace_record(&self, record: Record) -> Result<(), Error> {
        record.save(&self.directory)?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
        Ok(())
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.status.borrow().phase
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Changes the state and tells everyone who watches.
    pub(crate) fn set_status(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Writes the state. A state that cannot be written is not worth failing an operation that has happened:
    /// what matters of it can be read from the shim's files.
    pub(crate) fn save_state(&self) {
        let state = {
            let run = self.run();
            RunState { status: self.status(), ports: run.ports.clone(), quick_ends: run.quick_ends }
        };
        if let Err(error) = state.save(&self.directory) {
            tracing::warn!(container.id = self.id, %error, "container state stays unwritten");
        }
    }

    pub(crate) fn hold_back(self: &Arc<Self>) -> HeldBack {
        self.held_back.fetch_add(1, Ordering::Relaxed);
        HeldBack(Arc::clone(self))
    }

    pub(crate) fn is_held_back(&self) -> bool {
        self.held_back.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn shim(&self) -> Option<Client> {
        self.run().shim.clone()
    }

    /// The shim of a container that runs.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or [`Error::Restarting`].
    pub(crate) fn running_shim(&self) -> Result<Client, Error> {
        match self.phase() {
            Phase::Restarting => Err(Error::Restarting { id: self.id.clone() }),
            Phase::Running | Phase::Paused => self.shim().ok_or_else(|| self.not_running()),
            _ => Err(self.not_running()),
        }
    }

    pub(crate) fn not_running(&self) -> Error {
        Error::NotRunning { id: self.id.clone() }
    }

    pub(crate) fn set_shim(&self, shim: Option<Client>) {
        self.run().shim = shim;
    }

    pub(crate) fn ports(&self) -> Vec<network::PublishedPort> {
        self.run().ports.clone()
    }

    pub(crate) fn set_ports(&self, ports: Vec<network::PublishedPort>) {
        self.run().ports = ports;
    }

    /// Counts ends that followed their start closely; returns how many came in a row.
    pub(crate) fn count_quick_end(&self, is_quick: bool) -> u32 {
        let mut run = self.run();
        run.quick_ends = if is_quick { run.quick_ends.saturating_add(1) } else { 0 };
        run.quick_ends
    }

    /// Keeps an attachment for the next start. False when too many wait already.
    pub(crate) fn wait_for_start(&self, attachment: Attachment, max: usize) -> bool {
        let mut run = self.run();
        if run.waiting.len() >= max {
            run.waiting.retain(|waiting| !super::attach::is_abandoned(waiting));
        }
        if run.waiting.len() >= max {
            return false;
        }
        run.waiting.push(attachment);
        true
    }

    pub(crate) fn take_waiting(&self) -> Vec<Attachment> {
        std::mem::take(&mut self.run().waiting)
    }

    /// The container's log file; rotated ones have a number after it.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.directory.join(format!("{}-json.log", self.id))
    }

    /// What every event of this container carries.
    pub(crate) fn event_attributes(&self) -> BTreeMap<String, String> {
        let record = self.record();
        let mut attributes = record.labels().clone();
        attributes.insert("image".to_owned(), record.config.image.clone());
        attributes.insert("name".to_owned(), record.name.clone());
        attributes
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! How long packets to other nodes may be: asked when a node is first heard of, and again now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use network::Network;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::{debug, info};

/// Between two questions to a node. What routers say of their links the kernel forgets after ten minutes.
const AGAIN_AFTER: Duration = Duration::from_secs(240);

/// A node that nobody asked for in that long is nobody's any more.
const FORGET_AFTER: Duration = Duration::from_secs(3 * 240);

/// Questions under way at once: each has a thread, and takes seconds where routers are silent.
const QUESTIONS_MAX: usize = 8;

/// What is said of a way that nobody says anything of.
const UNLIMITED: u32 = u16::MAX as u32;

/// What is known of the ways to other nodes.
#[derive(Debug)]
pub(crate) struct Paths(Arc<Book>);

#[derive(Debug)]
struct Book {
    known: Mutex<BTreeMap<IpAddr, Path>>,
    changed: Notify,
    questions: Semaphore,
}

#[derive(Debug)]
struct Path {
    asked_at: Instant,
    /// Nothing before the first answer.
    bytes: Option<u32>,
}

impl Default for Paths {
    fn default() -> Self {
        Self(Arc::new(Book {
            known: Mutex::default(),
            changed: Notify::new(),
            questions: Semaphore::new(QUESTIONS_MAX),
        }))
    }
}

impl Paths {
    /// Bytes of a packet that reaches all these nodes whole; nothing while that is not known. Nodes that were not asked for
    /// long are asked.
    pub(crate) fn narrowest(
        &self,
        network: &Network,
        local: Option<IpAddr>,
        nodes: &BTreeSet<IpAddr>,
    ) -> Option<u32> {
        let now = Instant::now();
        let mut known = self.0.lock();
        known.retain(|_, path| now.duration_since(path.asked_at) < FORGET_AFTER);
        for node in nodes {
            let path = known.get(node);
            if path.is_none_or(|path| now.duration_since(path.asked_at) >= AGAIN_AFTER) {
                let bytes = path.and_then(|path| path.bytes);
                known.insert(*node, Path { asked_at: now, bytes });
                tokio::spawn(self.0.clone().ask(network.clone(), local, *node));
            }
        }
        let ways: Option<Vec<_>> = nodes.iter().map(|node| known.get(node)?.bytes).collect();
        ways?.into_iter().min()
    }

    /// Waits until a way takes more or less than it did.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Book {
    async fn ask(self: Arc<Self>, network: Network, local: Option<IpAddr>, node: IpAddr) {
        let _permit = self.questions.acquire().await.expect("it is never closed");
        let found = network.path_to(local, node).await.unwrap_or_else(|error| {
            debug!(%node, %error, "the way to a node is not known");
            None
        });
        let (bytes, before) = {
            let mut known = self.lock();
            let Some(path) = known.get_mut(&node) else { return };
            // Silence does not take back what was said before.
            let bytes = found.map(|found| found.bytes).or(path.bytes).unwrap_or(UNLIMITED);
            (bytes, path.bytes.replace(bytes))
        };
        let is_narrow = found.is_some_and(|found| found.is_narrow);
        // A first answer that changes nothing is not worth another look at all networks.
        if before != Some(bytes) && (is_narrow || before.is_some()) {
            info!(%node, bytes, "the way to a node takes packets of another length");
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Path>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! This node's keys for encrypted networks: made when the first one comes, replaced after their lifetime, made anew when
//! what held them has ended.
//!
//! ```text
//! add a key ─► tell it ─► wait until all know it ─► send by it ─► wait until none sends to the older one ─► drop that
//! ```
//! Both are listened on meanwhile. A private key is in the kernel or in the tunnel's process, and nowhere else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use network::{Key, Network, Sealer, TunnelKey};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

/// How long a key is used, as long as there are managers to tell of the next one: as in Docker.
pub(crate) const KEY_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// From telling of a key until it is sent by: all nodes with a session know it by then.
const SETTLE: Duration = Duration::from_secs(10);

/// From telling of a key until the one before it ends: packets that were sent to it are there long before.
const OVERLAP: Duration = Duration::from_secs(60);

/// Between two attempts to make a tunnel that cannot be made.
const RETRY: Duration = Duration::from_secs(5);

/// How this node's tunnel is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) sealer: Sealer,
    pub(crate) key_lifetime: Duration,
}

/// What this node knows of its tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    settings: Settings,
    /// The newest first.
    keys: Vec<TunnelKey>,
    /// When a session began that told of all keys; none while it has yet to.
    told_at: Option<u64>,
    sending: Option<Key>,
    peers: BTreeMap<Key, SocketAddr>,
    trouble: Option<String>,
    retry_at: Option<Instant>,
    end: Arc<Notify>,
    /// Waits for a tunnel's end, to be told by `end`.
    watch: AbortOnDropHandle<()>,
}

/// What becomes of the keys next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Wait { seconds: u64 },
    Add,
    SendBy(Key),
    Drop(Key),
}

impl Tunnel {
    /// With the keys that an earlier daemon has made.
    pub(crate) fn new(settings: Settings, network: &Network) -> Self {
        let end = Arc::default();
        Self {
            settings,
            keys: network.tunnel_keys(),
            told_at: None,
            sending: None,
            peers: BTreeMap::new(),
            trouble: None,
            retry_at: None,
            watch: watch(network, &end),
            end,
        }
    }

    /// What managers are to hear.
    pub(crate) fn told_keys(&self) -> Vec<types::network::TunnelKey> {
        let keys = self.keys.iter();
        keys.map(|key| types::network::TunnelKey { key: key.key.0, port: key.port }).collect()
    }

    /// Managers have heard of these keys.
    pub(crate) fn told(&mut self, keys: &[types::network::TunnelKey]) {
        self.told_at = (keys == self.told_keys()).then(now);
    }

    /// Why this node cannot have encrypted networks.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Makes the tunnel, if it is not there, and says who is to be reached through it.
    pub(crate) async fn make(
        &mut self,
        network: &Network,
        local: Option<IpAddr>,
        peers: BTreeMap<Key, SocketAddr>,
    ) {
        self.peers = peers;
        if self.keys.is_empty() {
            self.add(network, local).await;
        }
        self.tell_peers(network).await;
    }

    /// Returns when there is something to do: [`Tunnel::proceed`].
    pub(crate) async fn due(&self) {
        let wait = match self.next() {
            Step::Nothing => None,
            Step::Wait { seconds } => Some(Instant::now() + Duration::from_secs(seconds)),
            _ => Some(Instant::now()),
        };
        let at = [wait, self.retry_at].into_iter().flatten().min();
        tokio::select! {
            () = self.end.notified() => {}
            () = async { match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            } } => {}
        }
    }

    /// Does what is next. Managers have to hear of the keys afterwards, if they are others.
    pub(crate) async fn proceed(&mut self, network: &Network, local: Option<IpAddr>, in_use: bool) {
        if network.forget_ended_tunnels().await {
            warn!("the tunnel of encrypted networks has ended; it is made anew, with another key");
            self.look_again(network);
            (self.told_at, self.sending) = (None, None);
            if let Some(key) = self.keys.first().copied() {
                self.send_by(network, key.key).await;
            }
        } else if self.watch.is_finished() {
            // Its end is seen here a moment before it is seen there.
            self.look_again(network);
        }
        if self.keys.is_empty() {
            self.retry_at = None;
            if in_use {
                self.add(network, local).await;
                self.tell_peers(network).await;
            }
            return;
        }
        match self.next() {
            Step::Nothing | Step::Wait { .. } => {}
            // A key that nobody needs is not followed by another one.
            Step::Add if !in_use => self.close(network).await,
            Step::Add => {
                self.add(network, local).await;
                self.tell_peers(network).await;
            }
            Step::SendBy(key) => self.send_by(network, key).await,
            Step::Drop(key) => self.drop_key(network, key).await,
        }
    }

    /// Ends the tunnel with its keys.
    pub(crate) async fn close(&mut self, network: &Network) {
        if let Err(error) = network.close_tunnel().await {
            warn!(%error, "the tunnel of encrypted networks is not removed");
        }
        self.look_again(network);
        (self.told_at, self.sending) = (None, None);
    }

    /// Takes note of the keys there are, and waits for the end of what holds them.
    fn look_again(&mut self, network: &Network) {
        self.keys = network.tunnel_keys();
        self.watch = watch(network, &self.end);
    }

    async fn add(&mut self, network: &Network, local: Option<IpAddr>) {
        self.retry_at = None;
        match network.add_tunnel_key(self.settings.sealer, local).await {
            Ok(key) => {
                info!(key = %key.key, port = key.port, "key for encrypted networks made");
                self.trouble = None;
                self.told_at = None;
            }
            Err(error) => {
                let trouble = format!("{:#}", anyhow::Error::from(error));
                if self.trouble.as_deref() != Some(&trouble) {
                    warn!(trouble, "this node cannot make a key for encrypted networks");
                }
                // With a key that still works it goes on.
                self.trouble = self.keys.is_empty().then_some(trouble);
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
        self.look_again(network);
    }

    async fn tell_peers(&mut self, network: &Network) {
        if self.keys.is_empty() {
            return;
        }
        if let Err(error) = network.set_tunnel_peers(self.peers.clone()).await {
            warn!(%error, "the tunnel of encrypted networks does not know its peers");
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    async fn send_by(&mut self, network: &Network, key: Key) {
        match network.send_by(key).await {
            Ok(()) => self.sending = Some(key),
            Err(error) => {
                warn!(%error, "encrypted networks go on with their older key");
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    async fn drop_key(&mut self, network: &Network, key: Key) {
        if let Err(error) = network.drop_tunnel_key(key).await {
            warn!(%error, "a key of encrypted networks is not removed");
        }
        self.look_again(network);
        self.told_at = None;
        info!(%key, "older key of encrypted networks dropped");
    }

    fn next(&self) -> Step {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return Step::Nothing;
        }
        match self.told_at {
            // Nothing is done that not everybody could hear of.
            None => Step::Nothing,
            Some(told_at) => {
                next(&self.keys, self.sending, told_at, now(), self.settings.key_lifetime)
            }
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Decides what becomes of keys, the newest first, that were told of at `told_at`. All times in seconds since 1970.
fn next(
    keys: &[TunnelKey],
    sending: Option<Key>,
    told_at: u64,
    now: u64,
    lifetime: Duration,
) -> Step {
    let lifetime = lifetime.as_secs().max(4);
    let settle = SETTLE.as_secs().min(lifetime / 4);
    let overlap = OVERLAP.as_secs().min(lifetime / 2);
    let until = |at: u64, step| match at.checked_sub(now) {
        None | Some(0) => step,
        // A clock that was set back does not make a key live longer than it would.
        Some(seconds) if seconds > lifetime => step,
        Some(seconds) => Step::Wait { seconds },
    };
    match keys {
        [] => Step::Nothing,
        [only] => until(only.made_at + lifetime, Step::Add),
        [new, older, ..] => {
            let told_at = told_at.max(new.made_at);
            if sending != Some(new.key) {
                return until(told_at + settle, Step::SendBy(new.key));
            }
            until(told_at + overlap, Step::Drop(older.key))
        }
    }
}

fn watch(network: &Network, end: &Arc<Notify>) -> AbortOnDropHandle<()> {
    let (network, end) = (network.clone(), end.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        network.tunnel_ended().await;
        end.notify_one();
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn key(number: u8, made_at: u64) -> TunnelKey {
        TunnelKey { key: Key([number; 32]), port: 4_790, made_at }
    }

    #[test]
    fn a_key_is_followed_by_another_when_its_time_is_over() {
        let only = [key(1, 1_000_000)];
        let at = |now| next(&only, None, 1_000_000, now, DAY);
        assert_eq!(at(1_000_000), Step::Wait { seconds: 86_400 });
        assert_eq!(at(1_086_400), Step::Add);
        assert_eq!(at(5_000_000), Step::Add);
        assert_eq!(at(100), Step::Add, "the clock was set back");
        assert_eq!(next(&[], None, 0, 0, DAY), Step::Nothing);
    }

    #[test]
    fn a_new_key_is_told_then_used_then_alone() {
        let (new, older) = (key(2, 1_000_000), key(1, 900_000));
        let at = |sending, now| next(&[new, older], sending, 1_000_005, now, DAY);
        assert_eq!(at(None, 1_000_005), Step::Wait { seconds: 10 });
        assert_eq!(at(None, 1_000_015), Step::SendBy(new.key));
        assert_eq!(at(Some(older.key), 1_000_030), Step::SendBy(new.key));
        assert_eq!(at(Some(new.key), 1_000_015), Step::Wait { seconds: 50 });
        assert_eq!(at(Some(new.key), 1_000_065), Step::Drop(older.key));
    }

    #[test]
    fn short_lives_leave_time_for_each_step() {
        let lifetime = Duration::from_secs(8);
        let keys = [key(2, 100), key(1, 92)];
        assert_eq!(next(&keys, None, 100, 101, lifetime), Step::Wait { seconds: 1 });
        assert_eq!(next(&keys, None, 100, 102, lifetime), Step::SendBy(keys[0].key));
        assert_eq!(next(&keys, Some(keys[0].key), 100, 104, lifetime), Step::Drop(keys[1].key));
    }
}

//! Who the tunnel speaks to: by key, by address inside, by the number that packets carry.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{HandshakeInit, Tunn};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::Error;
use crate::protocol::{Key, PEERS_MAX, PEERS_PER_MESSAGE_MAX, Peer, address_of};

/// Handshakes in a second before their senders have to prove where they are. Each is counted twice: before it is looked
/// at, and by its peer.
const HANDSHAKES_PER_SECOND_MAX: u64 = 400;

/// Numbers of peers take 24 bits of the 32 that packets carry.
const INDEX_BITS: u32 = 24;

/// One peer.
pub(crate) struct Link {
    pub(crate) key: Key,
    pub(crate) address: Ipv6Addr,
    index: u32,
    state: Mutex<LinkState>,
}

/// What changes of a peer.
pub(crate) struct LinkState {
    pub(crate) noise: Tunn,
    /// Where the managers say it is.
    told: SocketAddr,
    /// Where it was last heard from, which is where packets go.
    pub(crate) endpoint: SocketAddr,
}

/// All peers, and the tunnel's own key.
pub(crate) struct Peers {
    secret: StaticSecret,
    public: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    by_key: BTreeMap<Key, Arc<Link>>,
    by_address: HashMap<Ipv6Addr, Arc<Link>>,
    by_index: HashMap<u32, Arc<Link>>,
    last_index: u32,
}

impl Link {
    pub(crate) fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// With a key of these random bytes.
    pub(crate) fn new(random: [u8; 32]) -> Self {
        let secret = StaticSecret::from(random);
        let public = PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND_MAX));
        Self { secret, public, limiter, table: RwLock::default() }
    }

    /// The tunnel's own.
    pub(crate) fn key(&self) -> Key {
        Key(*self.public.as_bytes())
    }

    pub(crate) fn by_address(&self, address: Ipv6Addr) -> Option<Arc<Link>> {
        self.read().by_address.get(&address).cloned()
    }

    /// By the number that a packet to this tunnel carries: the peer's, and eight bits for the session.
    pub(crate) fn by_receiver(&self, receiver: u32) -> Option<Arc<Link>> {
        self.read().by_index.get(&(receiver >> 8)).cloned()
    }

    /// The peer that says it began this handshake; whether it did is found out by its [`Link`].
    pub(crate) fn by_handshake(&self, packet: &HandshakeInit<'_>) -> Option<Arc<Link>> {
        let opened = parse_handshake_anon(&self.secret, &self.public, packet).ok()?;
        self.read().by_key.get(&Key(opened.peer_static_public)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.read().by_key.values().cloned().collect()
    }

    /// Those after `after`, as many as one message takes.
    pub(crate) fn told_after(&self, after: Option<Key>) -> Vec<Peer> {
        let table = self.read();
        let links = table.by_key.values().filter(|link| after.is_none_or(|after| link.key > after));
        let peers = links.map(|link| Peer { key: link.key, endpoint: link.lock().told });
        peers.take(PEERS_PER_MESSAGE_MAX).collect()
    }

    /// Takes peers in or gives them another endpoint, and forgets others.
    ///
    /// # Errors
    /// [`Error::TooManyPeers`]; those that had room are taken in.
    pub(crate) fn change(&self, set: &[Peer], gone: &[Key]) -> Result<(), Error> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for key in gone {
            table.remove(key);
        }
        // Nobody speaks to itself.
        for peer in set.iter().filter(|peer| peer.key != self.key()) {
            match table.by_key.get(&peer.key) {
                Some(link) => link.lock().move_to(peer.endpoint),
                None if table.by_key.len() >= PEERS_MAX => {
                    return Err(Error::TooManyPeers { max: PEERS_MAX });
                }
                None => {
                    let link = self.link(peer, table.free_index());
                    table.insert(link);
                }
            }
        }
        Ok(())
    }

    fn link(&self, peer: &Peer, index: u32) -> Link {
        let public = PublicKey::from(peer.key.0);
        let limiter = Some(self.limiter.clone());
        let noise = Tunn::new(self.secret.clone(), public, None, None, index, limiter);
        let state = LinkState { noise, told: peer.endpoint, endpoint: peer.endpoint };
        Link { key: peer.key, address: address_of(&peer.key), index, state: Mutex::new(state) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinkState {
    fn move_to(&mut self, endpoint: SocketAddr) {
        if self.told != endpoint {
            (self.told, self.endpoint) = (endpoint, endpoint);
        }
    }
}

impl Table {
    fn insert(&mut self, link: Link) {
        let link = Arc::new(link);
        self.last_index = link.index;
        self.by_key.insert(link.key, link.clone());
        self.by_address.insert(link.address, link.clone());
        self.by_index.insert(link.index, link);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(link) = self.by_key.remove(key) {
            self.by_address.remove(&link.address);
            self.by_index.remove(&link.index);
        }
    }

    fn free_index(&self) -> u32 {
        let after = |index: u32| (index + 1) % (1 << INDEX_BITS);
        let mut index = after(self.last_index);
        // Far fewer peers than numbers.
        while self.by_index.contains_key(&index) {
            index = after(index);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8, port: u16) -> Peer {
        Peer { key: Key([number; 32]), endpoint: ([10, 0, 0, number], port).into() }
    }

    #[test]
    fn a_peer_is_found_in_every_way_until_it_is_gone() {
        let peers = Peers::new([9; 32]);
        peers.change(&[peer(1, 1), peer(2, 1)], &[]).unwrap();
        let link = peers.by_address(address_of(&Key([1; 32]))).unwrap();
        assert_eq!(peers.by_receiver(link.index << 8 | 7).unwrap().key, Key([1; 32]));
        peers.change(&[], &[Key([1; 32])]).unwrap();
        assert!(peers.by_address(link.address).is_none());
        assert!(peers.by_receiver(link.index << 8).is_none());
        assert_eq!(peers.told_after(None), [peer(2, 1)]);
        assert_eq!(peers.told_after(Some(Key([2; 32]))), []);
    }

    #[test]
    fn an_endpoint_that_was_told_before_does_not_undo_where_a_peer_was_heard() {
        let peers = Peers::new([9; 32]);
        peers.change(&[peer(1, 1)], &[]).unwrap();
        let link = peers.all().remove(0);
        let heard = SocketAddr::from(([10, 9, 9, 9], 5));
        link.lock().endpoint = heard;
        peers.change(&[peer(1, 1)], &[]).unwrap();
        assert_eq!(link.lock().endpoint, heard);
        peers.change(&[peer(1, 2)], &[]).unwrap();
        assert_eq!(link.lock().endpoint, peer(1, 2).endpoint);
    }

    #[test]
    fn a_tunnel_is_no_peer_of_itself() {
        let peers = Peers::new([9; 32]);
        let own = Peer { key: peers.key(), endpoint: peer(1, 1).endpoint };
        peers.change(&[own], &[]).unwrap();
        assert!(peers.all().is_empty());
    }
}

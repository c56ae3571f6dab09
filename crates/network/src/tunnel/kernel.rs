//! Devices of the kernel's own WireGuard.
//!
//! A device is made in the host's namespace, where its UDP socket then stays, and moved.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::genl::{self, WireGuard};
use super::{Key, TunnelKey};
use crate::netlink::Netlink;
use crate::{Error, namespace};

/// Peers in one message, whose attribute holds 64 KiB; each takes some 130 bytes.
const PEERS_PER_MESSAGE_MAX: usize = 250;

#[derive(Debug)]
pub(super) struct Device {
    name: String,
    wireguard: WireGuard,
    /// What the kernel was told; endpoints of an earlier daemon's are not known.
    peers: BTreeMap<Key, Option<SocketAddr>>,
}

/// Whether the kernel has WireGuard, or a module of it.
pub(super) fn is_there() -> bool {
    WireGuard::open().is_ok()
}

impl Device {
    pub(super) fn make(netns: &Path, name: &str, port: u16) -> Result<(Self, TunnelKey), Error> {
        let wireguard = within(netns)?;
        let file = File::open(netns).map_err(Error::file("open", netns))?;
        // From here: its socket belongs to the namespace that asks for the device.
        let outside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        outside
            .create(new_link(name, file.as_raw_fd()))
            .map_err(Error::kernel(format!("make WireGuard device {name}")))?;
        let mut private = random()?;
        let set = wireguard.set_up(name, &private, port);
        private.fill(0);
        let failed = format!("give device {name} its key");
        let known = set.and_then(|()| wireguard.known(name)).map_err(Error::kernel(&failed))?;
        let key = known
            .key
            .ok_or_else(|| Error::kernel(&failed)(std::io::ErrorKind::InvalidData.into()))?;
        let made_at =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let device = Self { name: name.to_owned(), wireguard, peers: BTreeMap::new() };
        Ok((device, TunnelKey { key, port, made_at }))
    }

    /// The device that has this key, if it is still there.
    pub(super) fn find(netns: &Path, name: &str, key: &Key) -> Option<Self> {
        let wireguard = within(netns).ok()?;
        let known = wireguard.known(name).ok().filter(|known| known.key == Some(*key))?;
        let peers = known.peers.into_iter().map(|peer| (peer, None)).collect();
        Some(Self { name: name.to_owned(), wireguard, peers })
    }

    pub(super) fn is_there(&self) -> bool {
        self.wireguard.known(&self.name).is_ok()
    }

    pub(super) fn set_peers(&mut self, peers: &BTreeMap<Key, SocketAddr>) -> Result<(), Error> {
        let gone: Vec<_> =
            self.peers.keys().filter(|key| !peers.contains_key(*key)).copied().collect();
        let new: Vec<_> = peers
            .iter()
            .filter(|(key, endpoint)| self.peers.get(*key) != Some(&Some(**endpoint)))
            .map(|(key, endpoint)| (*key, *endpoint))
            .collect();
        for gone in gone.chunks(PEERS_PER_MESSAGE_MAX) {
            self.change(&[], gone)?;
            self.peers.retain(|key, _| !gone.contains(key));
        }
        for set in new.chunks(PEERS_PER_MESSAGE_MAX) {
            self.change(set, &[])?;
            self.peers.extend(set.iter().map(|(key, endpoint)| (*key, Some(*endpoint))));
        }
        Ok(())
    }

    fn change(&self, set: &[(Key, SocketAddr)], gone: &[Key]) -> Result<(), Error> {
        self.wireguard
            .change_peers(&self.name, set, gone)
            .map_err(Error::kernel(format!("tell device {} of its peers", self.name)))
    }
}

fn within(netns: &Path) -> Result<WireGuard, Error> {
    namespace::within(netns, || WireGuard::open().map_err(genl::missing))
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let flags = rustix::rand::GetRandomFlags::empty();
    let filled = rustix::rand::getrandom(&mut bytes[..], flags);
    let filled = filled.map_err(|errno| Error::kernel("get random bytes")(errno.into()))?;
    assert_eq!(filled, bytes.len(), "the kernel gives up to 256 bytes at once");
    Ok(bytes)
}

fn new_link(name: &str, netns: i32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::NetNsFd(netns),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

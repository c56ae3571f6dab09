//! The way that encrypted networks take between nodes: WireGuard devices in a network namespace of their own.
//!
//! ```text
//! host namespace               namespace of the tunnel                    namespace of an encrypted overlay
//!   UDP 4790, 4791 ◄── sealed ── wg0, wg1 ◄── UDP 4789 ◄── vxlan's socket ── vx0 ── br0
//!                                fd00::/8 leads there and nowhere else
//! ```
//! The namespace has no other link. Whatever is wrong, be it a key, a peer, or the process that seals, what a vxlan device
//! sends there is dropped, since nothing else could take it.
//!
//! A device has one key, and an address that follows from it. To change keys a second device is made beside the first;
//! nodes that know both send to the newer one, and when all do, the older one goes: nothing is lost meanwhile.

mod genl;
mod kernel;
mod process;
mod service;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

pub use ::tunnel::Key;
pub use ::tunnel::protocol::address_of;
use ipnet::Ipv6Net;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::bridge::{link_index, set_up};
use crate::netlink::Netlink;
use crate::{Error, namespace, state_file};

/// UDP ports of tunnels on every node: one for the present key, one for the next.
pub const TUNNEL_PORTS: [u16; 2] = [4_790, 4_791];

/// Where all addresses of keys lie.
const ADDRESSES: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8);

/// What WireGuard takes of a packet between nodes with addresses like `local`: IP's header, 8 bytes for UDP, 32 of its own.
pub(crate) fn overhead(local: Option<IpAddr>) -> u32 {
    if local.is_some_and(|local| local.is_ipv4()) { 60 } else { 80 }
}

/// Who seals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sealer {
    /// The kernel where it can, else a process.
    #[default]
    Best,
    Kernel,
    Process,
    /// This node has no encrypted networks.
    Nobody,
}

/// One of the node's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKey {
    pub key: Key,
    /// UDP port on which its device listens.
    pub port: u16,
    /// In seconds since 1970.
    pub made_at: u64,
}

/// The node's tunnel: at most two devices.
#[derive(Debug)]
pub(crate) struct Tunnel {
    directory: PathBuf,
    slots: [Option<Slot>; 2],
}

#[derive(Debug)]
struct Slot {
    key: TunnelKey,
    device: Device,
}

#[derive(Debug)]
enum Device {
    Kernel(kernel::Device),
    Process(::tunnel::Client),
}

impl Tunnel {
    /// Finds the devices that an earlier daemon left.
    pub(crate) fn load(run_dir: &Path) -> Self {
        let directory = run_dir.join("tunnel");
        let mut tunnel = Self { directory, slots: [None, None] };
        for number in 0..tunnel.slots.len() {
            tunnel.slots[number] = tunnel.find(number);
        }
        tunnel
    }

    /// Keys whose devices work, the newest first.
    pub(crate) fn keys(&self) -> Vec<TunnelKey> {
        let mut keys: Vec<_> = self.slots.iter().flatten().map(|slot| slot.key).collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.made_at));
        keys
    }

    /// Makes a device with a key of its own, beside the one that is there.
    ///
    /// # Errors
    /// When there are two already, and what the kernel refuses.
    pub(crate) fn open(&mut self, sealer: Sealer, mtu: u32) -> Result<TunnelKey, Error> {
        let number = self.slots.iter().position(Option::is_none);
        let number = number.ok_or_else(|| {
            Error::kernel("make a third tunnel device")(io::ErrorKind::AlreadyExists.into())
        })?;
        let netns = self.netns_file();
        if !namespace::exists(&netns) {
            std::fs::create_dir_all(&self.directory)
                .map_err(Error::file("create", &self.directory))?;
            namespace::create(&netns, || Ok(()))?;
        }
        // One that was left by a daemon that did not come this far.
        inside(&netns)?
            .remove_link(&device_name(number))
            .map_err(Error::kernel("remove a tunnel device"))?;
        let (mut key, device) = self.make(number, sealer)?;
        // The order of keys is by age.
        let newest = self.keys().first().map_or(0, |newest| newest.made_at + 1);
        key.made_at = key.made_at.max(newest);
        let slot = Slot { key, device };
        if let Err(error) = raise(&netns, &device_name(number), &key, mtu) {
            let _ = self.end(number, slot);
            return Err(error);
        }
        state_file::write(&self.slot_directory(number).join("key.json"), &key)?;
        self.slots[number] = Some(slot);
        if self.keys().len() == 1 {
            self.send_by(&key.key)?;
        }
        Ok(key)
    }

    /// Sends by this key's device from now on.
    pub(crate) fn send_by(&self, key: &Key) -> Result<(), Error> {
        let Some(number) = self.slot_of(key) else { return Ok(()) };
        let netlink = inside(&self.netns_file())?;
        let index = link_index(&netlink, &device_name(number))?;
        netlink
            .replace(way_out(index, address_of(key)))
            .map_err(Error::kernel("lead encrypted networks into their tunnel"))
    }

    /// Says who has which key, and where they are; everybody else is forgotten.
    pub(crate) fn set_peers(&mut self, peers: &BTreeMap<Key, SocketAddr>) -> Result<(), Error> {
        self.slots.iter_mut().flatten().try_for_each(|slot| match &mut slot.device {
            Device::Kernel(device) => device.set_peers(peers),
            Device::Process(client) => client.set_peers(peers).map_err(Error::from),
        })
    }

    /// Ends a key and its device. Nothing happens where there is none.
    pub(crate) fn close(&mut self, key: &Key) -> Result<(), Error> {
        let Some(number) = self.slot_of(key) else { return Ok(()) };
        let slot = self.slots[number].take().expect("just found");
        self.end(number, slot)
    }

    /// Ends everything.
    pub(crate) fn close_all(&mut self) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            if let Some(slot) = self.slots[number].take() {
                self.end(number, slot)?;
            }
        }
        namespace::remove(&self.netns_file())
    }

    /// Forgets devices that have ended; true when there were some.
    pub(crate) fn forget_ended(&mut self) -> bool {
        let mut has_ended = false;
        for number in 0..self.slots.len() {
            let Some(slot) = &self.slots[number] else { continue };
            let is_there = match &slot.device {
                Device::Kernel(device) => device.is_there(),
                Device::Process(client) => process::is_there(client),
            };
            if !is_there {
                self.slots[number] = None;
                has_ended = true;
            }
        }
        has_ended
    }

    /// How the tunnel's links and routes differ from what they should be; with `mends`, the way out is set again. Ended
    /// devices are their owner's to replace.
    pub(crate) fn audit(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        let mut faults = Vec::new();
        if self.slots.iter().all(Option::is_none) {
            return Ok(faults);
        }
        let netlink = inside(&self.netns_file())?;
        for (number, slot) in self.slots.iter().enumerate() {
            let name = device_name(number);
            match (slot, link_index(&netlink, &name)) {
                (Some(_), Err(_)) => faults.push(format!("tunnel: device {name} is missing")),
                (None, Ok(_)) => faults.push(format!("tunnel: device {name} is nobody's")),
                _ => {}
            }
        }
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        let routes = netlink.dump(RouteNetlinkMessage::GetRoute(message));
        let routes = routes.map_err(Error::kernel("list routes"))?;
        if !routes.iter().any(is_way_out) {
            faults.push("tunnel: nothing leads into it".to_owned());
            if let Some(key) = self.keys().last().filter(|_| mends) {
                self.send_by(&key.key)?;
            }
        }
        Ok(faults)
    }

    /// What becomes readable when a device's process ends; `None` when one has ended already.
    pub(crate) fn lives(&self) -> Option<Vec<UnixStream>> {
        let directories = (0..self.slots.len()).map(|number| (number, self.slot_directory(number)));
        let processes = directories.filter(|(number, _)| {
            let slot = self.slots[*number].as_ref();
            slot.is_some_and(|slot| matches!(slot.device, Device::Process(_)))
        });
        processes.map(|(_, directory)| ::tunnel::Client::watch(&directory).ok()).collect()
    }

    fn make(&self, number: usize, sealer: Sealer) -> Result<(TunnelKey, Device), Error> {
        let port = TUNNEL_PORTS[number];
        let (netns, name) = (self.netns_file(), device_name(number));
        let by_kernel = match sealer {
            Sealer::Nobody => return Err(Error::NoSealer),
            Sealer::Kernel => true,
            Sealer::Process => false,
            Sealer::Best => kernel::is_there(),
        };
        if by_kernel {
            let (device, key) = kernel::Device::make(&netns, &name, port)?;
            return Ok((key, Device::Kernel(device)));
        }
        let client = process::launch(&self.slot_directory(number), netns, name, port)?;
        Ok((process::key_of(&client), Device::Process(client)))
    }

    fn find(&self, number: usize) -> Option<Slot> {
        let directory = self.slot_directory(number);
        let key: TunnelKey = state_file::read(&directory.join("key.json"))?;
        let netns = self.netns_file();
        let device = match ::tunnel::Client::connect(&directory) {
            Ok(client) => Device::Process(client),
            Err(_) => Device::Kernel(kernel::Device::find(&netns, &device_name(number), &key.key)?),
        };
        Some(Slot { key, device })
    }

    fn end(&self, number: usize, slot: Slot) -> Result<(), Error> {
        if let Device::Process(client) = slot.device {
            // One that has ended already has nothing left.
            let _ = client.end();
        }
        let netns = self.netns_file();
        if namespace::exists(&netns) {
            inside(&netns)?
                .remove_link(&device_name(number))
                .map_err(Error::kernel("remove a tunnel device"))?;
        }
        match std::fs::remove_dir_all(self.slot_directory(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", &self.slot_directory(number))(error))
            }
            _ => Ok(()),
        }
    }

    fn slot_of(&self, key: &Key) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.key.key == *key))
    }

    fn netns_file(&self) -> PathBuf {
        self.directory.join("netns")
    }

    fn slot_directory(&self, number: usize) -> PathBuf {
        self.directory.join(number.to_string())
    }
}

/// The namespace that encrypted networks send from.
///
/// # Errors
/// [`Error::NoTunnel`] where there is none.
pub(crate) fn netns(run_dir: &Path) -> Result<PathBuf, Error> {
    let netns = run_dir.join("tunnel").join("netns");
    if namespace::exists(&netns) { Ok(netns) } else { Err(Error::NoTunnel) }
}

/// Whether this host has something that seals.
pub(crate) fn can_be_made() -> bool {
    kernel::is_there() || Path::new("/dev/net/tun").exists()
}

fn device_name(number: usize) -> String {
    format!("wg{number}")
}

fn inside(netns: &Path) -> Result<Netlink, Error> {
    namespace::within(netns, || Netlink::open().map_err(Error::kernel("open a netlink socket")))
}

/// Gives the device its address and raises it.
fn raise(netns: &Path, device: &str, key: &TunnelKey, mtu: u32) -> Result<(), Error> {
    let netlink = inside(netns)?;
    let index = link_index(&netlink, device)?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink
        .change(RouteNetlinkMessage::SetLink(message))
        .and_then(|()| netlink.change(set_up(index)))
        .and_then(|()| netlink.create(own_address(index, address_of(&key.key))))
        .map_err(Error::kernel(format!("raise tunnel device {device} on UDP port {}", key.port)))
}

fn own_address(index: u32, address: Ipv6Addr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = index;
    // Nobody else can have it: it may be used at once.
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn is_way_out(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = message else { return false };
    let to = RouteAttribute::Destination(RouteAddress::Inet6(ADDRESSES.addr()));
    route.header.destination_prefix_length == ADDRESSES.prefix_len()
        && route.attributes.contains(&to)
}

fn way_out(index: u32, source: Ipv6Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = ADDRESSES.prefix_len();
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(ADDRESSES.addr())),
        RouteAttribute::PrefSource(RouteAddress::Inet6(source)),
        RouteAttribute::Oif(index),
    ];
    RouteNetlinkMessage::NewRoute(message)
}

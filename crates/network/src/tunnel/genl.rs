//! Generic netlink, as far as WireGuard needs it (linux/genetlink.h, linux/wireguard.h).

use std::io;
use std::net::SocketAddr;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

use super::Key;
use crate::Error;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;

const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;

/// A socket that asks for WireGuard devices of the namespace it was opened in.
pub(super) struct WireGuard {
    socket: Socket,
    family: u16,
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireGuard").field("family", &self.family).finish_non_exhaustive()
    }
}

/// What the kernel knows of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) key: Option<Key>,
    pub(super) peers: Vec<Key>,
}

impl WireGuard {
    /// # Errors
    /// Of kind `NotFound` where the kernel has no WireGuard. Where it is a module, asking loads it.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        let mut attributes = Vec::new();
        put(&mut attributes, CTRL_ATTR_FAMILY_NAME, b"wireguard\0");
        let request =
            message(GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_ACK, CTRL_CMD_GETFAMILY, &attributes);
        let answers = ask(&socket, &request)?;
        let family = answers.iter().flat_map(|answer| parts(answer)).find_map(|(kind, value)| {
            let number = u16::from_ne_bytes(value.try_into().ok()?);
            (kind == CTRL_ATTR_FAMILY_ID).then_some(number)
        });
        Ok(Self { socket, family: family.ok_or(io::ErrorKind::NotFound)? })
    }

    /// Gives the device its key and port.
    pub(super) fn set_up(&self, device: &str, private: &[u8; 32], port: u16) -> io::Result<()> {
        let mut attributes = named(device);
        put(&mut attributes, WGDEVICE_A_PRIVATE_KEY, private);
        put(&mut attributes, WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
        let result = self.change(&attributes);
        attributes.fill(0);
        result
    }

    /// Takes peers in, each with its one address, or gives them another endpoint; forgets others.
    pub(super) fn change_peers(
        &self,
        device: &str,
        set: &[(Key, SocketAddr)],
        gone: &[Key],
    ) -> io::Result<()> {
        let mut peers = Vec::new();
        for key in gone {
            put(&mut peers, NLA_F_NESTED, &forgotten(key));
        }
        for (key, endpoint) in set {
            put(&mut peers, NLA_F_NESTED, &peer(key, *endpoint));
        }
        let mut attributes = named(device);
        put(&mut attributes, WGDEVICE_A_PEERS | NLA_F_NESTED, &peers);
        self.change(&attributes)
    }

    /// What the kernel knows of the device.
    pub(super) fn known(&self, device: &str) -> io::Result<Known> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = message(self.family, flags, WG_CMD_GET_DEVICE, &named(device));
        let mut known = Known::default();
        for answer in ask(&self.socket, &request)? {
            read(&answer, &mut known);
        }
        Ok(known)
    }

    fn change(&self, attributes: &[u8]) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        ask(&self.socket, &message(self.family, flags, WG_CMD_SET_DEVICE, attributes)).map(drop)
    }
}

/// The error for a kernel without WireGuard.
pub(super) fn missing(source: io::Error) -> Error {
    Error::kernel("find WireGuard in the kernel")(source)
}

fn named(device: &str) -> Vec<u8> {
    let mut attributes = Vec::new();
    put(&mut attributes, WGDEVICE_A_IFNAME, &[device.as_bytes(), &[0]].concat());
    attributes
}

fn peer(key: &Key, endpoint: SocketAddr) -> Vec<u8> {
    let mut address = Vec::new();
    put(&mut address, WGALLOWEDIP_A_FAMILY, &family(libc::AF_INET6));
    put(&mut address, WGALLOWEDIP_A_IPADDR, &super::address_of(key).octets());
    put(&mut address, WGALLOWEDIP_A_CIDR_MASK, &[128]);
    let mut addresses = Vec::new();
    put(&mut addresses, NLA_F_NESTED, &address);
    let mut attributes = Vec::new();
    put(&mut attributes, WGPEER_A_PUBLIC_KEY, &key.0);
    put(&mut attributes, WGPEER_A_FLAGS, &WGPEER_F_REPLACE_ALLOWEDIPS.to_ne_bytes());
    put(&mut attributes, WGPEER_A_ENDPOINT, &socket_address(endpoint));
    put(&mut attributes, WGPEER_A_ALLOWEDIPS | NLA_F_NESTED, &addresses);
    attributes
}

fn forgotten(key: &Key) -> Vec<u8> {
    let mut attributes = Vec::new();
    put(&mut attributes, WGPEER_A_PUBLIC_KEY, &key.0);
    put(&mut attributes, WGPEER_A_FLAGS, &WGPEER_F_REMOVE_ME.to_ne_bytes());
    attributes
}

/// As struct sockaddr_in or sockaddr_in6.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => {
            let head = [&family(libc::AF_INET)[..], &port, &address.ip().octets()].concat();
            [&head[..], &[0; 8]].concat()
        }
        SocketAddr::V6(address) => {
            let head = [&family(libc::AF_INET6)[..], &port, &[0; 4]].concat();
            [&head[..], &address.ip().octets(), &address.scope_id().to_ne_bytes()].concat()
        }
    }
}

fn family(family: i32) -> [u8; 2] {
    u16::try_from(family).expect("a small number").to_ne_bytes()
}

fn read(answer: &[u8], known: &mut Known) {
    for (kind, value) in parts(answer) {
        match kind {
            WGDEVICE_A_PUBLIC_KEY => known.key = value.try_into().ok().map(Key),
            WGDEVICE_A_PEERS => {
                let peers = attributes(value).filter_map(|(_, peer)| {
                    let mut attributes = attributes(peer);
                    let (_, key) = attributes.find(|(kind, _)| *kind == WGPEER_A_PUBLIC_KEY)?;
                    key.try_into().ok().map(Key)
                });
                // One peer with many addresses may stand in several messages.
                for peer in peers {
                    if known.peers.last() != Some(&peer) {
                        known.peers.push(peer);
                    }
                }
            }
            _ => {}
        }
    }
}

fn message(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.len();
    let length = u32::try_from(length).expect("messages are far shorter than 4 GiB");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port; one request is under way at a time.
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length =
        u16::try_from(4 + value.len()).expect("attributes are split before they grow long");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of an answer, behind its generic header.
fn parts(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(answer.get(GENERIC_HEADER_BYTES..).unwrap_or_default())
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 4] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK, value))
    })
}

/// Sends a request and takes its answers, up to the one that says that it is done.
fn ask(socket: &Socket, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    socket.send(request, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if collect(&bytes, &mut answers)? {
            return Ok(answers);
        }
    }
}

fn collect(mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let payload = bytes.get(HEADER_BYTES..length).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => answers.push(payload.to_vec()),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_peer_is_written_as_the_kernel_reads_it() {
        let written = peer(&Key([0xaa; 32]), "10.0.0.1:4790".parse().unwrap());
        let key = "aa".repeat(32);
        let address = format!("fd{}", "aa".repeat(15));
        let expected = format!(
            "24000100{key}08000300020000001400040002 0012b60a0000010000000000000000\
             2c0009802800008006000100 0a000000 14000200{address} 0500030080000000"
        );
        assert_eq!(hex(&written), expected.replace(' ', ""));
    }

    #[test]
    fn what_was_written_of_peers_is_read_again() {
        let keys = [Key([1; 32]), Key([2; 32])];
        let mut peers = Vec::new();
        for key in &keys {
            put(&mut peers, NLA_F_NESTED, &peer(key, "[fd00::1]:4790".parse().unwrap()));
        }
        let mut answer = vec![0; GENERIC_HEADER_BYTES];
        put(&mut answer, WGDEVICE_A_PUBLIC_KEY, &[9; 32]);
        put(&mut answer, WGDEVICE_A_PEERS | NLA_F_NESTED, &peers);
        let mut known = Known::default();
        read(&answer, &mut known);
        assert_eq!(known, Known { key: Some(Key([9; 32])), peers: keys.to_vec() });
    }

    #[test]
    fn an_answer_that_is_cut_short_is_refused() {
        let mut bytes = message(7, 0, 0, &[1, 2, 3, 4]);
        bytes.truncate(18);
        assert!(collect(&bytes, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_socket_address_has_its_structures_length() {
        assert_eq!(socket_address((Ipv4Addr::LOCALHOST, 1).into()).len(), 16);
        let address = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 3);
        assert_eq!(socket_address(address.into()).len(), 28);
    }
}

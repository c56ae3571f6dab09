//! What daemon and tunnel say to each other.
//!
//! One message is one packet of a `SOCK_SEQPACKET` unix socket, in JSON; each request has one answer. Tunnels outlive
//! daemons, so a daemon meets tunnels older and newer than itself: members may be added and are read past, requests may
//! be added and are refused by a tunnel that does not know them, nothing is ever renamed or given another meaning.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Version of the protocol; grows when requests are added.
pub const VERSION: u32 = 1;

/// Largest packet, in bytes: the kernel's default buffer takes it.
pub(crate) const PACKET_BYTES_MAX: usize = 160 << 10;

/// Peers named in one message: each takes some 200 bytes.
pub(crate) const PEERS_PER_MESSAGE_MAX: usize = 500;

/// Peers of one tunnel. Each holds a few kilobytes, and up to 256 packets while it is being reached.
pub const PEERS_MAX: usize = 4_096;

/// What a tunnel is started with: `config.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// File that names the network namespace of the device.
    pub netns: PathBuf,
    /// Name of the device; at most 15 bytes.
    pub device: String,
    /// UDP port in the namespace the process is started in.
    pub port: u16,
}

/// A public key of X25519; 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// The address of a key's holder inside of tunnels: a ULA that begins with the key. 120 bits of a key are as hard to come
/// by twice as the key itself, so addresses need no allocation, and a packet from an address is from the key's holder.
pub fn address_of(key: &Key) -> Ipv6Addr {
    let mut octets = [0xfd; 16];
    octets[1..].copy_from_slice(&key.0[..15]);
    octets.into()
}

/// The holder of a key, and where its packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub key: Key,
    pub endpoint: SocketAddr,
}

/// What a daemon can ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Request {
    /// Answered by [`Answer::State`].
    State,
    /// Answered by [`Answer::Peers`]: those after this key, in the keys' order, as many as fit.
    Peers {
        #[serde(default)]
        after: Option<Key>,
    },
    /// Takes peers in, or gives them another endpoint; forgets others.
    Change {
        #[serde(default)]
        set: Vec<Peer>,
        #[serde(default)]
        gone: Vec<Key>,
    },
    /// The tunnel ends once it has answered.
    End,
}

/// What a tunnel says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Answer {
    Done,
    State(State),
    Peers { peers: Vec<Peer> },
    Refused { said: String },
}

/// How a tunnel is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the protocol the tunnel speaks.
    pub version: u32,
    pub key: Key,
    pub port: u16,
    /// When the key was made, in seconds since 1970.
    pub made_at: u64,
    /// Process number.
    pub pid: i32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&const_hex::encode(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = const_hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        const_hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_newer_daemon_are_read_past() {
        let text = r#"{"kind":"change","gone":[],"later":1}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert!(
            matches!(request, Request::Change { set, gone } if set.is_empty() && gone.is_empty())
        );
    }

    #[test]
    fn the_fullest_message_fits_its_packet() {
        let endpoint = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let peer = Peer { key: Key([0xab; 32]), endpoint };
        let peers = vec![peer; PEERS_PER_MESSAGE_MAX];
        let gone = vec![peer.key; PEERS_PER_MESSAGE_MAX];
        let answer = serde_json::to_vec(&Answer::Peers { peers: peers.clone() }).unwrap();
        assert!(answer.len() <= PACKET_BYTES_MAX, "{}", answer.len());
        let request = serde_json::to_vec(&Request::Change { set: peers, gone }).unwrap();
        assert!(request.len() <= PACKET_BYTES_MAX, "{}", request.len());
    }

    #[test]
    fn an_address_begins_with_its_key() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[14], bytes[15]) = (0x12, 0x34, 0x56);
        assert_eq!(address_of(&Key(bytes)).to_string(), "fd12::34");
    }
}

//! What members say to each other.

use std::io::{Read, Write};

use protobuf::Message as _;
use raft::eraftpb;
use serde::Serialize;

use crate::snapshot_file::StoredSnapshot;

/// One message of raft. Its content is raft's affair.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(pub(crate) eraftpb::Message);

/// The bytes are no message of raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a raft message")]
pub struct NotAMessage;

impl Message {
    pub fn from(&self) -> u64 {
        self.0.from
    }

    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// Whether a state has to be sent with it.
    pub fn is_snapshot(&self) -> bool {
        self.0.get_msg_type() == eraftpb::MessageType::MsgSnapshot
    }

    /// Whether its sender has voted for the receiver.
    pub fn gives_vote(&self) -> bool {
        let kind = self.0.get_msg_type();
        kind == eraftpb::MessageType::MsgRequestVoteResponse && !self.0.reject
    }

    pub fn encode(&self) -> Vec<u8> {
        self.0.write_to_bytes().expect("every field of a message can be written")
    }

    /// # Errors
    /// [`NotAMessage`] for bytes that [`Message::encode`] did not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAMessage> {
        let mut message = eraftpb::Message::default();
        message.merge_from_bytes(bytes).map_err(|_| NotAMessage)?;
        Ok(Self(message))
    }
}

/// The whole state, for a member that is too far behind to catch up by entries.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTransfer(pub(crate) StoredSnapshot);

impl StateTransfer {
    /// Writes the state piece by piece.
    ///
    /// # Errors
    /// When `into` takes no more.
    pub fn write_to(&self, into: impl Write) -> std::io::Result<()> {
        let encoder = &mut rmp_serde::Serializer::new(into).with_struct_map();
        self.0.serialize(encoder).map_err(std::io::Error::other)
    }

    /// # Errors
    /// When `from` ends early or holds something else.
    pub fn read_from(from: impl Read) -> std::io::Result<Self> {
        rmp_serde::from_read(from).map(Self).map_err(std::io::Error::other)
    }
}

/// A message to another member, with the state it speaks of.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub message: Message,
    pub state: Option<StateTransfer>,
}

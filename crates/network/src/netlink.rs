//! Requests to the kernel's routing tables, one answer each.
//!
//! A socket belongs to the network namespace it was opened in.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

pub(crate) struct Netlink(Socket);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Makes an object; one that is already there is an error of kind `AlreadyExists`.
    pub(crate) fn create(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Makes a link. One of its name may still be there: the kernel takes a link down some time after its namespace
    /// has ended. It goes first then.
    pub(crate) fn create_link(&self, name: &str, message: &RouteNetlinkMessage) -> io::Result<()> {
        match self.create(message.clone()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.remove_link(name)?;
                self.create(message.clone())
            }
            made => made,
        }
    }

    /// Removes a link by its name; nothing happens where there is none.
    pub(crate) fn remove_link(&self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.change(RouteNetlinkMessage::DelLink(message)) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Makes an object, in the place of one that is there.
    pub(crate) fn replace(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Changes or removes an object.
    pub(crate) fn change(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// Lists objects.
    pub(crate) fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.0.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            if collect(&bytes, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of one datagram; true when the answer is complete.
fn collect(mut bytes: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(answer) => match answer.code {
                None => return Ok(true),
                Some(_) => return Err(answer.to_io()),
            },
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    Ok(false)
}

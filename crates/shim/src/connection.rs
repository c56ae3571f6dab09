//! The daemons connected to a shim: usually one, for a moment two during an upgrade.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::packet;
use crate::protocol::{Call, Fault, Push};

/// Packets a connection may have waiting before it counts as dead. A daemon reads at once; one
/// that does not for this long has stopped, and finds the exit record when it comes back.
const OUTBOX_PACKETS_MAX: usize = 256;

/// One connected daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    socket: OwnedFd,
    outbox: Vec<(Vec<u8>, Option<OwnedFd>)>,
    pub(crate) closed: bool,
}

/// A call, or what is wrong with the packet.
#[derive(Debug)]
pub(crate) enum Incoming {
    Call(Call, Vec<OwnedFd>),
    /// Answered with the fault when there is a number to answer to.
    Bad(Option<u64>, Fault),
}

impl Connection {
    pub(crate) fn new(id: u64, socket: OwnedFd) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { id, socket, outbox: Vec::new(), closed: false })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn has_outbox(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next call; none when there is none now, or the daemon is gone.
    pub(crate) fn receive(&mut self) -> Option<Incoming> {
        match packet::receive(&self.socket) {
            Ok((bytes, fds)) if !bytes.is_empty() => Some(parse(&bytes, fds)),
            Err(Errno::AGAIN) => None,
            _ => {
                self.closed = true;
                None
            }
        }
    }

    /// Sends, or keeps for later what the socket does not take now.
    pub(crate) fn push(&mut self, push: &Push, fd: Option<OwnedFd>) {
        let bytes = serde_json::to_vec(push).expect("a push has only text and numbers");
        self.outbox.push((bytes, fd));
        self.flush();
        if self.outbox.len() > OUTBOX_PACKETS_MAX {
            self.closed = true;
        }
    }

    pub(crate) fn flush(&mut self) {
        while let Some((bytes, fd)) = self.outbox.first() {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            match packet::send(&self.socket, bytes, &fds) {
                Ok(()) => drop(self.outbox.remove(0)),
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}

/// A request this shim does not know still has a number, which its answer needs.
fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Incoming {
    #[derive(serde::Deserialize)]
    struct Number {
        id: u64,
    }
    match serde_json::from_slice::<Call>(bytes) {
        Ok(call) => Incoming::Call(call, fds),
        Err(error) => {
            let id = serde_json::from_slice::<Number>(bytes).ok().map(|number| number.id);
            Incoming::Bad(id, Fault::Unknown { text: error.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_request_is_answered_by_its_number() {
        let packet = br#"{"id":9,"request":{"kind":"checkpoint","to":"x"}}"#;
        let Incoming::Bad(Some(9), Fault::Unknown { text }) = parse(packet, Vec::new()) else {
            panic!("not refused");
        };
        assert!(text.contains("checkpoint"), "{text}");
    }

    #[test]
    fn a_packet_that_is_no_json_has_no_number() {
        assert!(matches!(parse(b"\x00\xff", Vec::new()), Incoming::Bad(None, _)));
    }
}

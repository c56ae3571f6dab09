//! The socket between the caller and the process it has just made.
//!
//! The child's end closes itself on `execve`: end of file means that the program runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::Error;
use crate::error::Step;

/// Longest text of a note or an error, in bytes; the rest is cut.
const TEXT_BYTES_MAX: usize = 4096;

/// What the child tells.
#[derive(Debug)]
pub(super) enum Message {
    /// Something was left out, but the container can start.
    Note(String),
    /// The step that did not work; the child is gone.
    Failed { text: String, exit_code: i32 },
    /// The controlling end of the container's terminal.
    Console(OwnedFd),
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
}

/// The caller's end and the child's.
pub(super) fn pair() -> Result<(Channel, Channel), Error> {
    let (own, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .step(|| "make socket pair".to_owned())?;
    Ok((Channel { socket: own }, Channel { socket: other }))
}

const NOTE: u8 = b'n';
const FAILED: u8 = b'e';
const CONSOLE: u8 = b'c';
const GO: u8 = b'g';

impl Channel {
    /// Child: reports something left out.
    pub(super) fn note(&self, text: &str) {
        // The caller has gone if this fails, and then nobody misses the note.
        let _ = self.send(NOTE, text.as_bytes(), None);
    }

    /// Child: reports the failed step.
    pub(super) fn fail(&self, error: &Error) {
        let mut body = error.exit_code().to_le_bytes().to_vec();
        body.extend_from_slice(error.text().as_bytes());
        let _ = self.send(FAILED, &body, None);
    }

    /// Child: hands over the terminal.
    pub(super) fn console(&self, master: &OwnedFd) -> Result<(), Error> {
        self.send(CONSOLE, &[], Some(master)).step(|| "send terminal".to_owned())
    }

    /// Caller: lets the child go on.
    pub(super) fn go(&self) -> rustix::io::Result<()> {
        self.send(GO, &[], None)
    }

    /// Child: waits for [`Channel::go`].
    pub(super) fn wait_go(&self) -> Result<(), Error> {
        match self.receive_raw() {
            Ok((bytes, _)) if bytes.first() == Some(&GO) => Ok(()),
            // The caller died or gave up.
            Ok(_) => Err(Error::Step { step: "wait for caller".into(), errno: Errno::PIPE }),
            Err(errno) => Err(Error::Step { step: "wait for caller".into(), errno }),
        }
    }

    /// Caller: the next message; none when the program runs or the child has died.
    pub(super) fn receive(&self) -> Result<Option<Message>, Error> {
        let (bytes, fd) = self.receive_raw().step(|| "hear from new process".to_owned())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match (bytes.split_first(), fd) {
            (None, _) => Ok(None),
            (Some((&NOTE, body)), _) => Ok(Some(Message::Note(text(body)))),
            (Some((&CONSOLE, _)), Some(master)) => Ok(Some(Message::Console(master))),
            (Some((&FAILED, body)), _) if body.len() >= 4 => {
                let (code, body) = body.split_at(4);
                let code = code.try_into().expect("split at four");
                let exit_code = i32::from_le_bytes(code);
                Ok(Some(Message::Failed { text: text(body), exit_code }))
            }
            _ => Err(Error::Step { step: "hear from new process".into(), errno: Errno::BADMSG }),
        }
    }

    fn send(&self, kind: u8, body: &[u8], fd: Option<&OwnedFd>) -> rustix::io::Result<()> {
        let body = &body[..body.len().min(TEXT_BYTES_MAX)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd.as_fd()]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(body)];
        sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }

    fn receive_raw(&self) -> rustix::io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut bytes = vec![0; TEXT_BYTES_MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
                // The other end closed before it read everything from here. What it has sent
                // is still to be read, and is why it closed: end of file comes after that.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                other => break other?.bytes,
            }
        };
        bytes.truncate(length);
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((bytes, fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_child_that_did_not_listen_are_heard() {
        let (own, child) = pair().unwrap();
        own.go().unwrap();
        child.fail(&Error::Init { text: "no".to_owned(), exit_code: 127 });
        drop(child);
        let Some(Message::Failed { text, exit_code }) = own.receive().unwrap() else {
            panic!("not heard");
        };
        assert_eq!((text.as_str(), exit_code), ("no", 127));
        assert!(own.receive().unwrap().is_none());
    }
}

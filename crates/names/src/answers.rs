//! Answers to questions that came together, sent together.
//!
//! What a client has asked in one go passes the kernel's layers once: it is handed one piece and cuts it into datagrams where
//! they are received (`UDP_SEGMENT`, Linux 4.18). Most of an answer's time is the way through these layers.
#![allow(unsafe_code, reason = "sendmsg with control data of this kind has no safe wrapper")]

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

/// linux/udp.h; so many datagrams can be cut from one piece.
const UDP_SEGMENT: libc::c_int = 103;
const SEGMENTS_MAX: usize = 64;

/// Bytes of a piece, which has to fit a datagram itself.
const PIECE_BYTES: usize = 60_000;

/// Words that hold a control message with one number of 16 bits.
const CONTROL_WORDS: usize = 4;

/// Answers that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Answers(Vec<Piece>);

/// Answers of one length to one client.
#[derive(Debug)]
struct Piece {
    client: SocketAddr,
    each: usize,
    bytes: Vec<u8>,
}

impl Answers {
    pub(crate) fn add(&mut self, client: SocketAddr, answer: &[u8]) {
        let fits = |piece: &&mut Piece| {
            piece.client == client
                && piece.each == answer.len()
                && piece.bytes.len() + answer.len() <= (SEGMENTS_MAX * piece.each).min(PIECE_BYTES)
        };
        match self.0.iter_mut().find(fits) {
            Some(piece) => piece.bytes.extend_from_slice(answer),
            None => self.0.push(Piece { client, each: answer.len(), bytes: answer.to_vec() }),
        }
    }

    pub(crate) fn send(self, socket: &UdpSocket) {
        for piece in self.0 {
            let is_one = piece.bytes.len() == piece.each;
            if is_one || send_cut(socket, &piece).is_err() {
                for answer in piece.bytes.chunks(piece.each.max(1)) {
                    // Who asks again is answered again.
                    let _ = socket.send_to(answer, piece.client);
                }
            }
        }
    }
}

fn send_cut(socket: &UdpSocket, piece: &Piece) -> io::Result<()> {
    let SocketAddr::V4(client) = piece.client else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let each = u16::try_from(piece.each).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut address = address_of(client);
    let mut part = libc::iovec {
        iov_base: piece.bytes.as_ptr().cast_mut().cast(),
        iov_len: piece.bytes.len(),
    };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: a message of zeros is a message without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = length_of::<libc::sockaddr_in>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: it only counts, and the control data has room for it, aligned.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(length_of::<u16>()) };
    // SAFETY: the control data is as long as the message says, so there is a first header with room for a number behind it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(length_of::<u16>());
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(each);
    }
    // SAFETY: all that the message points to lives until the call is over, and is only read.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    match sent {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn address_of(client: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET.try_into().expect("a small number"),
        sin_port: client.port().to_be(),
        sin_addr: libc::in_addr { s_addr: client.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    }
}

fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small structure")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_answer_is_a_datagram_of_its_own_whoever_asked_how_many() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let (mut answers, mut expected) =
            (Answers::default(), vec![BTreeSet::new(); clients.len()]);
        for number in 0..200_u8 {
            let to = usize::from(number) % clients.len();
            // Of two lengths.
            let answer = vec![number; 40 + usize::from(number % 2) * 30];
            answers.add(clients[to].local_addr().unwrap(), &answer);
            expected[to].insert(answer);
        }
        assert!(answers.0.len() < 20, "{} pieces", answers.0.len());
        answers.send(&server);
        for (client, expected) in clients.iter().zip(expected) {
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let read = |_| {
                let mut buffer = [0; 512];
                let (length, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(from, server.local_addr().unwrap());
                buffer[..length].to_vec()
            };
            assert_eq!((0..expected.len()).map(read).collect::<BTreeSet<_>>(), expected);
        }
    }
}

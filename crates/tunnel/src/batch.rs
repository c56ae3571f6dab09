//! Datagrams that leave together: of one size, to one place, in one system call.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::sys;

/// Datagrams in one call: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.4.
const SEGMENTS_MAX: usize = 64;

/// Bytes in one call: what an IP packet could hold.
const BYTES_MAX: usize = 65_000;

/// Largest datagram: what a packet of the tun device may become.
pub(crate) const DATAGRAM_MAX: usize = 65_535 + 32;

/// Datagrams that wait to be sent.
pub(crate) struct Batch {
    buffer: Vec<u8>,
    used: usize,
    segment: usize,
    count: usize,
    /// One shorter than the others ends a batch.
    is_closed: bool,
    to: Option<SocketAddr>,
    /// Some devices cannot take long sends apart, nor can the kernel for them.
    joins: bool,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; BYTES_MAX + DATAGRAM_MAX],
            used: 0,
            segment: 0,
            count: 0,
            is_closed: false,
            to: None,
            joins: true,
        }
    }

    /// Room for the next datagram; [`Batch::push`] takes it in.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..self.used + DATAGRAM_MAX]
    }

    /// Takes in the datagram of `length` bytes that was written into [`Batch::room`]; what does not go with it is sent
    /// before.
    pub(crate) fn push(&mut self, socket: &OwnedFd, length: usize, to: SocketAddr) {
        if self.count > 0 && !self.goes_with(length, to) {
            let start = self.used;
            self.flush(socket);
            self.buffer.copy_within(start..start + length, 0);
        }
        if self.count == 0 {
            (self.segment, self.to) = (length, Some(to));
        }
        self.used += length;
        self.count += 1;
        self.is_closed = length < self.segment;
    }

    fn goes_with(&self, length: usize, to: SocketAddr) -> bool {
        self.joins
            && !self.is_closed
            && self.to == Some(to)
            && length <= self.segment
            && self.count < SEGMENTS_MAX
            && self.used + length <= BYTES_MAX
    }

    /// Sends what waits. What the network does not take is lost, as datagrams are.
    pub(crate) fn flush(&mut self, socket: &OwnedFd) {
        if let Some(to) = self.to.take() {
            let bytes = &self.buffer[..self.used];
            match sys::send_segments(socket, bytes, self.segment, to) {
                // Too long for the way as a whole, or nobody there who could take it apart.
                Err(errno @ (Errno::INVAL | Errno::IO | Errno::MSGSIZE)) if self.count > 1 => {
                    self.joins = errno != Errno::IO;
                    for datagram in bytes.chunks(self.segment) {
                        let _ = sys::send_segments(socket, datagram, datagram.len(), to);
                    }
                }
                _ => {}
            }
        }
        (self.used, self.count, self.is_closed) = (0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn datagrams_arrive_in_order_and_size_however_they_are_joined() {
        let receiver = UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], receiver.local_addr().unwrap().port()));
        let socket = OwnedFd::from(UdpSocket::bind("[::]:0").unwrap());
        let lengths = [100, 100, 40, 100, 300, 300, 20, 20];
        let mut batch = Batch::new();
        for (number, length) in (0u8..).zip(lengths) {
            batch.room()[..length].fill(number);
            batch.push(&socket, length, to);
        }
        batch.flush(&socket);
        let mut buffer = [0; 1000];
        for (number, length) in (0u8..).zip(lengths) {
            let received = receiver.recv(&mut buffer).unwrap();
            assert_eq!((received, buffer[0]), (length, number));
        }
    }
}

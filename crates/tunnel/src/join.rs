//! Packets that enter the device together: of one flow and one size, in one system call, as the kernel itself would have
//! joined them.
//!
//! The network's side of a bulk transfer is datagrams of vxlan, all between the same two ports. The kernel passes one long
//! datagram through its tables instead of forty short ones, and takes it apart again at vxlan's socket.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::sys::VNET_HEADER_BYTES;

/// Bytes of a joined packet: IPv6's length field holds what follows its own header.
const BYTES_MAX: usize = 65_000;

/// Packets in one: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.4.
const SEGMENTS_MAX: usize = 64;

/// IPv6's header and UDP's.
const HEADERS_BYTES: usize = 48;
const IPV6_HEADER_BYTES: usize = 40;
const UDP: u8 = 17;

/// Of linux/virtio_net.h.
const NEEDS_CSUM: u8 = 1;
const GSO_UDP_L4: u8 = 5;
/// Where UDP's sum stands in its header.
const SUM_OFFSET: u16 = 6;

/// Packets on their way into the device.
pub(crate) struct Join {
    /// The header that tells the kernel what is joined, then the packet.
    buffer: Vec<u8>,
    count: usize,
    /// Payload of each packet but the last.
    segment: usize,
    is_closed: bool,
    /// Before Linux 6.2 the kernel takes no joined datagrams.
    joins: bool,
}

impl Join {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(VNET_HEADER_BYTES + BYTES_MAX),
            count: 0,
            segment: 0,
            is_closed: false,
            joins: true,
        }
    }

    /// Takes in a packet; what does not go with it enters the device before.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn push(&mut self, device: &OwnedFd, packet: &[u8]) -> rustix::io::Result<()> {
        if self.count > 0 && self.goes_with(packet) {
            let payload = &packet[HEADERS_BYTES..];
            self.buffer.extend_from_slice(payload);
            self.count += 1;
            self.is_closed = payload.len() < self.segment;
            return Ok(());
        }
        self.flush(device)?;
        self.buffer.resize(VNET_HEADER_BYTES, 0);
        self.buffer.extend_from_slice(packet);
        self.count = 1;
        self.segment = packet.len().saturating_sub(HEADERS_BYTES);
        self.is_closed = !self.joins || !is_whole_udp(packet);
        Ok(())
    }

    fn goes_with(&self, packet: &[u8]) -> bool {
        let first = &self.buffer[VNET_HEADER_BYTES..];
        !self.is_closed
            && is_whole_udp(packet)
            && packet.len() - HEADERS_BYTES <= self.segment
            && packet.len() > HEADERS_BYTES
            && self.count < SEGMENTS_MAX
            && self.buffer.len() + packet.len() <= BYTES_MAX
            // All but the length: class, flow label, hops, addresses, ports.
            && first[..4] == packet[..4]
            && first[6..44] == packet[6..44]
            // Both with a sum, or both without.
            && (first[46..48] == [0, 0]) == (packet[46..48] == [0, 0])
    }

    /// Lets what is there enter the device. What it has no room for is lost, as packets are.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn flush(&mut self, device: &OwnedFd) -> rustix::io::Result<()> {
        if self.count > 1 {
            self.describe();
        }
        let written = match self.count {
            0 => Ok(0),
            _ => rustix::io::write(device, &self.buffer),
        };
        if self.count > 1 && written == Err(Errno::INVAL) {
            self.joins = false;
            self.write_apart(device)?;
        }
        self.buffer.clear();
        self.count = 0;
        is_there(written)
    }

    /// Writes lengths, the sum's beginning, and what the kernel has to know to take the packet apart.
    fn describe(&mut self) {
        let length = |bytes: usize| u16::try_from(bytes).expect("a packet is shorter than 64 KiB");
        let total = self.buffer.len() - VNET_HEADER_BYTES;
        let udp_bytes = length(total - IPV6_HEADER_BYTES);
        let (header, packet) = self.buffer.split_at_mut(VNET_HEADER_BYTES);
        header[0] = NEEDS_CSUM;
        header[1] = GSO_UDP_L4;
        header[2..4].copy_from_slice(&length(HEADERS_BYTES).to_ne_bytes());
        header[4..6].copy_from_slice(&length(self.segment).to_ne_bytes());
        header[6..8].copy_from_slice(&length(IPV6_HEADER_BYTES).to_ne_bytes());
        header[8..10].copy_from_slice(&SUM_OFFSET.to_ne_bytes());
        packet[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
        packet[44..46].copy_from_slice(&udp_bytes.to_be_bytes());
        let sum = pseudo_sum(&packet[8..IPV6_HEADER_BYTES], udp_bytes);
        packet[46..48].copy_from_slice(&sum.to_be_bytes());
    }

    /// The packets one by one, for a kernel that does not take them joined. Their sums are not needed: what was sealed
    /// came whole.
    fn write_apart(&self, device: &OwnedFd) -> rustix::io::Result<()> {
        let packet = &self.buffer[VNET_HEADER_BYTES..];
        let (headers, payload) = packet.split_at(HEADERS_BYTES);
        for part in payload.chunks(self.segment) {
            let mut single = vec![0; VNET_HEADER_BYTES];
            single.extend_from_slice(headers);
            single.extend_from_slice(part);
            let udp_bytes = u16::try_from(8 + part.len()).expect("shorter than the whole");
            let at = VNET_HEADER_BYTES;
            single[at + 4..at + 6].copy_from_slice(&udp_bytes.to_be_bytes());
            single[at + 44..at + 46].copy_from_slice(&udp_bytes.to_be_bytes());
            single[at + 46..at + 48].fill(0);
            is_there(rustix::io::write(device, &single))?;
        }
        Ok(())
    }
}

/// Nothing matters of a write but whether the device was removed from under us.
fn is_there(written: rustix::io::Result<usize>) -> rustix::io::Result<()> {
    match written {
        Err(errno @ (Errno::BADFD | Errno::BADF | Errno::NODEV)) => Err(errno),
        _ => Ok(()),
    }
}

/// Whether the packet is UDP over IPv6 without more headers, and as long as it says.
fn is_whole_udp(packet: &[u8]) -> bool {
    packet.len() > HEADERS_BYTES
        && packet[0] >> 4 == 6
        && packet[6] == UDP
        && usize::from(u16::from_be_bytes([packet[4], packet[5]]))
            == packet.len() - IPV6_HEADER_BYTES
        && packet[44..46] == packet[4..6]
}

/// The part of UDP's sum that addresses, length and protocol make, for whoever adds the rest.
fn pseudo_sum(addresses: &[u8], udp_bytes: u16) -> u16 {
    let words = addresses.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let mut sum: u32 = words.map(u32::from).sum();
    sum += u32::from(udp_bytes) + u32::from(UDP);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn packet(port: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], UDP, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend([0, port, 0x12, 0xb5, length[0], length[1], 0, 0]);
        packet.extend(payload);
        packet
    }

    /// What is written into the device for these packets.
    fn written(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let device = OwnedFd::from(writer);
        let mut join = Join::new();
        let mut writes = Vec::new();
        let mut take = |reader: &mut std::io::PipeReader| {
            let mut buffer = vec![0; 1 << 16];
            let length = reader.read(&mut buffer).unwrap();
            writes.push(buffer[..length].to_vec());
        };
        for packet in packets {
            let waiting = join.count > 0 && !join.goes_with(packet);
            join.push(&device, packet).unwrap();
            if waiting {
                take(&mut reader);
            }
        }
        join.flush(&device).unwrap();
        take(&mut reader);
        writes
    }

    #[test]
    fn packets_of_one_flow_become_one_and_others_stay_apart() {
        let packets = [
            packet(1, &[1; 100]),
            packet(1, &[2; 100]),
            packet(1, &[3; 40]),
            packet(1, &[4; 100]),
            packet(2, &[5; 100]),
        ];
        let writes = written(&packets);
        assert_eq!(writes.len(), 3);
        let joined = &writes[0];
        assert_eq!(joined.len(), VNET_HEADER_BYTES + HEADERS_BYTES + 240);
        assert_eq!(joined[..2], [NEEDS_CSUM, GSO_UDP_L4]);
        assert_eq!(joined[4..6], 100_u16.to_ne_bytes());
        let packet_begin = VNET_HEADER_BYTES;
        assert_eq!(joined[packet_begin + 44..packet_begin + 46], 248_u16.to_be_bytes());
        assert_eq!(writes[1][VNET_HEADER_BYTES..], packets[3]);
        assert_eq!(writes[2][VNET_HEADER_BYTES..], packets[4]);
    }

    #[test]
    fn what_is_no_datagram_goes_as_it_came() {
        let mut strange = packet(1, &[1; 100]);
        strange[6] = 58;
        let writes = written(&[strange.clone(), strange.clone()]);
        assert_eq!(writes.len(), 2);
        assert_eq!(writes[0][VNET_HEADER_BYTES..], strange);
    }
}

//! From the device to the network: each packet is sealed for the peer whose address it goes to, or dropped.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use boringtun::noise::{Tunn, TunnResult};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::batch::Batch;
use crate::peers::Peers;
use crate::sys::VNET_HEADER_BYTES;

/// Largest packet of a device.
pub(crate) const PACKET_BYTES_MAX: usize = 65_535;

/// Packets taken before those that are sealed must leave.
const PACKETS_PER_ROUND_MAX: usize = 64;

/// Works until the device is gone.
pub(crate) fn run(
    device: &OwnedFd,
    socket: &OwnedFd,
    peers: &Arc<Peers>,
) -> rustix::io::Result<()> {
    let mut packet = vec![0; VNET_HEADER_BYTES + PACKET_BYTES_MAX];
    let mut batch = Batch::new();
    let mut taken = 0;
    loop {
        match rustix::io::read(device, &mut packet[..]) {
            Ok(length) => {
                // The kernel was told to give no joined packets, so its header has nothing to say.
                let sealed = packet[..length].get(VNET_HEADER_BYTES..).unwrap_or_default();
                seal(sealed, peers, &mut batch, socket);
                taken += 1;
                if taken >= PACKETS_PER_ROUND_MAX {
                    batch.flush(socket);
                    taken = 0;
                }
            }
            Err(Errno::AGAIN) => {
                batch.flush(socket);
                taken = 0;
                wait(device)?;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn wait(device: &OwnedFd) -> rustix::io::Result<()> {
    match poll(&mut [PollFd::new(device, PollFlags::IN)], None) {
        Err(errno) if errno != Errno::INTR => Err(errno),
        _ => Ok(()),
    }
}

fn seal(packet: &[u8], peers: &Peers, batch: &mut Batch, socket: &OwnedFd) {
    let Some(IpAddr::V6(address)) = Tunn::dst_address(packet) else { return };
    let Some(link) = peers.by_address(address) else { return };
    let mut state = link.lock();
    let to = state.endpoint;
    // Without a session this is the beginning of one; the packet waits for its end.
    if let TunnResult::WriteToNetwork(datagram) = state.noise.encapsulate(packet, batch.room()) {
        let length = datagram.len();
        drop(state);
        batch.push(socket, length, to);
    }
}

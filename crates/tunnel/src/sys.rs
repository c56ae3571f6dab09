//! The system calls that have no safe wrapper: the tun device, datagrams in bulk.
#![allow(unsafe_code, reason = "the tun device and UDP segmentation have no safe wrapper")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use runtime::process::last_errno;

const TUN_DEVICE: &str = "/dev/net/tun";

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: u64 = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// What stands before each packet that is read from the device or written to it: `struct virtio_net_hdr`.
pub(crate) const VNET_HEADER_BYTES: usize = 10;

/// Room for one control message that holds a number.
const CONTROL_BYTES: u8 = 64;

/// A control buffer with the alignment that its headers need.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES as usize]);

/// A datagram as it came, or several of one size that the kernel has joined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) length: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    pub(crate) segment: usize,
    pub(crate) from: SocketAddr,
}

/// Makes a tun device of this name in the present network namespace; it is gone with the descriptor.
pub(crate) fn open_tun(name: &str) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut request =
        Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    let room = request.name.get_mut(..name.len()).filter(|room| room.len() < 16);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    let flags =
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let fd = rustix::fs::open(TUN_DEVICE, flags, 0.into())?;
    // The number is unsigned in one C library and signed in the other.
    #[allow(clippy::cast_possible_truncation, reason = "the number has 32 bits")]
    let number = TUNSETIFF as _;
    // SAFETY: `request` is laid out as struct ifreq, which the call reads and fills in.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut request) } {
        0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `bytes` as datagrams of `segment` bytes each, the last one with what is left.
pub(crate) fn send_segments(
    socket: impl AsFd,
    bytes: &[u8],
    segment: usize,
    to: SocketAddr,
) -> rustix::io::Result<()> {
    let mut to = raw_address(to);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_BYTES as usize]);
    // SAFETY: A header of zeros is valid; all of it that counts is filled in below.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = length_of::<libc::sockaddr_in6>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(segment) = u16::try_from(segment).ok().filter(|_| bytes.len() > segment) {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: The lengths are computed from constants; the buffer has room for one message of two bytes.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(length_of::<u16>()) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(length_of::<u16>()) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        }
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: The header points to what lives through the call.
    match unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// Waits for a datagram.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<Received> {
    let mut from = raw_address(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL_BYTES as usize]);
    // SAFETY: A header of zeros is valid; all of it that counts is filled in below.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = length_of::<libc::sockaddr_in6>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES.into();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: The header points to what lives through the call.
    let length = usize::try_from(unsafe { libc::recvmsg(fd, &raw mut message, 0) });
    let length = length.map_err(|_| last_errno())?;
    let mut segment = length;
    // SAFETY: The kernel has written whole control messages and their length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let told = libc::CMSG_DATA(header).cast::<i32>().read_unaligned();
                segment = usize::try_from(told).unwrap_or(length);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received { length, segment: segment.max(1), from: read_address(&from) })
}

/// Asks the kernel to join datagrams of one size.
pub(crate) fn join_datagrams(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Lets the kernel take datagrams apart that are too long for the way, instead of refusing them.
pub(crate) fn allow_fragments(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
}

fn set_option(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let pointer = (&raw const value).cast();
    // SAFETY: `pointer` describes `value`, which lives through the call.
    match unsafe { libc::setsockopt(fd, level, option, pointer, length_of::<i32>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("small structures")
}

/// The socket speaks IPv6, where IPv4's addresses have a place of their own.
fn raw_address(address: SocketAddr) -> libc::sockaddr_in6 {
    let (ip, scope) = match address {
        SocketAddr::V4(address) => (address.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(address) => (*address.ip(), address.scope_id()),
    };
    // SAFETY: An address of zeros is valid.
    let mut raw: libc::sockaddr_in6 = unsafe { MaybeUninit::zeroed().assume_init() };
    raw.sin6_family = u16::try_from(libc::AF_INET6).expect("a small number");
    raw.sin6_port = address.port().to_be();
    raw.sin6_addr.s6_addr = ip.octets();
    raw.sin6_scope_id = scope;
    raw
}

fn read_address(raw: &libc::sockaddr_in6) -> SocketAddr {
    let (ip, port) = (Ipv6Addr::from(raw.sin6_addr.s6_addr), u16::from_be(raw.sin6_port));
    match ip.to_ipv4_mapped() {
        Some(ip) => SocketAddr::from((ip, port)),
        None => SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive() {
        for text in ["10.1.2.3:4790", "[fd00::1]:4790"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(read_address(&raw_address(address)), address);
        }
    }

    #[test]
    fn segments_arrive_as_datagrams() {
        let receiver = std::net::UdpSocket::bind("[::]:0").unwrap();
        let sender = std::net::UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], receiver.local_addr().unwrap().port()));
        send_segments(&sender, &[7; 250], 100, to).unwrap();
        let mut buffer = [0; 1000];
        let lengths: Vec<_> =
            (0..3).map(|_| receive(&receiver, &mut buffer).unwrap().length).collect();
        assert_eq!(lengths, [100, 100, 50]);
    }
}

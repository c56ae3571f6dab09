//! A short way through an overlay: a program at its ports hands packets on without the bridge.
//!
//! ```text
//! ports: a port's index → the hardware address and the address behind it
//! ways:  a hardware address → the index of its port
//! ```
//! A packet of IPv4 that comes in at a container's port, from the addresses that are behind it, goes straight into the
//! namespace of the container it is for, or to the vxlan device where it is for none of this node. One from the vxlan device
//! goes straight to its container. All others go by the bridge, where the guard judges them. It saves a request the bridge,
//! the guard's table and one turn of the kernel's queues. Where the kernel has no such programs (before 5.10), all go by the
//! bridge.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper; each call is given what it reads")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use crate::netlink::Netlink;

/// Commands and kinds of linux/bpf.h.
const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_PROG_LOAD: u32 = 5;
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// Entries take memory as they come.
const BPF_F_NO_PREALLOC: u32 = 1;
/// Functions a program may call.
const LOOK_UP: i32 = 1;
const REDIRECT: i32 = 23;
const CHANGE_TYPE: i32 = 32;
const REDIRECT_PEER: i32 = 155;

/// Containers of one network on one node.
const ENTRIES_MAX: u32 = 65_536;
/// Bytes of keys and values: hardware addresses are padded to whole words.
const INDEX_BYTES: u32 = 4;
const MAC_BYTES: u32 = 8;
const TENANT_BYTES: u32 = MAC_BYTES + 4;

const LICENSE: &CStr = c"Apache-2.0";
const PROGRAM: &str = "skep-lane";
/// `ETH_P_IP` (linux/if_ether.h), in network order, and the only filter's priority before it.
const IP: u32 = 1 << 16 | 0x0800_u16.to_be() as u32;

type Mac = [u8; 6];
type Identity = (Mac, Ipv4Addr);
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Maps and program of one overlay.
#[derive(Debug)]
pub(super) struct Lane {
    ports: OwnedFd,
    ways: OwnedFd,
    program: OwnedFd,
    /// Ports of containers, and who is behind them.
    admitted: BTreeMap<String, (u32, Identity)>,
}

impl Lane {
    /// `wire` is the index of the vxlan device.
    pub(super) fn open(wire: u32) -> io::Result<Self> {
        let ports = make_map(INDEX_BYTES, TENANT_BYTES)?;
        let ways = make_map(MAC_BYTES, INDEX_BYTES)?;
        let program = load(&program(ports.as_raw_fd(), ways.as_raw_fd(), wire))?;
        Ok(Self { ports, ways, program, admitted: BTreeMap::new() })
    }

    /// Leads what comes in at the link.
    pub(super) fn attach(&self, netlink: &Netlink, index: u32) -> io::Result<()> {
        let link = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut hook = TcMessage::with_index(link);
        hook.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        hook.header.parent = TcHandle::CLSACT;
        hook.attributes = vec![TcAttribute::Kind("clsact".into())];
        match netlink.create(RouteNetlinkMessage::NewQueueDiscipline(hook)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let program = u32::try_from(self.program.as_raw_fd()).expect("descriptors are positive");
        let mut filter = TcMessage::with_index(link);
        filter.header.handle = TcHandle::from(1);
        filter.header.parent = TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT };
        filter.header.info = IP;
        filter.attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgFd(program)),
                TcOption::Bpf(TcFilterBpfOption::ProgName(PROGRAM.into())),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]),
        ];
        netlink.replace(RouteNetlinkMessage::NewTrafficFilter(filter))
    }

    /// Leads what comes in at a container's port, and what is for it.
    pub(super) fn admit(
        &mut self,
        netlink: &Netlink,
        container: &str,
        port: u32,
        identity: Identity,
    ) -> io::Result<()> {
        if self.admitted.get(container).is_some_and(|known| *known != (port, identity)) {
            self.dismiss(container);
        }
        self.admitted.insert(container.to_owned(), (port, identity));
        let (mac, _) = identity;
        change(BPF_MAP_UPDATE_ELEM, &self.ports, &port.to_ne_bytes(), &tenant(identity))?;
        change(BPF_MAP_UPDATE_ELEM, &self.ways, &key(mac), &port.to_ne_bytes())?;
        self.attach(netlink, port)
    }

    /// The container's port is gone, or about to go. Another may have its address by now.
    pub(super) fn dismiss(&mut self, container: &str) {
        let Some((port, (mac, _))) = self.admitted.remove(container) else { return };
        // What is not there needs no removal.
        let _ = change(BPF_MAP_DELETE_ELEM, &self.ports, &port.to_ne_bytes(), &[]);
        if self.admitted.values().all(|(_, (other, _))| *other != mac) {
            let _ = change(BPF_MAP_DELETE_ELEM, &self.ways, &key(mac), &[]);
        }
    }

    /// How the maps differ from what was last said. With `mends` they are put right.
    pub(super) fn faults(&self, mends: bool) -> io::Result<Vec<String>> {
        let (mut ports, mut ways) = (Entries::new(), Entries::new());
        for (port, identity) in self.admitted.values() {
            ports.insert(port.to_ne_bytes().to_vec(), tenant(*identity));
            ways.insert(key(identity.0).to_vec(), port.to_ne_bytes().to_vec());
        }
        let mut faults = Vec::new();
        for (what, map, key_bytes, value_bytes, wanted) in [
            ("containers", &self.ports, INDEX_BYTES, TENANT_BYTES, ports),
            ("ways", &self.ways, MAC_BYTES, INDEX_BYTES, ways),
        ] {
            let found = entries(map, key_bytes, value_bytes)?;
            if found == wanted {
                continue;
            }
            faults.push(format!(
                "the way past the bridge knows other {what} than there are ({} of {})",
                found.len(),
                wanted.len()
            ));
            if mends {
                for strange in found.keys().filter(|key| !wanted.contains_key(*key)) {
                    change(BPF_MAP_DELETE_ELEM, map, strange, &[])?;
                }
                for (key, value) in &wanted {
                    change(BPF_MAP_UPDATE_ELEM, map, key, value)?;
                }
            }
        }
        Ok(faults)
    }
}

/// What a port's entry says of who is behind it.
fn tenant((mac, address): Identity) -> Vec<u8> {
    [&key(mac)[..], &address.octets()].concat()
}

/// All that is in a map.
fn entries(map: &OwnedFd, key_bytes: u32, value_bytes: u32) -> io::Result<Entries> {
    let room = |bytes: u32| vec![0; usize::try_from(bytes).expect("a few bytes")];
    let (mut all, mut next) = (Entries::new(), room(key_bytes));
    // Nothing goes before the first one.
    let mut last: Vec<u8> = Vec::new();
    while !is_end(write_into(BPF_MAP_GET_NEXT_KEY, map, &last, &mut next))? {
        let mut value = room(value_bytes);
        // What has gone meanwhile is not there.
        if !is_end(write_into(BPF_MAP_LOOKUP_ELEM, map, &next, &mut value))? {
            all.insert(next.clone(), value);
        }
        last.clone_from(&next);
    }
    Ok(all)
}

fn is_end(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        answer => answer.map(|()| false),
    }
}

fn key(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [a, b, c, d, e, f, 0, 0]
}

fn make_map(key_bytes: u32, value_bytes: u32) -> io::Result<OwnedFd> {
    let parts = [BPF_MAP_TYPE_HASH, key_bytes, value_bytes, ENTRIES_MAX, BPF_F_NO_PREALLOC];
    made(BPF_MAP_CREATE, &parts.map(u32::to_ne_bytes).concat())
}

/// Writes, or deletes, one entry.
fn change(command: u32, map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    on_map(command, map, key, place_of(value))
}

/// Asks for what the kernel writes into `answer`.
fn write_into(command: u32, map: &OwnedFd, key: &[u8], answer: &mut [u8]) -> io::Result<()> {
    let place = u64::try_from(answer.as_mut_ptr().addr()).expect("addresses have 64 bits");
    on_map(command, map, key, place)
}

fn on_map(command: u32, map: &OwnedFd, key: &[u8], other: u64) -> io::Result<()> {
    let map = u64::try_from(map.as_raw_fd()).expect("descriptors are positive");
    // A descriptor of 32 bits and as much padding, which are one word where the small half comes first.
    let map = if cfg!(target_endian = "little") { map } else { map << 32 };
    call(command, &[map, place_of(key), other, 0].map(u64::to_ne_bytes).concat()).map(drop)
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).expect("a short program");
    let head = [BPF_PROG_TYPE_SCHED_CLS, count];
    let mut bytes = head.map(u32::to_ne_bytes).concat();
    bytes.extend(place_of(program).to_ne_bytes());
    bytes.extend(place_of(LICENSE.to_bytes_with_nul()).to_ne_bytes());
    made(BPF_PROG_LOAD, &bytes)
}

/// Nothing is nowhere: the kernel refuses what it is not to read.
fn place_of<T>(items: &[T]) -> u64 {
    if items.is_empty() {
        return 0;
    }
    u64::try_from(items.as_ptr().addr()).expect("addresses have 64 bits")
}

fn made(command: u32, attributes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    let descriptor = RawFd::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has made it for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `union bpf_attr` as far as it is said; the kernel takes the rest for zeros.
fn call(command: u32, attributes: &[u8]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads so many bytes of the attributes, and what they point to, which the callers keep.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(result),
    }
}

/// Where a program's jumps lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Known,
    Elsewhere,
    Bridge,
}

/// Instructions (linux/bpf.h, linux/bpf_common.h): operation, destination, source, offset, constant.
#[derive(Debug, Default)]
struct Code {
    instructions: Vec<(u8, u8, u8, i16, i32)>,
    jumps: Vec<(usize, Place)>,
    places: Vec<(Place, usize)>,
}

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const STORE_HALF: u8 = 0x6b;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const IF_EQUAL: u8 = 0x15;
const IF_OTHER: u8 = 0x55;
const IF_NOT_SAME: u8 = 0x5d;
const IF_BEYOND: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;
/// The constant of `LOAD_MAP` is a map's descriptor.
const MAP_DESCRIPTOR: u8 = 1;

/// Registers: arguments and answers of functions, what is kept over calls, and the end of the stack.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const CONTEXT: u8 = 6;
const DATA: u8 = 7;
const END: u8 = 8;
const KEPT: u8 = 9;
const STACK: u8 = 10;

/// Offsets in `struct __sk_buff`.
const INPUT_LINK: i16 = 40;
const DATA_BEGIN: i16 = 76;
const DATA_END: i16 = 80;
/// Offsets in a frame, and where the addresses of IPv4 end.
const SOURCE_MAC: i16 = 6;
const SOURCE: i16 = 26;
const HEADERS: i32 = 34;
/// Places on the stack.
const LINK_AT: i16 = -4;
const MAC_AT: i16 = -16;

impl Code {
    fn add(&mut self, operation: u8, to: u8, from: u8, offset: i16, constant: i32) {
        self.instructions.push((operation, to, from, offset, constant));
    }

    fn jump(&mut self, condition: u8, left: u8, right: u8, constant: i32, place: Place) {
        self.jumps.push((self.instructions.len(), place));
        self.add(condition, left, right, 0, constant);
    }

    fn here(&mut self, place: Place) {
        self.places.push((place, self.instructions.len()));
    }

    fn call(&mut self, function: i32) {
        self.add(CALL, 0, 0, 0, function);
    }

    /// Looks for the key on the stack; the answer's place is in `R0`.
    fn look_up(&mut self, map: RawFd, key: i16) {
        self.add(LOAD_MAP, R1, MAP_DESCRIPTOR, 0, map);
        self.add(0, 0, 0, 0, 0);
        self.add(COPY, R2, STACK, 0, 0);
        self.add(ADD, R2, 0, 0, key.into());
        self.call(LOOK_UP);
    }

    /// Goes by the bridge where a part of the frame is not what the map says.
    fn compare(&mut self, load: u8, known: i16, frame: i16) {
        self.add(load, R1, R0, known, 0);
        self.add(load, R2, DATA, frame, 0);
        self.jump(IF_NOT_SAME, R1, R2, 0, Place::Bridge);
    }

    fn finished(mut self) -> Vec<u64> {
        for (at, place) in &self.jumps {
            let named = self.places.iter().find(|(named, _)| named == place);
            let (_, to) = named.expect("every place is in the program");
            let distance = i16::try_from(to - at - 1).expect("jumps go forward, and not far");
            self.instructions[*at].3 = distance;
        }
        let word = |(operation, to, from, offset, constant): (u8, u8, u8, i16, i32)| {
            let registers = match cfg!(target_endian = "little") {
                true => from << 4 | to,
                false => to << 4 | from,
            };
            let [a, b] = offset.to_ne_bytes();
            let [c, d, e, f] = constant.to_ne_bytes();
            u64::from_ne_bytes([operation, registers, a, b, c, d, e, f])
        };
        self.instructions.into_iter().map(word).collect()
    }
}

fn program(ports: RawFd, ways: RawFd, wire: u32) -> Vec<u64> {
    let wire = i32::try_from(wire).expect("indices of a new namespace are small");
    let mut code = Code::default();
    code.add(COPY, CONTEXT, R1, 0, 0);
    code.add(LOAD_WORD, DATA, CONTEXT, DATA_BEGIN, 0);
    code.add(LOAD_WORD, END, CONTEXT, DATA_END, 0);
    code.add(COPY, R1, DATA, 0, 0);
    code.add(ADD, R1, 0, 0, HEADERS);
    code.jump(IF_BEYOND, R1, END, 0, Place::Bridge);
    // Frames for many are the bridge's.
    code.add(LOAD_BYTE, R1, DATA, 0, 0);
    code.add(AND, R1, 0, 0, 1);
    code.jump(IF_OTHER, R1, 0, 0, Place::Bridge);
    code.add(LOAD_WORD, R1, CONTEXT, INPUT_LINK, 0);
    code.jump(IF_EQUAL, R1, 0, wire, Place::Known);
    code.add(STORE_WORD, STACK, R1, LINK_AT, 0);
    code.look_up(ports, LINK_AT);
    code.jump(IF_EQUAL, R0, 0, 0, Place::Bridge);
    code.compare(LOAD_WORD, 0, SOURCE_MAC);
    code.compare(LOAD_HALF, 4, SOURCE_MAC + 4);
    code.compare(LOAD_WORD, 8, SOURCE);
    code.here(Place::Known);
    code.add(LOAD_WORD, R1, DATA, 0, 0);
    code.add(STORE_WORD, STACK, R1, MAC_AT, 0);
    code.add(LOAD_HALF, R1, DATA, 4, 0);
    // A half in a word: the padding behind it is written too.
    code.add(SET, R2, 0, 0, 0);
    code.add(STORE_WORD, STACK, R2, MAC_AT + 4, 0);
    code.add(STORE_HALF, STACK, R1, MAC_AT + 4, 0);
    code.look_up(ways, MAC_AT);
    code.jump(IF_EQUAL, R0, 0, 0, Place::Elsewhere);
    code.add(LOAD_WORD, KEPT, R0, 0, 0);
    // The frame was for another than the port: what comes in must be for the host that takes it.
    code.add(COPY, R1, CONTEXT, 0, 0);
    code.add(SET, R2, 0, 0, 0);
    code.call(CHANGE_TYPE);
    code.add(COPY, R1, KEPT, 0, 0);
    code.add(SET, R2, 0, 0, 0);
    code.call(REDIRECT_PEER);
    code.add(EXIT, 0, 0, 0, 0);
    code.here(Place::Elsewhere);
    code.add(LOAD_WORD, R1, CONTEXT, INPUT_LINK, 0);
    code.jump(IF_EQUAL, R1, 0, wire, Place::Bridge);
    code.add(SET, R1, 0, 0, wire);
    code.add(SET, R2, 0, 0, 0);
    code.call(REDIRECT);
    code.add(EXIT, 0, 0, 0, 0);
    code.here(Place::Bridge);
    // `TC_ACT_UNSPEC`: nothing is decided here.
    code.add(SET, R0, 0, 0, -1);
    code.add(EXIT, 0, 0, 0, 0);
    code.finished()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_maps_should_not_know_is_found_and_put_right() {
        // Only who may load programs into the kernel can look.
        let Ok(mut lane) = Lane::open(3) else { return };
        let identity = ([2, 66, 10, 1, 0, 11], Ipv4Addr::new(10, 1, 0, 11));
        lane.admitted.insert("a".into(), (7, identity));
        let stranger = |lane: &Lane| {
            let port = 9_u32.to_ne_bytes();
            change(BPF_MAP_UPDATE_ELEM, &lane.ways, &key([2, 66, 10, 1, 0, 12]), &port).unwrap();
        };
        let nothing = |_: &Lane| {};
        for (act, expected) in [(&nothing as &dyn Fn(&Lane), 2), (&stranger, 1)] {
            act(&lane);
            assert_eq!(lane.faults(true).unwrap().len(), expected);
            assert_eq!(lane.faults(false).unwrap(), Vec::<String>::new());
        }
        lane.dismiss("a");
        assert_eq!(lane.faults(false).unwrap(), Vec::<String>::new());
    }
}

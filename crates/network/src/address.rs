//! Addresses of one subnet: which are taken, which comes next.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::Error;

/// Hands out addresses in turn, so that one just given back is not used again at once.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Ipv4Net,
    /// The first address to be given, and the first that is not.
    first: u32,
    end: u32,
    taken: BTreeSet<u32>,
    last: u32,
}

impl Pool {
    /// All addresses but the network's, the gateway's (the first) and the broadcast address.
    pub(crate) fn new(subnet: Ipv4Net) -> Self {
        let mut pool = Self::within(subnet, subnet);
        pool.first += 1;
        pool.last = pool.first - 1;
        pool
    }

    /// All addresses of `range` but the subnet's own and its broadcast address.
    pub(crate) fn within(subnet: Ipv4Net, range: Ipv4Net) -> Self {
        let first = range.network().to_bits().max(subnet.network().to_bits() + 1);
        let end = range.broadcast().to_bits().saturating_add(1).min(subnet.broadcast().to_bits());
        Self { subnet, first, end, taken: BTreeSet::new(), last: first - 1 }
    }

    pub(crate) fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address.to_bits());
    }

    pub(crate) fn is_taken(&self, address: Ipv4Addr) -> bool {
        self.taken.contains(&address.to_bits())
    }

    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
    }

    pub(crate) fn allocate(&mut self) -> Result<Ipv4Addr, Error> {
        let (first, end) = (self.first, self.end);
        let after_last = (self.last + 1).max(first)..end;
        let found = after_last.chain(first..end).find(|address| !self.taken.contains(address));
        let address = found.ok_or(Error::NoAddress { subnet: self.subnet })?;
        self.last = address;
        self.taken.insert(address);
        Ok(Ipv4Addr::from_bits(address))
    }
}

/// A locally administered MAC that names the address, so that neighbours' caches stay true when it is used again.
pub(crate) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// As Docker writes hardware addresses.
pub(crate) fn text_of(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads `02:42:ac:11:00:02`; a container's own address is one of a single host.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
    }
    let is_one_host = mac[0] & 1 == 0 && mac != [0; 6];
    (parts.next().is_none() && is_one_host).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new("10.0.0.0/29".parse().expect("a subnet"))
    }

    fn next(pool: &mut Pool) -> String {
        pool.allocate().map_or_else(|error| error.to_string(), |address| address.to_string())
    }

    #[test]
    fn addresses_go_round_before_one_is_used_again() {
        let mut pool = pool();
        assert_eq!(next(&mut pool), "10.0.0.2");
        pool.free(Ipv4Addr::new(10, 0, 0, 2));
        let rest: Vec<_> = (0..4).map(|_| next(&mut pool)).collect();
        assert_eq!(rest, ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(next(&mut pool), "10.0.0.2");
        assert_eq!(next(&mut pool), "no free address in 10.0.0.0/29");
    }

    #[test]
    fn a_range_is_kept_to_and_never_gives_the_subnets_own_addresses() {
        let subnet = "10.0.0.0/24".parse().expect("a subnet");
        for (range, expected) in [
            ("10.0.0.0/30", &["10.0.0.1", "10.0.0.2", "10.0.0.3"][..]),
            ("10.0.0.252/30", &["10.0.0.252", "10.0.0.253", "10.0.0.254"]),
            ("10.0.0.8/31", &["10.0.0.8", "10.0.0.9"]),
        ] {
            let mut pool = Pool::within(subnet, range.parse().expect("a subnet"));
            let given: Vec<_> = expected.iter().map(|_| next(&mut pool)).collect();
            assert_eq!(given, expected, "{range}");
            assert_eq!(next(&mut pool), "no free address in 10.0.0.0/24", "{range}");
        }
    }

    #[test]
    fn hardware_addresses_are_read_and_those_of_many_hosts_refused() {
        assert_eq!(parse_mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for text in ["", "02:42", "02:42:ac:11:00:02:03", "zz:42:ac:11:00:02", "01:00:5e:00:00:01"]
        {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn a_mac_names_its_address() {
        assert_eq!(text_of(mac(Ipv4Addr::new(172, 17, 0, 2))), "02:42:ac:11:00:02");
    }
}

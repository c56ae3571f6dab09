//! Addresses of one subnet: which are taken, which comes next.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::Error;

/// Hands out addresses in turn, so that one just given back is not used again at once.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Ipv4Net,
    taken: BTreeSet<u32>,
    last: u32,
}

impl Pool {
    /// All addresses but the network's, the gateway's (the first) and the broadcast address.
    pub(crate) fn new(subnet: Ipv4Net) -> Self {
        let last = subnet.network().to_bits() + 1;
        Self { subnet, taken: BTreeSet::new(), last }
    }

    pub(crate) fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address.to_bits());
    }

    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
    }

    pub(crate) fn allocate(&mut self) -> Result<Ipv4Addr, Error> {
        let first = self.subnet.network().to_bits() + 2;
        let end = self.subnet.broadcast().to_bits();
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

pub(crate) fn mac_text(address: Ipv4Addr) -> String {
    mac(address).map(|byte| format!("{byte:02x}")).join(":")
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
    fn a_mac_names_its_address() {
        assert_eq!(mac_text(Ipv4Addr::new(172, 17, 0, 2)), "02:42:ac:11:00:02");
    }
}

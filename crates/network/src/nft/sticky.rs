//! Shares out numbers of clients among backends: from the same address always to the same one.
//!
//! A client's address gives a number, and each number has its backend. When backends come or go, only their own share of
//! numbers changes hands; every node shares out alike, also nodes of other versions: none of this may ever change.

use std::net::IpAddr;

use super::expression::octets;

/// Numbers for so many backends: enough for each to have a fair share.
fn numbers(backends: usize) -> u64 {
    if backends <= 16 { 256 } else { 4_096 }
}

/// Who gets each number, of those who are known everywhere by these addresses.
pub(super) fn share<T: Copy>(backends: &[(IpAddr, T)]) -> Vec<T> {
    if backends.is_empty() {
        return Vec::new();
    }
    let seeds: Vec<_> =
        backends.iter().map(|(address, backend)| (seed(*address), backend)).collect();
    let winner = |number| seeds.iter().max_by_key(|(seed, _)| mixed(seed ^ mixed(number)));
    let winners = (0..numbers(backends.len())).filter_map(winner);
    winners.map(|(_, backend)| **backend).collect()
}

/// FNV-1a.
fn seed(address: IpAddr) -> u64 {
    octets(address).iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What SplitMix64 gives out.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<(IpAddr, u8)> {
        (0..count).map(|last| (IpAddr::from([10, 0, 1, last]), last)).collect()
    }

    #[test]
    fn everybody_has_a_fair_share_and_keeps_most_of_it() {
        for count in [1, 2, 3, 10, 16, 64, 200] {
            let before = share(&backends(count));
            let even = before.len() / usize::from(count);
            for backend in 0..count {
                let own = before.iter().filter(|it| **it == backend).count();
                assert!(
                    (even / 4..=3 * even).contains(&own),
                    "{own} of {even} for {backend} of {count}"
                );
            }
            let after = share(&backends(count)[..usize::from(count) - 1]);
            let last = count - 1;
            if count > 1 && before.len() == after.len() {
                let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
                assert!(moved.clone().all(|(before, _)| *before == last), "{count}");
            }
        }
        assert!(share(&backends(0)).is_empty());
    }

    #[test]
    fn the_order_in_which_backends_are_named_is_nothing() {
        let mut turned = backends(5);
        turned.reverse();
        assert_eq!(share(&turned), share(&backends(5)));
        // As in every version.
        assert_eq!(share(&backends(3))[..12], [1, 1, 0, 0, 1, 2, 2, 2, 0, 1, 1, 0]);
    }
}

//! Gives networks their subnets and their numbers on the wire.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use store::Snapshot;
use types::cluster::SUBNET_SIZE;
use types::network::{NetworkSpec, Subnet, SubnetSpec};

/// The first number for networks; Docker's.
const VNI_FIRST: u32 = 4_096;
/// Numbers have 24 bits.
const VNI_LAST: u32 = (1 << 24) - 1;

/// What networks are cut from where nothing else was said at `swarm init`.
const DEFAULT_POOL: &str = "10.0.0.0/8";
/// The ingress network's size then; it is the last of the pool.
const INGRESS_PREFIX: u8 = 16;

/// Unique local prefix that IPv6 subnets are cut from where none is named.
const IPV6_POOL: &str = "fd5a:6b65:7000::/48";
const IPV6_SUBNET_PREFIX: u8 = 64;

/// Why a network cannot be given what it asks for. The words are Docker's where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "could not find an available, non-overlapping IPv{family} address pool among the defaults to assign to the network"
    )]
    PoolsUsedUp { family: u8 },
    #[error(
        "Pool overlaps with other one on this address space: {wanted} and {taken} of network {network}"
    )]
    Overlap { wanted: IpNet, taken: IpNet, network: String },
    #[error("subnet {subnet} has no room for a container beside its gateway")]
    TooSmall { subnet: IpNet },
    #[error("ipam configuration: subnet {subnet} does not contain gateway {gateway}")]
    Gateway { gateway: IpAddr, subnet: IpNet },
    #[error("ipam configuration: subnet {subnet} does not contain range {range}")]
    Range { range: IpNet, subnet: IpNet },
    #[error("every network number is in use")]
    NumbersUsedUp,
}

/// The lowest number no network has.
///
/// # Errors
/// [`Refusal::NumbersUsedUp`].
pub fn choose_vni(snapshot: &Snapshot) -> Result<u32, Refusal> {
    let used: BTreeSet<_> = snapshot.networks().map(|network| network.vni).collect();
    (VNI_FIRST..=VNI_LAST).find(|vni| !used.contains(vni)).ok_or(Refusal::NumbersUsedUp)
}

/// The subnets of a new network: those it names, and for each family it wants and names none of, the first of the pools
/// that overlaps no other.
///
/// # Errors
/// The first [`Refusal`].
pub fn choose_subnets(snapshot: &Snapshot, spec: &NetworkSpec) -> Result<Vec<Subnet>, Refusal> {
    let mut chosen: Vec<Subnet> = Vec::new();
    for wanted in &spec.subnets {
        let Some(subnet) = wanted.subnet else { continue };
        if let Some((taken, network)) =
            overlapping(snapshot, &chosen, &spec.annotations.name, subnet)
        {
            return Err(Refusal::Overlap { wanted: subnet, taken, network });
        }
        chosen.push(complete(subnet, wanted)?);
    }
    let has = |is_ipv4: bool| move |subnet: &Subnet| subnet.subnet.addr().is_ipv4() == is_ipv4;
    if !chosen.iter().any(has(true)) {
        let subnet = free_ipv4(snapshot, &chosen, spec.is_ingress);
        let subnet = subnet.ok_or(Refusal::PoolsUsedUp { family: 4 })?;
        let named = spec.subnets.iter().find(|named| named.subnet.is_none());
        chosen.push(complete(subnet, &named.cloned().unwrap_or_default())?);
    }
    if spec.is_ipv6 && !chosen.iter().any(has(false)) {
        let subnet = free_ipv6(snapshot, &chosen).ok_or(Refusal::PoolsUsedUp { family: 6 })?;
        chosen.push(complete(subnet, &SubnetSpec::default())?);
    }
    Ok(chosen)
}

fn complete(subnet: IpNet, wanted: &SubnetSpec) -> Result<Subnet, Refusal> {
    let subnet = subnet.trunc();
    let first = subnet.hosts().next().filter(|_| subnet.hosts().nth(1).is_some());
    let first = first.ok_or(Refusal::TooSmall { subnet })?;
    let gateway = wanted.gateway.unwrap_or(first);
    if !subnet.contains(&gateway) {
        return Err(Refusal::Gateway { gateway, subnet });
    }
    match wanted.range {
        Some(range) if !subnet.contains(&range) => Err(Refusal::Range { range, subnet }),
        range => Ok(Subnet { subnet, range, gateway }),
    }
}

fn overlapping(
    snapshot: &Snapshot,
    chosen: &[Subnet],
    name: &str,
    wanted: IpNet,
) -> Option<(IpNet, String)> {
    let overlaps = |other: IpNet| wanted.contains(&other) || other.contains(&wanted);
    let others = snapshot.networks().flat_map(|network| {
        network.subnets.iter().map(|subnet| (subnet.subnet, network.name().to_owned()))
    });
    let own = chosen.iter().map(|subnet| (subnet.subnet, name.to_owned()));
    others.chain(own).find(|(other, _)| overlaps(*other))
}

fn free_ipv4(snapshot: &Snapshot, chosen: &[Subnet], is_ingress: bool) -> Option<IpNet> {
    let cluster = snapshot.cluster()?;
    let pools = cluster.default_address_pools.iter().filter_map(|pool| pool.parse::<IpNet>().ok());
    let defaults = [DEFAULT_POOL.parse().expect("a subnet")];
    let named: Vec<_> = pools.collect();
    let pools = if named.is_empty() { &defaults[..] } else { &named[..] };
    // Every task of a service that publishes ports has an address there: 254 would be few. Whoever names pools has said
    // how large networks are to be.
    if is_ingress && pools == defaults && cluster.subnet_size == SUBNET_SIZE {
        let of_ingress: Vec<_> = defaults[0].subnets(INGRESS_PREFIX).ok()?.collect();
        let is_free = |subnet: &&IpNet| overlapping(snapshot, chosen, "", **subnet).is_none();
        return of_ingress.iter().rev().find(is_free).copied();
    }
    pools.iter().find_map(|pool| free_in(snapshot, chosen, *pool, cluster.subnet_size))
}

fn free_ipv6(snapshot: &Snapshot, chosen: &[Subnet]) -> Option<IpNet> {
    free_in(snapshot, chosen, IPV6_POOL.parse().expect("a subnet"), IPV6_SUBNET_PREFIX)
}

fn free_in(snapshot: &Snapshot, chosen: &[Subnet], pool: IpNet, prefix: u8) -> Option<IpNet> {
    let mut subnets = pool.subnets(prefix.max(pool.prefix_len())).ok()?;
    subnets.find(|subnet| overlapping(snapshot, chosen, "", *subnet).is_none())
}

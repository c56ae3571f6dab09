//! Connections to addresses that are nobody's any more, which clients would be led to for ever.
//!
//! Who ended while a daemon was there is known. At its start, those that ended before are found by what connections lead to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::{Arrivals, Conversations, Error, Flows, Network, blocking, ipv6, namespace, nft};

impl Network {
    /// Connections to these addresses that came by published ports are forgotten, as far as the addresses are still
    /// nobody's. The kernel looks through all connections, which takes milliseconds, for one address as for a thousand.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn forget_flows(
        &self,
        mut gone: BTreeSet<IpAddr>,
        flows: Flows,
    ) -> Result<(), Error> {
        let inner = self.0.clone();
        blocking(move || {
            let held = inner.lock().mesh.held();
            gone.retain(|address| !held.contains(address));
            nft::forget_connections(&gone, flows)
        })
        .await
    }

    /// Nobody has these addresses of a network any more: containers forget connections to them. Takes milliseconds for each
    /// container that has any, see [`Network::forget_flows`].
    pub async fn forget(
        &self,
        id: &str,
        gone: BTreeSet<IpAddr>,
        flows: Flows,
    ) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        let id = id.to_owned();
        let containers = self.with_overlays(move |overlays, _| Ok(overlays.within(&id))).await?;
        blocking(move || {
            let existing = containers.iter().filter(|netns| namespace::exists(netns));
            let mut forgotten = existing
                .map(|netns| namespace::within(netns, || nft::forget_connections(&gone, flows)));
            forgotten.try_for_each(|forgotten| forgotten)
        })
        .await
    }

    /// Counts who comes to a container from now on.
    ///
    /// # Errors
    /// Where it has no namespace of its own, or the kernel refuses.
    pub async fn arrivals(&self, container: &str) -> Result<Arrivals, Error> {
        let netns = self.netns(container);
        blocking(move || Arrivals::within(&netns)).await
    }

    /// The connections that a container has.
    ///
    /// # Errors
    /// Where it has no namespace of its own, or the kernel tells nothing of sockets.
    pub fn conversations(&self, container: &str) -> Result<Conversations, Error> {
        Conversations::within(&self.netns(container))
    }

    /// The addresses in these subnets that connections of the network's containers lead to.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn led_to(&self, id: &str, subnets: Vec<IpNet>) -> Result<BTreeSet<IpAddr>, Error> {
        let id = id.to_owned();
        let containers = self.with_overlays(move |overlays, _| Ok(overlays.within(&id))).await?;
        blocking(move || {
            let mut found = BTreeSet::new();
            for netns in containers.iter().filter(|netns| namespace::exists(netns)) {
                found.extend(namespace::within(netns, nft::answering)?);
            }
            found.retain(|address| subnets.iter().any(|subnet| subnet.contains(address)));
            Ok(found)
        })
        .await
    }

    /// Addresses that connections of the host lead to, of containers on its bridge and of tasks in the ingress network, and that
    /// nobody has: for [`Network::forget_flows`].
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn strays(&self) -> Result<BTreeSet<IpAddr>, Error> {
        let inner = self.0.clone();
        blocking(move || {
            let mut found = nft::answering()?;
            let state = inner.lock();
            let mut held = state.mesh.held();
            let containers = state.endpoints.values().map(|endpoint| endpoint.address);
            held.extend(containers.flat_map(both));
            let bridge = inner.bridge.subnet;
            // The bridge's own address is the host's.
            held.extend(both(inner.bridge.gateway()));
            let subnets = [bridge.into(), ipv6::of_subnet(bridge).into()];
            let subnets: Vec<IpNet> = subnets.into_iter().chain(state.mesh.subnets()).collect();
            found.retain(|address| {
                !held.contains(address) && subnets.iter().any(|subnet| subnet.contains(address))
            });
            Ok(found)
        })
        .await
    }
}

/// What somebody on the bridge is reached by.
fn both(address: Ipv4Addr) -> [IpAddr; 2] {
    [address.into(), ipv6::of_container(address).into()]
}

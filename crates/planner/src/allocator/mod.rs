//! Gives out what there is only once: ports, addresses, subnets.

mod addresses;
mod ports;
pub mod subnets;

pub(crate) use addresses::{
    AddressesInUse, allocate_ingress, allocate_virtual_ips, attach, joined, needs_other_networks,
    networks_with_virtual_ip, publishes,
};
pub use addresses::{NoPlace, choose_for_container};
pub(crate) use ports::{PortsInUse, allocate_ports};

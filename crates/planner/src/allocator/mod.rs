//! Gives out what there is only once: ports, addresses, subnets.

mod addresses;
mod ports;
pub mod subnets;

pub(crate) use addresses::{
    AddressesInUse, allocate_ingress, allocate_virtual_ips, attach, needs_other_networks,
};
pub(crate) use ports::{PortsInUse, allocate_ports};
